"""Configurations of backbones, with the field names of `backbone_config` in a Hugging Face config.json. No torch.

Another backbone gets a configuration class here, a row in `BACKBONES`, and a branch in
`model.backbones.build_backbone`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from m2f_core.config.fields import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_PATCH_SIZE,
    MAX_WIDTH,
    MAX_WINDOW_SIZE,
    ConfigError,
    check_activation,
    check_booleans,
    check_count_tuple,
    check_counts,
    check_divisible,
    check_numbers,
    excerpt,
    known_fields,
)

STAGES = ("stage1", "stage2", "stage3", "stage4")  # every stage is an output
BOTTLENECK_REDUCTION = 4  # width of a ResNet stage / width of its 3x3 convolutions


@dataclass(frozen=True)
class SwinConfig:
    """A Swin Transformer as Mask2Former uses it: four stages, each of which is an output.

    Widths of the stages are `embed_dim * (1, 2, 4, 8)`, their strides `patch_size * (1, 2, 4, 8)` pixels.
    `drop_path_rate` is the share of training images for which the last block adds nothing. The rate of the blocks grows
    linearly from 0 at the first block. Inference does not use it.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    patch_size: int = 4
    num_channels: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, ("embed_dim",), MAX_WIDTH // 8)
        check_counts(self, ("window_size",), MAX_WINDOW_SIZE)
        check_counts(self, ("patch_size",), MAX_PATCH_SIZE)
        check_count_tuple(self, "depths", 4, MAX_LAYERS)
        check_count_tuple(self, "num_heads", 4, MAX_HEADS)
        check_booleans(self, ("qkv_bias",))
        for stage, (width, heads) in enumerate(zip(self.feature_channels, self.num_heads, strict=True), start=1):
            check_divisible(f"the width of Swin stage {stage}", width, "its entry of num_heads", heads)
        _check_rgb(self.num_channels)
        check_numbers(self, ("mlp_ratio",), least=1 / self.embed_dim, most=MAX_WIDTH / self.feature_channels[-1])
        check_numbers(self, ("layer_norm_eps",), least=1e-30, most=1)
        check_numbers(self, ("drop_path_rate",), most=0.999999)
        check_activation(self, "hidden_act")

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the four feature maps, highest resolution first."""
        return tuple(self.embed_dim * 2**stage for stage in range(4))

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels per cell of the four feature maps, highest resolution first."""
        return tuple(self.patch_size * 2**stage for stage in range(4))

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> SwinConfig:
        """Read the `backbone_config` of a Hugging Face config.json."""
        known = known_fields(cls, json_dict)
        patch_size = known.get("patch_size")
        if isinstance(patch_size, tuple) and patch_size and patch_size.count(patch_size[0]) == len(patch_size):
            known["patch_size"] = patch_size[0]  # older files write [4, 4]
        if json_dict.get("use_absolute_embeddings"):
            raise ConfigError("use_absolute_embeddings=true is not supported: no published Mask2Former uses it")
        _check_outputs(json_dict)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """A `backbone_config` that transformers can read."""
        return {"model_type": "swin", "use_absolute_embeddings": False, **_json_fields(self)}


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet: a 7x7 stem at stride 4 and four stages, each of which is an output.

    `hidden_sizes` are the widths of the stages. `layer_type` is "bottleneck" (ResNet-50 and deeper) or "basic"
    (ResNet-18, ResNet-34). If a stage halves the resolution, its first 3x3 convolution does this, or with
    `downsample_in_bottleneck` the 1x1 convolution before it. `hidden_act` follows the stem and each block's sum; inside
    a block the activation is always relu, as in transformers.
    """

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    num_channels: int = 3
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    def __post_init__(self) -> None:
        check_counts(self, ("embedding_size",), MAX_WIDTH)
        check_count_tuple(self, "hidden_sizes", 4, MAX_WIDTH)
        check_count_tuple(self, "depths", 4, MAX_LAYERS)
        check_booleans(self, ("downsample_in_first_stage", "downsample_in_bottleneck"))
        if self.layer_type not in ("basic", "bottleneck"):
            raise ConfigError(f'layer_type must be "basic" or "bottleneck", not {excerpt(self.layer_type)}')
        for stage, width in enumerate(self.hidden_sizes if self.layer_type == "bottleneck" else (), start=1):
            check_divisible(f"the width of ResNet stage {stage}", width, "its reduction", BOTTLENECK_REDUCTION)
        _check_rgb(self.num_channels)
        check_activation(self, "hidden_act")
        if self.downsample_in_first_stage:
            raise ConfigError("downsample_in_first_stage=true is not supported: Mask2Former reads strides 4, 8, 16, 32")

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the four feature maps, highest resolution first."""
        return self.hidden_sizes

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels per cell of the four feature maps, highest resolution first."""
        return (4, 8, 16, 32)

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> ResNetConfig:
        """Read the `backbone_config` of a Hugging Face config.json."""
        _check_outputs(json_dict)
        return cls(**known_fields(cls, json_dict))

    def to_dict(self) -> dict[str, Any]:
        """A `backbone_config` that transformers can read."""
        return {"model_type": "resnet", **_json_fields(self)}


BackboneConfig = SwinConfig | ResNetConfig
# MaskFormer's Swin is the same network with other names of its weights; it is written as "swin".
BACKBONES: dict[str, type[SwinConfig] | type[ResNetConfig]] = {
    "swin": SwinConfig,
    "maskformer-swin": SwinConfig,
    "resnet": ResNetConfig,
}


_SWIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"depths": (2, 2, 18, 2)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
# Base and large of the papers were pre-trained at 384 pixels.
_PAPER_WINDOWS = {"base": 12, "large": 12}
PAPER_DROP_PATH_RATE = 0.3  # every published Swin model was trained with this
_RESNET_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def paper_swin(size: str) -> SwinConfig:
    """The Swin of that size ("tiny", "small", "base", "large") as the families' authors trained it."""
    return SwinConfig(
        window_size=_PAPER_WINDOWS.get(size, SwinConfig.window_size),
        drop_path_rate=PAPER_DROP_PATH_RATE,
        **_SWIN_SIZES[size],
    )


