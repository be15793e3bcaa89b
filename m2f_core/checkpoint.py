"""Checkpoints: Hugging Face folders of config.json and safetensors, read and written.

The functions about files alone (`read_config`, `weights_files`, `weights_sha256`) do not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2f_core.config import ConfigError, Mask2FormerConfig
from m2f_core.weight_names import IGNORED, hugging_face_names

if TYPE_CHECKING:
    from torch import Tensor

    from m2f_core.labels import LabelMap
    from m2f_core.model import Mask2Former

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
INDEX_FILE = "model.safetensors.index.json"
HASH_BLOCK_BYTES = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def load_checkpoint(folder: str | Path) -> Mask2Former:
    """The model of a checkpoint folder, in eval mode, on the CPU, in float32.

    Weights that are missing, superfluous or of another shape than config.json says are refused by name. The file is
    mapped and copied tensor by tensor, so there is never more than one tensor in memory twice.
    """
    folder = Path(folder)
    model = _empty_model(folder)
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        sources = _match_weights(folder, model, files)
        state = {name: _read_weight(files, *source) for name, source in sources.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def check_checkpoint(folder: str | Path) -> None:
    """Raise the CheckpointError that `load_checkpoint` would, from names and shapes alone: no weight is read."""
    with ExitStack() as stack:
        _match_weights(Path(folder), _empty_model(Path(folder)), _open_weights(Path(folder), stack))


def save_checkpoint(model: Mask2Former, folder: str | Path, label_map: LabelMap | None = None) -> None:
    """Write config.json and model.safetensors under the names of the hub, for us and for transformers to load.

    `label_map` adds the dataset's category ids to config.json, under a key that transformers ignores.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for our_name, tensor in model.state_dict().items():
        names, _, third = hugging_face_names(our_name)
        if third is not None:
            thirds.setdefault(names[0], {})[third] = tensor
        elif len(names) > 1:
            # Cloned, because safetensors refuses tensors that share memory.
            weights.update((n, part.clone()) for n, part in zip(names, tensor.chunk(len(names)), strict=True))
        else:
            weights[names[0]] = tensor.contiguous()
    for name, parts in thirds.items():
        weights[name] = torch.cat([parts[third] for third in range(3)])

    config = model.config.to_dict()
    if label_map is not None:
        config["categories"] = label_map.to_list()
    # config.json comes last, and each file in one step: a folder with a config.json is a whole checkpoint.
    part = folder / f".{WEIGHTS_FILE}.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.replace(folder / WEIGHTS_FILE)
    part = folder / f".{CONFIG_FILE}.part"
    part.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / CONFIG_FILE)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder as it stands."""
    return _read_json(Path(folder) / CONFIG_FILE)


def read_preprocessor_config(folder: str | Path) -> dict[str, Any] | None:
    """The preprocessor_config.json of a checkpoint folder as it stands; None where there is none."""
    path = Path(folder) / PREPROCESSOR_FILE
    return _read_json(path) if path.is_file() else None


def load_config(folder: str | Path) -> Mask2FormerConfig:
    """The configuration of a checkpoint folder."""
    try:
        return Mask2FormerConfig.from_dict(read_config(folder))
    except ConfigError as error:
        raise CheckpointError(f"{Path(folder) / CONFIG_FILE}: {error}") from error


def weights_files(folder: str | Path) -> list[Path]:
    """The safetensors files that hold the weights: one, or those that the index of a sharded checkpoint names."""
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        pickles = sorted(path.name for suffix in ("bin", "pkl", "pth", "pt") for path in folder.glob(f"*.{suffix}"))
        if pickles:
            raise CheckpointError(f"{folder / pickles[0]}: a pickle can run code; convert it to {WEIGHTS_FILE} first")
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


def weights_sha256(folder: str | Path) -> str:
    """Identity of a checkpoint: a hash over its JSON files and its weights, their names and sizes included.

    preprocessor_config.json counts where it exists, because it changes what the model sees.
    """
    digest = hashlib.sha256()
    preprocessor = Path(folder) / PREPROCESSOR_FILE
    optional = [preprocessor] if preprocessor.is_file() else []
    for path in [Path(folder) / CONFIG_FILE, *optional, *weights_files(folder)]:
        try:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(HASH_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


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


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Every tensor name of the checkpoint, with the open (mapped) safetensors file that holds it."""
    from safetensors import SafetensorError, safe_open

    holder: dict[str, Any] = {}
    for path in weights_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download it again") from error
        holder.update(dict.fromkeys(file.keys(), file))
    return holder


def _empty_model(folder: Path) -> Mask2Former:
    """The model that config.json describes, with shapes only: every value comes from the files."""
    import torch

    from m2f_core.model import build_model

    with torch.device("meta"):
        return build_model(load_config(folder))


def _match_weights(
    folder: Path, model: Mask2Former, files: dict[str, Any]
) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """For each of our tensors the names in the files to make it of. Refuses everything that does not fit, at once."""
    sources: dict[str, tuple[tuple[str, ...], int | None]] = {}
    missing, misshapen, mistyped, used = set(), set(), set(), set()
    for our_name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        hub, in_memory, third = hugging_face_names(our_name)
        names = in_memory if any(name in files for name in in_memory) else hub
        length = shape[0] * 3 if third is not None else shape[0] // len(names)
        for name in names:
            used.add(name)
            if name not in files:
                missing.add(name)
                continue
            header = files[name].get_slice(name)
            if header.get_shape() != [length, *shape[1:]]:
                misshapen.add(f"{name} (is {header.get_shape()}, config.json says {[length, *shape[1:]]})")
            if not header.get_dtype().startswith(("F", "BF")):
                mistyped.add(f"{name} ({header.get_dtype()})")
        sources[our_name] = names, third
    unexpected = {name for name in files if name not in used and not IGNORED.fullmatch(name)}
    problems = [*_name_some("missing", missing), *_name_some("unexpected", unexpected)]
    problems += [*_name_some("of another shape", misshapen), *_name_some("not floating-point", mistyped)]
    if problems:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {'; '.join(problems)}")
    return sources


def _name_some(what: str, names: set[str], limit: int = 3) -> Iterator[str]:
    if names:
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        yield f"{len(names)} {what}: {', '.join(sorted(names)[:limit])}{more}"


def _read_weight(files: dict[str, Any], names: tuple[str, ...], third: int | None) -> Tensor:
    """One of our tensors, float32, in memory of its own: the file may vanish afterwards."""
    import torch

    parts = [files[name].get_tensor(name) for name in names]
    if third is not None:
        parts = [parts[0].chunk(3)[third]]
    return (torch.cat(parts) if len(parts) > 1 else parts[0].clone()).float()
