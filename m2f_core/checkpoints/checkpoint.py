"""Checkpoints: Hugging Face folders, read and written, and pickles of the original code, read.

A checkpoint is named by its path: a folder of config.json and safetensors; a `.pkl` file as Mask2Former's authors
published them; or a folder without a config.json that holds one `model_final*.pkl` (nothing else in it counts).

What is about files alone does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2f_core.checkpoints.stored_weights import CheckpointError as CheckpointError
from m2f_core.checkpoints.stored_weights import Source, StoredTensor, match_weights, read_weight
from m2f_core.checkpoints.weight_names import IGNORED, detectron2_names, hugging_face_names
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import ConfigError, Mask2FormerConfig
from m2f_core.whole_files import written_whole

if TYPE_CHECKING:
    from torch import Tensor

    from m2f_core.checkpoints.detectron2 import PickledCheckpoint
    from m2f_core.model.mask2former import Mask2Former

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = "model_final*.pkl"  # the original code's name for what training ends with
OTHER_PICKLES = ("*.bin", "*.pkl", "*.pth", "*.pt")  # of a folder without safetensors; never opened
REFUSES_PICKLES = (
    f"a pickle can run code; convert it to {WEIGHTS_FILE} first (or name it, if it is a {PICKLES} of the original code)"
)
HASH_BLOCK_BYTES = 1 << 20


class Checkpoint:
    """A checkpoint on this machine, opened once: what its files say, each file read at most once, when asked for.

    Everything but `check` and `load` leaves torch alone. Whatever is wrong with the files is a CheckpointError that
    names the file.
    """

    def __init__(self, path: str | Path):
        """`path`: a folder or a `.pkl` file, which is looked at when something is asked for."""
        self.path = Path(path)

    @cached_property
    def pickle(self) -> Path | None:
        """The `.pkl` file of the original code; None for a Hugging Face folder (or nothing)."""
        return _find_pickle(self.path)

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        """config.json as it stands; of a pickle, what its config.json would hold."""
        return _read_json(self.path / CONFIG_FILE) if self.pickle is None else self._pickled.config_dict()

    @cached_property
    def config(self) -> Mask2FormerConfig:
        try:
            return Mask2FormerConfig.from_dict(self.config_dict)
        except ConfigError as error:
            raise CheckpointError(f"{self.pickle or self.path / CONFIG_FILE}: {error}") from error

    @cached_property
    def labels(self) -> LabelMap:
        """The classes by class id. ValueError where `categories` of config.json are none."""
        return LabelMap.from_config_dict(self.config_dict)

    @cached_property
    def preprocessor_config(self) -> dict[str, Any] | None:
        """preprocessor_config.json as it stands; None where there is none, as for a pickle."""
        file = self.path / PREPROCESSOR_FILE
        return _read_json(file) if self.pickle is None and file.is_file() else None

    @cached_property
    def weights_files(self) -> list[Path]:
        """The files of the weights: safetensors (one, or those that a checkpoint's index names) or the pickle."""
        return _weights_files(self.path) if self.pickle is None else [self.pickle]

    @cached_property
    def sha256(self) -> str:
        """Identity of the checkpoint: a hash over its JSON files and its weights, their names and sizes included.

        preprocessor_config.json counts where it exists, because it changes what the model sees.
        """
        digest = hashlib.sha256()
        described_by = [self.path / CONFIG_FILE] if self.pickle is None else []
        if self.pickle is None and (self.path / PREPROCESSOR_FILE).is_file():
            described_by.append(self.path / PREPROCESSOR_FILE)
        for file in [*described_by, *self.weights_files]:
            try:
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while block := stream.read(HASH_BLOCK_BYTES):
                        digest.update(block)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
        return digest.hexdigest()

    def check(self) -> None:
        """Raise the CheckpointError that `load` would, from names and shapes alone: no weight is read."""
        with ExitStack() as stack:
            self._match(stack)

    def load(self) -> Mask2Former:
        """The model in eval mode, on the CPU, in float32.

        Weights that are missing, superfluous or of another shape than expected are refused by name. The file is mapped
        and copied tensor by tensor, so there is never more than one tensor in memory twice.
        """
        with ExitStack() as stack:
            model, stored, sources = self._match(stack)
            state = {name: read_weight(stored, source) for name, source in sources.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    @cached_property
    def _pickled(self) -> PickledCheckpoint:
        from m2f_core.checkpoints.detectron2 import open_pickle

        assert self.pickle is not None
        return open_pickle(self.pickle)

    def _match(self, stack: ExitStack) -> tuple[Mask2Former, dict[str, StoredTensor], dict[str, Source]]:
        """The model without values, what the files hold (while `stack` keeps them open), and what to make of it."""
        if self.pickle is not None:
            model, stored = _empty_model(self._pickled.config()), self._pickled.stored_tensors()
            words = "the model they describe"
            return model, stored, match_weights(model, stored, detectron2_names, IGNORED, self.path, words)
        model, stored = _empty_model(self.config), _open_safetensors(self.weights_files, stack)

        def source_of(our_name: str) -> Source:
            hub, in_memory = hugging_face_names(our_name)
            return in_memory if any(name in stored for name in in_memory.names) else hub

        return model, stored, match_weights(model, stored, source_of, IGNORED, self.path, CONFIG_FILE)


def load_checkpoint(path: str | Path) -> Mask2Former:
    """`Checkpoint(path).load()`."""
    return Checkpoint(path).load()


def save_checkpoint(
    model: Mask2Former, folder: str | Path, label_map: LabelMap | None = None, license_name: str | None = None
) -> None:
    """Write config.json and model.safetensors under the names of the hub, for us and for transformers to load.

    `label_map` adds the dataset's category ids to config.json, and `license_name` the licence of the weights (of those
    that they come from, `licenses.model_license` knows it), under keys that transformers ignores. CheckpointError, with
    nothing written, where the model's weights are not those of its configuration.
    """
    import torch
    from safetensors.torch import save_file

    _check_weights(model)
    folder = Path(folder)
    weights: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for our_name, tensor in model.state_dict().items():
        hub, _ = hugging_face_names(our_name)
        if hub.third is not None:
            thirds.setdefault(hub.names[0], {})[hub.third] = tensor
        elif len(hub.names) > 1:
            # Cloned, because safetensors refuses tensors that share memory.
            weights.update((n, part.clone()) for n, part in zip(hub.names, tensor.chunk(len(hub.names)), strict=True))
        else:
            weights[hub.names[0]] = tensor.contiguous()
    for name, parts in thirds.items():
        weights[name] = torch.cat([parts[third] for third in range(3)])

    config = model.config.to_dict()
    if label_map is not None:
        config["categories"] = label_map.to_list()
    if license_name is not None:
        config["license"] = license_name
    # config.json comes last, and each file in one step: a folder with a config.json is a whole checkpoint.
    with written_whole(folder / WEIGHTS_FILE) as file:
        save_file(weights, file, metadata={"format": "pt"})
    with written_whole(folder / CONFIG_FILE) as file:
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_weights(model: Mask2Former) -> None:
    """Weights are packed by `prepare_for_inference`, and may be replaced by hand: such a file would not load again."""
    wanted = {name: tuple(tensor.shape) for name, tensor in _empty_model(model.config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{name} has shape {found.get(name)}, by the model's configuration {wanted.get(name)}: a model that "
                "was prepared for inference, or has another class head than its configuration says, cannot be saved"
            )


def _find_pickle(path: Path) -> Path | None:
    if path.suffix == ".pkl" and not path.is_dir():
        return path
    if any(path.glob("*.safetensors")) or (path / CONFIG_FILE).is_file():
        return None
    pickles = sorted(path.glob(PICKLES))
    if len(pickles) > 1:
        names = ", ".join(pickle.name for pickle in pickles)
        raise CheckpointError(f"{path}: holds several checkpoints, {names}; name one of these files")
    return pickles[0] if pickles else None


def _weights_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        pickles = sorted(path.name for pattern in OTHER_PICKLES for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(f"{folder / pickles[0]}: {REFUSES_PICKLES}")
        raise CheckpointError(f"{folder}: no {WEIGHTS_FILE} and no {INDEX_FILE}; is this a checkpoint's folder?")
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE}: has no weight_map; download the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX_FILE}: names a file outside of its folder, {name!r}")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing, but {INDEX_FILE} names it; download the checkpoint again")
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; is this a checkpoint's folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def _empty_model(config: Mask2FormerConfig) -> Mask2Former:
    """The model with shapes only: every value comes from the files."""
    import torch

    from m2f_core.model.mask2former import build_model

    with torch.device("meta"):
        return build_model(config)


def _open_safetensors(files: list[Path], stack: ExitStack) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name; values can be read while `stack` keeps the (mapped) files open."""
    from safetensors import SafetensorError, safe_open

    stored: dict[str, StoredTensor] = {}
    for path in files:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download it again") from error
        for name in file.keys():  # noqa: SIM118  not a dictionary
            header = file.get_slice(name)
            dtype = header.get_dtype()
            stored[name] = StoredTensor(
                shape=tuple(header.get_shape()),
                dtype=dtype,
                is_float=dtype.startswith(("F", "BF")),
                is_integer=dtype.startswith(("I", "U")),
                read=partial(file.get_tensor, name),
            )
    return stored
