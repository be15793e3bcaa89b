"""A checkpoint's name -> its path on this machine, fetched at most once per node and checked by hash."""

import contextlib
import hashlib
import re
import socket
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from m2f_core import __version__
from m2f_core.checkpoints.checkpoint import OTHER_PICKLES, PICKLES, REFUSES_PICKLES, WEIGHTS_FILE, Checkpoint
from m2f_core.checkpoints.hub import CHECKPOINT_FILES, HUB_ID, fetch_from_hub
from m2f_core.checkpoints.stored_weights import CheckpointError
from m2f_core.user_cache import user_cache
from m2f_core.whole_files import written_whole
from pipeline.config import Settings
from pipeline.errors import RunError, StoreUnavailableError
from pipeline.store.filesystem import one_line, open_filesystem, store_errors_as

_OF_PYTORCH = (".pth", ".pt")
_EMBEDDED = Path("pipeline", "models")


def stage_model(model: str, expected_sha256: str | None = None) -> Checkpoint:
    """Checkpoint `model` on this machine: an embedded one, a folder, a `.pkl` file, a URI of either or a hub id.

    If `expected_sha256` (the driver's) is given, the weights are checked against it, so that every actor of a run has
    the same weights. Raises a RunError that names the missing file and the remedy.
    """
    checkpoint = Checkpoint(_locate(model))
    if expected_sha256 is not None and (found := checkpoint.sha256) != expected_sha256:
        raise RunError(
            f"the weights in {checkpoint.path} on {socket.gethostname()} have sha256 {found[:16]}…, but the run "
            f"was started with {expected_sha256[:16]}…; give every node the same checkpoint, for example by a URI"
        )
    return checkpoint


def check_once(checkpoint: Checkpoint) -> None:
    """`checkpoint.check()`, unless this user's cache says that the same files have passed it with the same program.

    The check builds the model without values, for which PyTorch is loaded; actors check the files again when they load
    them. Raises CheckpointError.
    """
    checkpoint.config  # noqa: B018 - a folder without one is told so before anything is said of its weights
    passed_by = f"{checkpoint.sha256} {__version__} {version('torch')}"
    mark = user_cache() / "checked" / hashlib.sha256(passed_by.encode()).hexdigest()
    if mark.exists():
        return
    checkpoint.check()
    with contextlib.suppress(OSError):  # without the mark, the next driver checks again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def is_local_path(model: str) -> bool:
    """Whether `model` is a folder or file on this machine, not an embedded checkpoint's name, a URI or a hub id."""
    return "://" not in model and not is_embedded(model) and Path(model).expanduser().exists()


def is_embedded(model: str) -> bool:
    """Whether the package contains a checkpoint of this name; every node then has the checkpoint."""
    return _embedded(model) is not None


def _embedded(model: str) -> Path | None:
    """The folder of an embedded checkpoint: beside this code, or in the package as it is installed on this machine.

    `ray job submit --working-dir` uploads the code without the checkpoints (`.rayignore`), and the uploaded code hides
    the installed package from imports.
    """
    if re.fullmatch(r"[\w-]+", model) is None:
        return None
    places = [Path(__file__).parents[2]]
    with contextlib.suppress(PackageNotFoundError):
        places.append(Path(str(distribution("m2f-pipeline").locate_file(""))))
    return next((folder for place in places if (folder := place / _EMBEDDED / model).is_dir()), None)


def _locate(model: str) -> Path:
    if (embedded := _embedded(model)) is not None:
        return embedded
    if "://" in model:
        return _fetch(model)
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".pkl"):
        return path
    if HUB_ID.fullmatch(model) and not path.is_absolute() and path.suffix != ".pkl":
        return _fetch_from_hub(model)
    if path.is_file() and path.suffix in _OF_PYTORCH:
        raise RunError(f"--model {model} is no folder and no .pkl file; {_converting(path)}")
    if model == Settings.model:
        raise RunError(
            f"--model {model}, the default, is part of the installed package, and {socket.gethostname()} has only the "
            "submitted code; install m2f-pipeline on every node, or give another --model"
        )
    raise RunError(f"--model {model}: there is no such folder or .pkl file on {socket.gethostname()}")


