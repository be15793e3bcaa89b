"""The configuration of a Mask2Former: every number of the architecture, checked.

Field names equal those of a Hugging Face `config.json`, so that a checkpoint's file and this class can be compared.
This module does not import torch, so that the driver of a run reads a checkpoint's configuration quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from m2f_core.config.backbones import SMALLEST_SWIN, BackboneConfig, paper_swin, read_backbone
from m2f_core.config.backbones import ResNetConfig as ResNetConfig
from m2f_core.config.backbones import SwinConfig as SwinConfig
from m2f_core.config.class_names import check_id2label, numbered_labels, read_id2label
from m2f_core.config.fields import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_NUMBER,
    MAX_PATCH_SIZE,
    MAX_POINTS,
    MAX_QUERIES,
    MAX_WIDTH,
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

GROUP_NORM_GROUPS = 32  # in the pixel decoder; a constant of the architecture, not a field

# Other names under which transformers has written, and still reads, the same field.
LEGACY_NAMES = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}

LOSS_WEIGHTS = ("class_weight", "mask_weight", "dice_weight")
FLOATS = (
    *LOSS_WEIGHTS,
    "no_object_weight",
    "oversample_ratio",
    "importance_sample_ratio",
    "init_std",
    "init_xavier_std",
)


@dataclass(frozen=True)
class Mask2FormerConfig:
    """The whole model and its loss.

    `decoder_layers` counts predictions: 10 means 9 layers and one prediction before the first layer.
    `use_auxiliary_loss` turns on the loss of all predictions; `output_auxiliary_logits` adds the earlier predictions to
    the model's output.

    `dropout` is the share of activations and attention weights that training drops in the layers of both decoders (0 in
    the original). `init_xavier_std` scales the initial weights of the transformer decoder's layers and input
    projections. `ignore_value` and `init_std` are kept for transformers, which does not read the first; the second sets
    the initial scale of batch norms, which are frozen here.
    """

    backbone_config: BackboneConfig = field(default_factory=lambda: paper_swin("small"))
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    common_stride: int = 4
    feature_strides: tuple[int, ...] = (4, 8, 16, 32)
    num_queries: int = 100
    activation_function: str = "relu"
    dropout: float = 0.0
    ignore_value: int = 255
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    use_auxiliary_loss: bool = True
    output_auxiliary_logits: bool | None = None
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2), hash=False)

    def __post_init__(self) -> None:
        check_counts(self, ("feature_size", "mask_feature_size", "hidden_dim"), MAX_WIDTH)
        check_counts(self, ("encoder_feedforward_dim", "dim_feedforward"), MAX_WIDTH)
        check_counts(self, ("encoder_layers",), MAX_LAYERS)
        check_counts(self, ("decoder_layers",), MAX_LAYERS + 1)
        check_counts(self, ("num_attention_heads",), MAX_HEADS)
        check_counts(self, ("common_stride",), MAX_PATCH_SIZE)
        check_counts(self, ("num_queries",), MAX_QUERIES)
        check_booleans(self, ("pre_norm", "enforce_input_projection"))
        check_count_tuple(self, "feature_strides", 4, 8 * MAX_PATCH_SIZE)
        for name in ("feature_size", "hidden_dim"):
            check_divisible(name, getattr(self, name), "num_attention_heads", self.num_attention_heads)
            check_divisible(name, getattr(self, name), "the four parts of a 2D sine code", 4)
        check_divisible("feature_size", self.feature_size, "the groups of its GroupNorm", GROUP_NORM_GROUPS)
        if self.feature_strides != self.backbone_config.feature_strides:
            raise ConfigError(
                f"feature_strides must be the backbone's {list(self.backbone_config.feature_strides)}, "
                f"not {list(self.feature_strides)}"
            )
        # Any other value would need another number of FPN levels; the original has exactly one level.
        if self.common_stride != self.feature_strides[0]:
            raise ConfigError(f"common_stride must be {self.feature_strides[0]}, not {self.common_stride}")
        check_activation(self, "activation_function")
        self._check_training()
        check_id2label(self.id2label)

    def _check_training(self) -> None:
        check_counts(self, ("train_num_points",), MAX_POINTS)
        check_booleans(self, ("use_auxiliary_loss",))
        if self.output_auxiliary_logits is not None:
            check_booleans(self, ("output_auxiliary_logits",))
        check_numbers(self, ("ignore_value",), least=-MAX_NUMBER)
        if not isinstance(self.ignore_value, int):
            raise ConfigError(f"ignore_value must be a whole number, not {self.ignore_value!r}")
        check_numbers(self, (*LOSS_WEIGHTS, "no_object_weight", "init_std", "init_xavier_std"))
        check_numbers(self, ("oversample_ratio",), least=1)
        check_numbers(self, ("importance_sample_ratio", "dropout"), most=1)
        if not any(getattr(self, name) for name in LOSS_WEIGHTS):
            raise ConfigError(f"{', '.join(LOSS_WEIGHTS)} must not all be 0, because the loss would be 0")

    @property
    def num_labels(self) -> int:
        """Number of classes, the "no object" class not counted."""
        return len(self.id2label)

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> Mask2FormerConfig:
        """Read a Hugging Face config.json. Unknown keys are ignored; missing keys get transformers' defaults."""
        model_type = json_dict.get("model_type")
        if model_type != "mask2former":
            raise ConfigError(
                f'model_type must be "mask2former", not {excerpt(model_type)}: this is another architecture'
            )
        legacy = {name: json_dict[old] for old, name in LEGACY_NAMES.items() if old in json_dict}
        known = known_fields(cls, {**legacy, **json_dict})
        known.pop("backbone_config", None)
        return cls(**{**known, **read_backbone(json_dict), "id2label": read_id2label(json_dict)})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers can read and from which `from_dict` restores this configuration."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        # transformers refuses a whole number in a float field.
        own |= {name: float(own[name]) for name in FLOATS}
        return {
            "architectures": ["Mask2FormerForUniversalSegmentation"],
            "model_type": "mask2former",
            **own,
            "backbone_config": self.backbone_config.to_dict(),
            "feature_strides": list(self.feature_strides),
            "id2label": {str(class_id): name for class_id, name in self.id2label.items()},
            "label2id": {name: class_id for class_id, name in self.id2label.items()},
        }

    @classmethod
    def swin_tiny(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 100
    ) -> Mask2FormerConfig:
        """47.4 M parameters with 133 classes."""
        return cls._published(paper_swin("tiny"), num_labels, id2label, num_queries)

    @classmethod
    def swin_small(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 100
    ) -> Mask2FormerConfig:
        """68.8 M parameters with 133 classes."""
        backbone = paper_swin("small")
        return cls._published(backbone, num_labels, id2label, num_queries)

    @classmethod
    def swin_base(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 100
    ) -> Mask2FormerConfig:
        """106.9 M parameters with 133 classes; the published models were pre-trained at 384 pixels, hence window 12."""
        backbone = paper_swin("base")
        return cls._published(backbone, num_labels, id2label, num_queries)

    @classmethod
    def swin_large(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 200
    ) -> Mask2FormerConfig:
        """215.5 M parameters with 133 classes; most published models have 200 queries."""
        backbone = paper_swin("large")
        return cls._published(backbone, num_labels, id2label, num_queries)

    @classmethod
    def resnet50(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 100
    ) -> Mask2FormerConfig:
        """44.0 M parameters with 133 classes, frozen batch norms included."""
        return cls._published(ResNetConfig(), num_labels, id2label, num_queries)

    @classmethod
    def resnet101(
        cls, num_labels: int = 133, id2label: dict[int, str] | None = None, num_queries: int = 100
    ) -> Mask2FormerConfig:
        """63.0 M parameters with 133 classes, frozen batch norms included."""
        return cls._published(ResNetConfig(depths=(3, 4, 23, 3)), num_labels, id2label, num_queries)

    @classmethod
    def tiny(
        cls, num_labels: int = 8, id2label: dict[int, str] | None = None, num_queries: int = 20, **others: Any
    ) -> Mask2FormerConfig:
        """Every kind of layer, including a shifted window, with 1.6 M parameters: for tests and demonstrations.

        `others` are fields that do not change the architecture, such as `train_num_points`.
        """
        return cls(
            backbone_config=SMALLEST_SWIN,
            feature_size=64,
            mask_feature_size=64,
            hidden_dim=64,
            encoder_layers=2,
            encoder_feedforward_dim=128,
            decoder_layers=4,
            num_attention_heads=4,
            dim_feedforward=128,
            num_queries=num_queries,
            id2label=id2label or numbered_labels(num_labels),
            **others,
        )

    @classmethod
    def _published(
        cls, backbone: BackboneConfig, num_labels: int, id2label: dict[int, str] | None, num_queries: int
    ) -> Mask2FormerConfig:
        return cls(backbone_config=backbone, num_queries=num_queries, id2label=id2label or numbered_labels(num_labels))
