"""Checkpoints of the original code (`model_final_*.pkl`), as Mask2Former's authors published them.

Such a file is a pickle of {"model": {name: array}, ...}, without configuration and class names. The configuration is
inferred from the names and shapes of the arrays, and the classes from the dataset with this number of classes.

This module does not import torch until a value is read.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2f_core.checkpoints.pickled_arrays import PickledArray, PlainPickleError
from m2f_core.checkpoints.plain_pickle import read_plain_pickle
from m2f_core.checkpoints.stored_weights import CheckpointError, StoredTensor
from m2f_core.config.backbones import BackboneConfig, ResNetConfig, SwinConfig
from m2f_core.config.fields import MAX_CLASSES, MAX_LAYERS, MAX_WINDOW_SIZE
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import PAPER_DROP_PATH_RATE, ConfigError, Mask2FormerConfig

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "sem_seg_head."
PIXEL_DECODER = HEAD + "pixel_decoder."
PREDICTOR = HEAD + "predictor."

# Arrays may be views of the same bytes. In memory each tensor has its own: together they must not be many times the
# file.
MAX_SHARING = 2

# Every deformable attention in the original has three levels, four points and two coordinates.
OFFSETS_PER_HEAD = 3 * 4 * 2


@dataclass(frozen=True)
class PickledCheckpoint:
    """An open file: `arrays` are views of the mapped file, by their names in the present original code."""

    path: Path
    arrays: Mapping[str, np.ndarray]

    def config(self) -> Mask2FormerConfig:
        """The configuration from names and shapes. Raises CheckpointError if they do not belong to a Mask2Former."""
        try:
            return infer_config({name: array.shape for name, array in self.arrays.items()})
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def config_dict(self) -> dict[str, Any]:
        """The config.json that a Hugging Face checkpoint of this model would have."""
        return self.config().to_dict()

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """The arrays as tensors, plus the counts that transformers' batch norms have and detectron2's lack."""
        stored = {name: _stored(array) for name, array in self.arrays.items()}
        for name in self.arrays:
            if name.endswith(".running_var"):
                count = name.removesuffix("running_var") + "num_batches_tracked"
                stored.setdefault(count, _stored(np.zeros((), np.int64)))
        return stored


def open_pickle(path: Path) -> PickledCheckpoint:
    """Map a `.pkl` file. No code in it is run, and the values of its arrays are not read.

    Raises a CheckpointError that names anything but arrays in plain containers.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise CheckpointError(f"{path}: is an archive of torch.save, not a pickle of numpy arrays")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        model = _model_entry(read_plain_pickle(memoryview(content)))
        num_bytes = sum(array.nbytes for array in model.values())
        if num_bytes > MAX_SHARING * len(content):
            raise PlainPickleError(f"has {len(content):,} bytes, but arrays of {num_bytes:,} bytes, which share them")
        return PickledCheckpoint(path, _todays_names(model))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file; PlainPickleError is one too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}; it must be a model_final_*.pkl of Mask2Former's model zoo") from None


def _model_entry(content: object) -> dict[str, np.ndarray]:
    """The arrays of the entry "model"; other entries (author, optimizer) are ignored."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise PlainPickleError('has no entry "model" with arrays by name')
    for name, array in model.items():
        if not isinstance(name, str) or not name.isprintable():
            raise PlainPickleError("has an array in its model whose name is not printable text")
        if not isinstance(array, PickledArray):
            raise PlainPickleError(f"has a {type(array).__name__} as {name}, not an array")
    return {name: array.values for name, array in model.items()}


def _todays_names(model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors of older code, which had the pixel decoder in the head and called the queries' features static."""
    renamed: dict[str, np.ndarray] = {}
    for old_name, array in model.items():
        name = re.sub(rf"^{re.escape(HEAD)}(?!pixel_decoder\.|predictor\.)", PIXEL_DECODER, old_name)
        name = name.replace(PREDICTOR + "static_query.", PREDICTOR + "query_feat.")
        if name in renamed or (name != old_name and name in model):
            raise PlainPickleError(f"has {name} twice, in an old and a new spelling")
        renamed[name] = array
    return renamed


def _stored(array: np.ndarray) -> StoredTensor:
    return StoredTensor(
        shape=array.shape,
        dtype=array.dtype.name,
        is_float=array.dtype.kind == "f",
        is_integer=array.dtype.kind in "iu",
        read=partial(_to_tensor, array),
    )


def _to_tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


