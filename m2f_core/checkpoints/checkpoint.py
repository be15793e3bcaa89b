"""Checkpoints: Hugging Face folders, read and written, and pickles of the original code, read.

The path of a checkpoint is a folder with config.json and safetensors, a `.pkl` file as published by Mask2Former's
authors, or a folder without a config.json that holds one `model_final*.pkl` (its other files are ignored).

Functions that only read files do not import torch. The family of a checkpoint (`m2f_core.families`) knows the names of
its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2f_core.checkpoints.stored_weights import CheckpointError as CheckpointError
from m2f_core.checkpoints.stored_weights import StoredTensor, match_weights, read_weight
from m2f_core.config.fields import ConfigError
from m2f_core.config.labels import LabelMap
from m2f_core.families.family import Family
from m2f_core.families.registry import family_of
from m2f_core.families.rules import Source
from m2f_core.whole_files import written_whole

if TYPE_CHECKING:
    from torch import Tensor

    from m2f_core.checkpoints.detectron2 import PickledCheckpoint
    from m2f_core.config.labels import Task
    from m2f_core.config.model_config import ModelConfig
    from m2f_core.images.image_processor import ImageProcessor
    from m2f_core.images.image_size import ImageSize
    from m2f_core.model.contract import SegmentationModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = "model_final*.pkl"  # the original code's name for the result of training
OTHER_PICKLES = ("*.bin", "*.pkl", "*.pth", "*.pt")  # weights in a folder without safetensors; never opened
REFUSES_PICKLES = (
    f"a pickle can run code; convert it to {WEIGHTS_FILE} first (or name it, if it is a {PICKLES} of the original code)"
)
HASH_BLOCK_BYTES = 1 << 20
# Beyond what any checkpoint has, and little enough to read before its weights show whether it is one. The index of a
# large checkpoint has 100 kB, and a published model has 1,100 tensors.
MAX_JSON_BYTES = 32 << 20
MAX_JSON_DEPTH = 16
MAX_TENSORS = 100_000
_TOO_DEEP = f"its lists and objects are nested in more than {MAX_JSON_DEPTH} levels; download the checkpoint again"


class Checkpoint:
    """A checkpoint on this machine, opened once: each file is read at most once, when it is needed.

    Only `check` and `load` import torch. Every error of the files is a CheckpointError that names the file.
    """

    def __init__(self, path: str | Path):
        """`path`: a folder or a `.pkl` file. It is not opened here, but at the first access."""
        self.path = Path(path)

    @cached_property
    def pickle(self) -> Path | None:
        """The `.pkl` file of the original code; None for a Hugging Face folder or a missing path."""
        return _find_pickle(self.path)

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        """The content of config.json; for a pickle, the content that its config.json would have."""
        return _read_json(self.path / CONFIG_FILE) if self.pickle is None else self._pickled.config_dict()

    @cached_property
    def family(self) -> Family:
        """The architecture; CheckpointError if it is not known."""
        if self.pickle is not None:
            return self._pickled.family
        try:
            return family_of(self.config_dict)
        except ConfigError as error:
            raise CheckpointError(f"{self.path / CONFIG_FILE}: {error}") from error

    @cached_property
    def config(self) -> ModelConfig:
        """The configuration, checked; CheckpointError names the field that is wrong."""
        try:
            return self.family.config(self.config_dict)
        except ConfigError as error:
            raise CheckpointError(f"{self.pickle or self.path / CONFIG_FILE}: {error}") from error

    @cached_property
    def labels(self) -> LabelMap:
        """The classes by class id. ValueError if `categories` in config.json are invalid."""
        return LabelMap.from_config_dict(self.config_dict)

    @cached_property
    def preprocessor_config(self) -> dict[str, Any] | None:
        """The content of preprocessor_config.json; None if the file is missing, as for a pickle."""
        file = self.path / PREPROCESSOR_FILE
        return _read_json(file) if self.pickle is None and file.is_file() else None

    def image_processor(
        self, mode: str, image_size: ImageSize | None = None, task: Task = "panoptic"
    ) -> ImageProcessor:
        """How images become inputs of the model. `mode`: "reference" or "hf". ValueError names a wrong field."""
        return self.family.image_processor(self.config, self.preprocessor_config, mode, image_size, task)

    @cached_property
    def weights_files(self) -> list[Path]:
        """The weights' files: safetensors (one file, or the files in the checkpoint's index) or the pickle."""
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
        """Raise the CheckpointError that `load` would raise, from names and shapes alone: no weight is read."""
        with ExitStack() as stack:
            self._match(stack)

    def load(self) -> SegmentationModel:
        """The model in eval mode, on the CPU, in float32.

        Missing, superfluous and misshapen weights are refused by name. The file is mapped and copied tensor by tensor,
        so at most one tensor is in memory twice.
        """
        with ExitStack() as stack:
            model, stored, sources = self._match(stack)
            state = {name: read_weight(stored, source) for name, source in sources.items()}
        try:
            model.load_state_dict(state, strict=True, assign=True)
        except ValueError as error:  # values that the model cannot compute with
            raise CheckpointError(f"{self.path}: {error}") from error
        return model.eval()

    @cached_property
    def _pickled(self) -> PickledCheckpoint:
        from m2f_core.checkpoints.detectron2 import open_pickle

        assert self.pickle is not None
        return open_pickle(self.pickle)

    def _match(self, stack: ExitStack) -> tuple[SegmentationModel, dict[str, StoredTensor], dict[str, Source]]:
        """The model without values, the stored tensors (valid while `stack` is open), and the source of each tensor."""
        if self.pickle is not None:
            model, stored = _empty_model(self.family, self._pickled.config()), self._pickled.stored_tensors()
            original, words = self._pickled.original, "the model they describe"
            return model, stored, match_weights(model, stored, original.source, original.ignored, self.path, words)
        names = self.family.weight_names
        model = _empty_model(self.family, self.config)
        stored = _open_safetensors(self.weights_files, stack, names.read_as)

        def source_of(our_name: str) -> Source:
            hub, *others = names.sources(our_name)
            return next((source for source in others if any(name in stored for name in source.names)), hub)

        return model, stored, match_weights(model, stored, source_of, names.ignored, self.path, CONFIG_FILE)


def load_checkpoint(path: str | Path) -> SegmentationModel:
    """`Checkpoint(path).load()`."""
    return Checkpoint(path).load()


def save_checkpoint(
    model: SegmentationModel, folder: str | Path, label_map: LabelMap | None = None, license_name: str | None = None
) -> None:
    """Write config.json and model.safetensors with the hub's weight names; this code and transformers can load them.

    `label_map` adds the dataset's category ids to config.json, and `license_name` the licence of the weights, under
    keys that transformers ignores (`licenses.model_license` finds the licence of the starting weights).
    CheckpointError, with nothing written, if the model's weights do not fit its configuration.
    """
    import torch
    from safetensors.torch import save_file

    family = family_of(model.config.to_dict())
    _check_weights(model, family)
    folder = Path(folder)
    weights: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for our_name, tensor in model.state_dict().items():
        hub = family.weight_names.sources(our_name)[0]
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
    # Each file appears whole, and config.json last: so a folder with a config.json is a complete checkpoint.
    with written_whole(folder / WEIGHTS_FILE) as file:
        save_file(weights, file, metadata={"format": "pt"})
    with written_whole(folder / CONFIG_FILE) as file:
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_weights(model: SegmentationModel, family: Family) -> None:
    """Refuse weights that `prepare_for_inference` packed or a caller replaced: such a file would not load again."""
    wanted = {name: tuple(tensor.shape) for name, tensor in _empty_model(family, model.config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{name} has shape {found.get(name)}, but by the model's configuration {wanted.get(name)}; a model "
                "that was prepared for inference, or whose class head differs from its configuration, cannot be saved"
            )


def _find_pickle(path: Path) -> Path | None:
    if path.suffix == ".pkl" and not path.is_dir():
        return path
    if any(path.glob("*.safetensors")) or (path / CONFIG_FILE).is_file():
        return None
    pickles = sorted(path.glob(PICKLES))
    if len(pickles) > 1:
        names = ", ".join(pickle.name for pickle in pickles)
        raise CheckpointError(f"{path}: holds several checkpoints ({names}); pass one of these files")
    return pickles[0] if pickles else None


def _weights_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        pickles = sorted(path.name for pattern in OTHER_PICKLES for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(f"{folder / pickles[0]}: {REFUSES_PICKLES}")
        raise CheckpointError(f"{folder}: has no {WEIGHTS_FILE} and no {INDEX_FILE}; is this a checkpoint's folder?")
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
    """The object in a file. CheckpointError if it is none, or larger or deeper than any file of a checkpoint."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes, but at most {MAX_JSON_BYTES:,} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; is this a checkpoint's folder?") from None
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path}: {_TOO_DEEP}") from None
    except (OSError, ValueError) as error:  # not UTF-8, not JSON, or a number of more than 4,300 digits
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    if _is_deeper(content, MAX_JSON_DEPTH):
        raise CheckpointError(f"{path}: {_TOO_DEEP}")
    return content


def _is_deeper(content: object, depth: int) -> bool:
    """Whether lists and objects are nested in more than `depth` levels."""
    level = [content]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def _empty_model(family: Family, config: ModelConfig) -> SegmentationModel:
    """The model with shapes only; all values come from the files."""
    import torch

    with torch.device("meta"):
        return family.build_model(config)


def _open_safetensors(files: list[Path], stack: ExitStack, read_as: Callable[[str], str]) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by the name that `read_as` gives; values can be read while `stack` keeps the
    (mapped) files open.
    """
    from safetensors import SafetensorError, safe_open

    stored: dict[str, StoredTensor] = {}
    for path in files:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a complete safetensors file ({error}); download it again") from error
        names = file.keys()
        if len(stored) + len(names) > MAX_TENSORS:
            raise CheckpointError(f"{path}: has {len(names):,} tensors, but at most {MAX_TENSORS:,} are read")
        for name in names:
            header = file.get_slice(name)
            dtype = header.get_dtype()
            stored[read_as(name)] = StoredTensor(
                shape=tuple(header.get_shape()),
                dtype=dtype,
                is_float=dtype.startswith(("F", "BF")),
                is_integer=dtype.startswith(("I", "U")),
                read=partial(file.get_tensor, name),
            )
    return stored