def _converting(path: Path) -> str:
    """How to make a checkpoint of a file that PyTorch has written, as detectron2's training does."""
    pickled = path.with_suffix(".pkl").name
    return (
        "if PyTorch has written it, as detectron2's training does, convert it: python -c \"import pickle, torch; "
        f"w = torch.load('{path.name}', map_location='cpu', weights_only=True)['model']; pickle.dump({{'model': {{k: "
        f"v.numpy() for k, v in w.items()}}}}, open('{pickled}', 'wb'))\""
    )


def _fetch(uri: str) -> Path:
    filesystem, root = open_filesystem(uri.rstrip("/"))
    is_pickle = root.endswith(".pkl")
    with store_errors_as(
        StoreUnavailableError, f"--model {uri} cannot be read", missing=f"--model {uri} does not exist"
    ):
        listed = [filesystem.info(root)] if is_pickle else filesystem.ls(root, detail=True)
    files = sorted((info for info in listed if info["type"] == "file"), key=lambda info: str(info["name"]))
    if is_pickle and not files:
        raise RunError(f"--model {uri} is not a file; a name that ends in .pkl must name a file")
    wanted = files if is_pickle else _wanted(files, uri)
    # The key has each file's ETag or mtime: a replaced checkpoint is fetched again, and the old copy stays usable.
    identity = "".join(f"{i['name']}{i.get('ETag') or i.get('etag') or i.get('mtime')}{i['size']}" for i in wanted)
    target = _cache_root() / hashlib.sha256(f"{uri}{identity}".encode()).hexdigest()[:32]
    with FileLock(f"{target}.lock"):  # one process of the node fetches, the others wait
        if not target.is_dir():
            unavailable = store_errors_as(StoreUnavailableError, f"--model {uri} cannot be fetched")
            with unavailable, written_whole(target) as folder:
                folder.mkdir()
                for info in wanted:
                    filesystem.get_file(info["name"], str(folder / Path(info["name"]).name))
    return target / Path(root).name if is_pickle else target


def _wanted(files: list[dict[str, Any]], uri: str) -> list[dict[str, Any]]:
    """The checkpoint files of a folder: those in Hugging Face format, or else the one pickle in the original format."""

    def matching(*patterns: str) -> list[dict[str, Any]]:
        return [info for info in files if any(Path(info["name"]).match(pattern) for pattern in patterns)]

    wanted, pickles = matching(*CHECKPOINT_FILES), matching(PICKLES)
    if matching("*.safetensors"):
        return wanted
    if matching("config.json"):
        if unsafe := matching(*OTHER_PICKLES):
            raise RunError(f"--model {uri} holds {Path(unsafe[0]['name']).name}: {REFUSES_PICKLES}")
        return wanted
    if len(pickles) == 1:
        return pickles
    if pickles:
        names = ", ".join(Path(info["name"]).name for info in pickles)
        raise RunError(f"--model {uri} holds several checkpoints ({names}); pass one of these files")
    raise RunError(f"--model {uri} holds no checkpoint: it has no config.json, *.safetensors or {PICKLES}")


def _fetch_from_hub(hub_id: str) -> Path:
    try:
        folder = fetch_from_hub(hub_id)
    except CheckpointError as error:
        raise RunError(f"--model {one_line(error)}") from None
    if not any(folder.glob("*.safetensors")):
        raise RunError(f"--model {hub_id} has no *.safetensors on the hub; convert its weights to {WEIGHTS_FILE} first")
    return folder


def _cache_root() -> Path:
    try:
        root = user_cache() / "models"
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make a folder for fetched checkpoints: {one_line(error)}; set XDG_CACHE_HOME to another folder"
        ) from None
    return root