def backbone_by_name(name: str) -> BackboneConfig | None:
    """The configuration of Microsoft's published Swin and ResNet models by their hub id; None for other names.

    Their files need not be downloaded, because the names say all.
    """
    if match := re.fullmatch(r"microsoft/swin-(\w+)-patch4-window(\d{1,9})-\d+(-in22k)?", name):
        size = _SWIN_SIZES.get(match[1])
        return None if size is None else SwinConfig(window_size=int(match[2]), **size)
    if match := re.fullmatch(r"microsoft/resnet-(\d{1,9})", name):
        layers = int(match[1])
        if layers not in _RESNET_DEPTHS:
            return None
        if layers < 50:
            return ResNetConfig(depths=_RESNET_DEPTHS[layers], layer_type="basic", hidden_sizes=(64, 128, 256, 512))
        return ResNetConfig(depths=_RESNET_DEPTHS[layers])
    return None


def read_backbone(json_dict: Mapping[str, Any]) -> dict[str, BackboneConfig]:
    """The `backbone_config` entry as a keyword argument; empty if the file has no such entry."""
    backbone = json_dict.get("backbone_config")
    if backbone is None:
        return _named_backbone(json_dict)
    if not isinstance(backbone, Mapping):
        raise ConfigError(f"backbone_config must be an object, not a {type(backbone).__name__}")
    model_type = backbone.get("model_type")
    if not isinstance(model_type, str) or model_type not in BACKBONES:
        raise ConfigError(
            f"backbone_config.model_type must be one of {', '.join(BACKBONES)}, not {excerpt(model_type)}"
        )
    return {"backbone_config": BACKBONES[model_type].from_dict(backbone)}


def _named_backbone(json_dict: Mapping[str, Any]) -> dict[str, BackboneConfig]:
    """The backbone of older files that give its name, as a keyword argument; empty if the file gives none."""
    name = json_dict.get("backbone")
    if name is None:
        return {}
    found = None if json_dict.get("use_timm_backbone") else backbone_by_name(str(name))
    if found is None:
        raise ConfigError(
            f"backbone {excerpt(name)} is given by name, and only microsoft/swin-... and microsoft/resnet-... are "
            "known; write out its backbone_config"
        )
    return {"backbone_config": found}


def _check_rgb(num_channels: object) -> None:
    if isinstance(num_channels, bool) or num_channels != 3:
        raise ConfigError(f"num_channels must be 3 (RGB), not {excerpt(num_channels)}")


def _check_outputs(json_dict: Mapping[str, Any]) -> None:
    if json_dict.get("out_features") not in (None, list(STAGES)):
        raise ConfigError(f"out_features must be {list(STAGES)}, not {excerpt(json_dict['out_features'])}")


def _json_fields(config: BackboneConfig) -> dict[str, Any]:
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {**own, "out_features": list(STAGES), "out_indices": [1, 2, 3, 4]}


# Every kind of layer, including a shifted window: for tests and demonstrations.
SMALLEST_SWIN = SwinConfig(embed_dim=32, depths=(1, 2, 1, 1), num_heads=(2, 2, 4, 4), drop_path_rate=0.0)
