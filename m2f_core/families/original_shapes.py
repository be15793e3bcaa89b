"""Shapes of the arrays in a `.pkl` of an original code, and the backbone that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from m2f_core.config.backbones import PAPER_DROP_PATH_RATE, BackboneConfig, ResNetConfig, SwinConfig
from m2f_core.config.fields import MAX_CLASSES, MAX_LAYERS, MAX_WINDOW_SIZE, ConfigError
from m2f_core.config.labels import LabelMap


class Shapes:
    """Shapes by name; a ConfigError names a missing tensor."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def size(self, name: str, axis: int, dimensions: int = 2) -> int:
        """Length along an axis of the tensor `name`; it must have `dimensions` dimensions and at least one value."""
        shape = self.shapes.get(name)
        if shape is None:
            raise ConfigError(f"holds no {name}, which every model with this backbone has")
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


def class_names(known: Shapes, head: str) -> dict[int, str]:
    """Names by class id, of the dataset with as many classes as the head `head` has rows, "no object" not counted."""
    num_labels = known.size(head, 0) - 1
    if num_labels > MAX_CLASSES:
        raise ConfigError(f"{head} has {num_labels} classes, but at most {MAX_CLASSES} are supported")
    label_map = LabelMap.of_num_labels(num_labels)
    names = [category.name for category in label_map.categories] if label_map else None
    return dict(enumerate(names or (f"LABEL_{class_id}" for class_id in range(num_labels))))


def infer_backbone(known: Shapes) -> BackboneConfig:
    if "backbone.patch_embed.proj.weight" in known.shapes:
        return _infer_swin(known)
    if "backbone.stem.conv1.weight" in known.shapes:
        return _infer_resnet(known)
    raise ConfigError("holds no supported backbone: neither Swin (backbone.patch_embed) nor ResNet (backbone.stem)")


def _infer_swin(known: Shapes) -> SwinConfig:
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


def _infer_resnet(known: Shapes) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=known.size("backbone.stem.conv1.weight", 0, dimensions=4),
        hidden_sizes=tuple(known.size(f"backbone.res{s}.0.conv3.weight", 0, dimensions=4) for s in range(2, 6)),
        depths=tuple(known.count(f"backbone.res{stage}.") for stage in range(2, 6)),
    )