class _Shapes:
    """Shapes by name; a ConfigError names a missing tensor."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def size(self, name: str, axis: int, dimensions: int = 2) -> int:
        """Length along an axis of the tensor `name`; it must have `dimensions` dimensions and at least one value."""
        shape = self.shapes.get(name)
        if shape is None:
            raise ConfigError(f"holds no {name}, which every Mask2Former with this backbone has")
        if len(shape) != dimensions or 0 in shape:
            raise ConfigError(
                f"{name} has the shape {list(shape)}; it must have {dimensions} dimensions and at least one value"
            )
        return shape[axis]

    def count(self, front: str) -> int:
        """The number of `front`0, `front`1, ...: one more than the largest index."""
        numbers = [re.match(rf"{re.escape(front)}(\d{{1,9}})\.", name) for name in self.shapes]
        count = max((int(match[1]) + 1 for match in numbers if match), default=0)
        if count > MAX_LAYERS:
            raise ConfigError(
                f"has layers up to {front}{count - 1}, but at most {MAX_LAYERS} of one kind are supported"
            )
        return count


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> Mask2FormerConfig:
    """The configuration whose weights have these names and shapes (in the naming of the present original code).

    Names and shapes do not show two properties, which are assumed as in every published model: the decoder has as many
    heads as the pixel decoder, and it normalises after each part. Raises ConfigError.
    """
    known = _Shapes(shapes)
    num_labels = known.size(PREDICTOR + "class_embed.weight", 0) - 1
    if num_labels > MAX_CLASSES:
        raise ConfigError(
            f"{PREDICTOR}class_embed.weight has {num_labels} classes, but at most {MAX_CLASSES} are supported"
        )
    label_map = LabelMap.of_num_labels(num_labels)
    names = [category.name for category in label_map.categories] if label_map else None
    layer = PIXEL_DECODER + "transformer.encoder.layers."
    offsets = known.size(f"{layer}0.self_attn.sampling_offsets.weight", 0)
    feature_size = known.size(PIXEL_DECODER + "input_proj.0.0.weight", 0, dimensions=4)
    num_queries, hidden_dim = (known.size(PREDICTOR + "query_feat.weight", axis) for axis in (0, 1))
    return Mask2FormerConfig(
        backbone_config=_infer_backbone(known),
        feature_size=feature_size,
        mask_feature_size=known.size(PIXEL_DECODER + "mask_features.weight", 0, dimensions=4),
        hidden_dim=hidden_dim,
        encoder_layers=known.count(layer),
        encoder_feedforward_dim=known.size(f"{layer}0.linear1.weight", 0),
        decoder_layers=known.count(PREDICTOR + "transformer_ffn_layers.") + 1,
        num_attention_heads=offsets // OFFSETS_PER_HEAD,
        dim_feedforward=known.size(PREDICTOR + "transformer_ffn_layers.0.linear1.weight", 0),
        # If the widths differ, there is always a projection.
        enforce_input_projection=feature_size == hidden_dim and PREDICTOR + "input_proj.0.weight" in shapes,
        num_queries=num_queries,
        id2label=dict(enumerate(names or (f"LABEL_{class_id}" for class_id in range(num_labels)))),
    )


def _infer_backbone(known: _Shapes) -> BackboneConfig:
    if "backbone.patch_embed.proj.weight" in known.shapes:
        return _infer_swin(known)
    if "backbone.stem.conv1.weight" in known.shapes:
        return _infer_resnet(known)
    raise ConfigError("holds no supported backbone: neither Swin (backbone.patch_embed) nor ResNet (backbone.stem)")


def _infer_swin(known: _Shapes) -> SwinConfig:
    first = "backbone.layers.{}.blocks.0."
    dim = known.size("backbone.patch_embed.proj.weight", 0, dimensions=4)
    places = known.size(first.format(0) + "attn.relative_position_bias_table", 0)
    window_size = (math.isqrt(places) + 1) // 2
    if (2 * window_size - 1) ** 2 != places or window_size > MAX_WINDOW_SIZE:
        raise ConfigError(f"has a relative_position_bias_table of {places} rows, which fits no window size")
    return SwinConfig(
        embed_dim=dim,
        depths=tuple(known.count(f"backbone.layers.{stage}.blocks.") for stage in range(4)),
        num_heads=tuple(known.size(first.format(s) + "attn.relative_position_bias_table", 1) for s in range(4)),
        window_size=window_size,
        patch_size=known.size("backbone.patch_embed.proj.weight", 2, dimensions=4),
        mlp_ratio=known.size(first.format(0) + "mlp.fc1.weight", 0) / max(dim, 1),
        qkv_bias=first.format(0) + "attn.qkv.bias" in known.shapes,
        drop_path_rate=PAPER_DROP_PATH_RATE,
    )


def _infer_resnet(known: _Shapes) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=known.size("backbone.stem.conv1.weight", 0, dimensions=4),
        hidden_sizes=tuple(known.size(f"backbone.res{s}.0.conv3.weight", 0, dimensions=4) for s in range(2, 6)),
        depths=tuple(known.count(f"backbone.res{stage}.") for stage in range(2, 6)),
    )
