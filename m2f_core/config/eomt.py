"""The configuration of an EoMT: every number of the architecture, checked.

Field names equal those of a Hugging Face `config.json`. This module does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from m2f_core.config.class_names import check_id2label, numbered_labels, read_id2label
from m2f_core.config.fields import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_PATCH_SIZE,
    MAX_POINTS,
    MAX_QUERIES,
    MAX_WIDTH,
    ConfigError,
    check_activation,
    check_booleans,
    check_counts,
    check_divisible,
    check_numbers,
    excerpt,
    known_fields,
)

MAX_IMAGE_SIZE = 4_096  # (1,280) pixels of a side; the masks of all queries have a 16th of the square of it, each
MAX_UPSCALE_BLOCKS = 4  # (2); each doubles the sides of the masks
MAX_REGISTER_TOKENS = 256  # (4)
MAX_MLP_RATIO = 64  # (4)

LOSS_WEIGHTS = ("class_weight", "mask_weight", "dice_weight")
_RATES = ("importance_sample_ratio", "hidden_dropout_prob", "attention_dropout", "drop_path_rate")
_FLOATS = (
    *LOSS_WEIGHTS,
    *_RATES,
    "layer_norm_eps",
    "layerscale_value",
    "no_object_weight",
    "oversample_ratio",
    "initializer_range",
)


@dataclass(frozen=True, kw_only=True)
class PlainTransformerConfig(ABC):
    """A plain vision transformer whose last `num_blocks` blocks also read the queries. `EomtConfig` and
    `EomtDinov3Config` say how a patch gets its position.

    `image_size` is the side of the square that the model takes: its positions are learned for the patches of that
    square, so a model takes no other size. `layerscale_value` and `initializer_range` set initial weights. The rates of
    dropping are kept for transformers: a model with such a rate is not trained here.
    """

    MODEL_TYPE: ClassVar[str]
    ARCHITECTURE: ClassVar[str]  # transformers' class

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 640
    patch_size: int = 16
    num_channels: int = 3
    num_register_tokens: int = 4
    num_blocks: int = 4
    num_upscale_blocks: int = 2
    num_queries: int = 200
    layerscale_value: float = 1.0
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2), hash=False)

    def __post_init__(self) -> None:
        check_counts(self, ("hidden_size",), MAX_WIDTH)
        check_counts(self, ("num_hidden_layers",), MAX_LAYERS)
        check_counts(self, ("num_attention_heads",), MAX_HEADS)
        check_activation(self, "hidden_act")
        check_numbers(self, ("layer_norm_eps",), least=1e-12, most=1)
        check_counts(self, ("image_size",), MAX_IMAGE_SIZE)
        check_counts(self, ("patch_size",), MAX_PATCH_SIZE)
        check_counts(self, ("num_upscale_blocks",), MAX_UPSCALE_BLOCKS)
        check_counts(self, ("num_queries",), MAX_QUERIES)
        check_counts(self, ("num_blocks",), self.num_hidden_layers)
        tokens = self.num_register_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= MAX_REGISTER_TOKENS:
            raise ConfigError(
                f"num_register_tokens must be a whole number from 0 to {MAX_REGISTER_TOKENS}, not {excerpt(tokens)}"
            )
        if self.num_channels != 3 or isinstance(self.num_channels, bool):
            raise ConfigError(f"num_channels must be 3 (red, green, blue), not {excerpt(self.num_channels)}")
        check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        check_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        if self.mask_side > MAX_IMAGE_SIZE:
            raise ConfigError(
                f"image_size {self.image_size}, patch_size {self.patch_size} and num_upscale_blocks "
                f"{self.num_upscale_blocks} give masks of {self.mask_side} cells a side, more than {MAX_IMAGE_SIZE}"
            )
        self._check_training()
        check_id2label(self.id2label)

    def _check_training(self) -> None:
        check_counts(self, ("train_num_points",), MAX_POINTS)
        check_numbers(self, (*LOSS_WEIGHTS, "no_object_weight", "initializer_range", "layerscale_value"))
        check_numbers(self, ("oversample_ratio",), least=1)
        check_numbers(self, _RATES, most=1)

    @property
    def num_labels(self) -> int:
        """Number of classes, the "no object" class not counted."""
        return len(self.id2label)

    @property
    def grid_side(self) -> int:
        """Patches along each side of the image."""
        return self.image_size // self.patch_size

    @property
    def mask_side(self) -> int:
        """Cells along each side of a mask."""
        return self.grid_side << self.num_upscale_blocks

    @property
    @abstractmethod
    def mlp_width(self) -> int:
        """Hidden channels of a block's feed-forward part."""

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> Self:
        """Read a Hugging Face config.json. Unknown keys are ignored; missing keys get transformers' defaults."""
        return cls(**{**known_fields(cls, json_dict), "id2label": read_id2label(json_dict)})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers can read and from which `from_dict` restores this configuration."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        # transformers refuses a whole number in a float field.
        own |= {name: float(own[name]) for name in _FLOATS}
        return {
            "architectures": [self.ARCHITECTURE],
            "model_type": self.MODEL_TYPE,
            **own,
            "id2label": {str(class_id): name for class_id, name in self.id2label.items()},
            "label2id": {name: class_id for class_id, name in self.id2label.items()},
        }


@dataclass(frozen=True, kw_only=True)
class EomtConfig(PlainTransformerConfig):
    """EoMT, a DINOv2: positions are learned and added to the patches."""

    MODEL_TYPE = "eomt"
    ARCHITECTURE = "EomtForUniversalSegmentation"

    mlp_ratio: int = 4
    use_swiglu_ffn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, ("mlp_ratio",), MAX_MLP_RATIO)
        check_booleans(self, ("use_swiglu_ffn",))
        if self.hidden_size * self.mlp_ratio > MAX_WIDTH:
            raise ConfigError(f"hidden_size x mlp_ratio must be at most {MAX_WIDTH}, not {self.mlp_width}")

    @property
    def mlp_width(self) -> int:
        """A SwiGLU has two thirds of the channels, rounded up to a multiple of 8."""
        width = self.hidden_size * self.mlp_ratio
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    @classmethod
    def published(cls, size: str, **fields: Any) -> EomtConfig:
        """The sizes of the authors' models for COCO panoptic: configs/dinov2/coco/panoptic of their code."""
        width, layers, heads, blocks = {
            "small": (384, 12, 6, 3),
            "base": (768, 12, 12, 3),
            "large": (1024, 24, 16, 4),
            "giant": (1536, 40, 24, 5),
        }[size]
        return cls(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_blocks=blocks,
            use_swiglu_ffn=size == "giant",
            **fields,
        )
