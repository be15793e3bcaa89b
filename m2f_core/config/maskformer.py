"""The configuration of a MaskFormer: every number of the architecture, checked.

Field names equal those of a Hugging Face `config.json`. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from m2f_core.config.backbones import SMALLEST_SWIN, BackboneConfig, ResNetConfig, paper_swin, read_backbone
from m2f_core.config.class_names import check_id2label, numbered_labels, read_id2label
from m2f_core.config.fields import (
    MAX_HEADS,
    MAX_LAYERS,
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
from m2f_core.config.mask2former import GROUP_NORM_GROUPS

# Other names under which transformers has written, and still reads, the same field.
LEGACY_NAMES = {"hidden_size": "mask_feature_size"}
LEGACY_DECODER_NAMES = {"hidden_size": "d_model"}

LOSS_WEIGHTS = ("cross_entropy_weight", "mask_weight", "dice_weight")
FLOATS = (*LOSS_WEIGHTS, "no_object_weight", "init_std", "init_xavier_std")


@dataclass(frozen=True)
class DetrDecoderConfig:
    """The `decoder_config` of a MaskFormer: a DETR, of which only the decoder is used.

    `dropout` is the share that training drops of what each part of a layer adds, `attention_dropout` of the weights of
    both attentions, `activation_dropout` between the linear layers.
    """

    d_model: int = 256
    num_queries: int = 100
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, ("d_model", "decoder_ffn_dim"), MAX_WIDTH)
        check_counts(self, ("num_queries",), MAX_QUERIES)
        check_counts(self, ("decoder_layers",), MAX_LAYERS)
        check_counts(self, ("decoder_attention_heads",), MAX_HEADS)
        check_divisible("d_model", self.d_model, "decoder_attention_heads", self.decoder_attention_heads)
        check_divisible("d_model", self.d_model, "the four parts of a 2D sine code", 4)
        check_activation(self, "activation_function")
        check_numbers(self, ("dropout", "attention_dropout", "activation_dropout"), most=1)

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> DetrDecoderConfig:
        """Read the `decoder_config` of a Hugging Face config.json."""
        model_type = json_dict.get("model_type", "detr")
        if model_type != "detr":
            raise ConfigError(f'decoder_config.model_type must be "detr", not {excerpt(model_type)}')
        if json_dict.get("auxiliary_loss"):
            raise ConfigError(
                "decoder_config.auxiliary_loss=true is not supported: it normalises what each layer reads; for a loss "
                "of every layer set use_auxiliary_loss"
            )
        legacy = {name: json_dict[old] for old, name in LEGACY_DECODER_NAMES.items() if old in json_dict}
        return cls(**known_fields(cls, {**legacy, **json_dict}))

    def to_dict(self) -> dict[str, Any]:
        """A `decoder_config` that transformers can read; its DETR has a backbone that MaskFormer does not build."""
        return {"model_type": "detr", **asdict(self), "use_timm_backbone": False}


ORIGINAL_DECODER = DetrDecoderConfig(attention_dropout=0.1, activation_dropout=0.1)


@dataclass(frozen=True)
class MaskFormerConfig:
    """The whole model and its loss.

    `use_auxiliary_loss` turns on the loss of the predictions after every layer, not only the last;
    `output_auxiliary_logits` adds the earlier predictions to the model's output. `init_xavier_std` scales the initial
    weights. `init_std` is kept for transformers: it sets the initial scale of batch norms, which are frozen here.
    """

    backbone_config: BackboneConfig = field(default_factory=lambda: paper_swin("base"))
    decoder_config: DetrDecoderConfig = field(default_factory=DetrDecoderConfig)
    fpn_feature_size: int = 256
    mask_feature_size: int = 256
    no_object_weight: float = 0.1
    cross_entropy_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    use_auxiliary_loss: bool = False
    output_auxiliary_logits: bool | None = None
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2), hash=False)

    def __post_init__(self) -> None:
        check_counts(self, ("fpn_feature_size", "mask_feature_size"), MAX_WIDTH)
        check_divisible("fpn_feature_size", self.fpn_feature_size, "the groups of its GroupNorm", GROUP_NORM_GROUPS)
        check_booleans(self, ("use_auxiliary_loss",))
        if self.output_auxiliary_logits is not None:
            check_booleans(self, ("output_auxiliary_logits",))
        check_numbers(self, FLOATS)
        if not any(getattr(self, name) for name in LOSS_WEIGHTS):
            raise ConfigError(f"{', '.join(LOSS_WEIGHTS)} must not all be 0, because the loss would be 0")
        check_id2label(self.id2label)

    @property
    def num_labels(self) -> int:
        """Number of classes, the "no object" class not counted."""
        return len(self.id2label)

    @property
    def num_queries(self) -> int:
        return self.decoder_config.num_queries

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> MaskFormerConfig:
        """Read a Hugging Face config.json. Unknown keys are ignored; missing keys get transformers' defaults."""
        model_type = json_dict.get("model_type")
        if model_type != "maskformer":
            raise ConfigError(
                f'model_type must be "maskformer", not {excerpt(model_type)}: this is another architecture'
            )
        decoder = json_dict.get("decoder_config")
        if decoder is not None and not isinstance(decoder, Mapping):
            raise ConfigError(f"decoder_config must be an object, not a {type(decoder).__name__}")
        legacy = {name: json_dict[old] for old, name in LEGACY_NAMES.items() if old in json_dict}
        known = known_fields(cls, {**legacy, **json_dict})
        known.pop("backbone_config", None)
        known["decoder_config"] = DetrDecoderConfig.from_dict(decoder or {})
        return cls(**{**known, **read_backbone(json_dict), "id2label": read_id2label(json_dict)})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers can read and from which `from_dict` restores this configuration."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        # transformers refuses a whole number in a float field.
        own |= {name: float(own[name]) for name in FLOATS}
        return {
            "architectures": ["MaskFormerForInstanceSegmentation"],
            "model_type": "maskformer",
            **own,
            "backbone_config": self.backbone_config.to_dict(),
            "decoder_config": self.decoder_config.to_dict(),
            # Without hidden states, transformers raises TypeError where the auxiliary loss is on.
            **({"output_hidden_states": True} if self.use_auxiliary_loss else {}),
            "id2label": {str(class_id): name for class_id, name in self.id2label.items()},
            "label2id": {name: class_id for class_id, name in self.id2label.items()},
        }

    @classmethod
    def swin_tiny(cls, num_labels: int = 133, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        return cls._published(paper_swin("tiny"), num_labels, id2label)

    @classmethod
    def swin_small(cls, num_labels: int = 133, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        backbone = paper_swin("small")
        return cls._published(backbone, num_labels, id2label)

    @classmethod
    def swin_base(cls, num_labels: int = 133, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        return cls._published(paper_swin("base"), num_labels, id2label)

    @classmethod
    def swin_large(cls, num_labels: int = 133, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        backbone = paper_swin("large")
        return cls._published(backbone, num_labels, id2label)

    @classmethod
    def resnet50(cls, num_labels: int = 150, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        return cls._published(ResNetConfig(), num_labels, id2label)

    @classmethod
    def resnet101(cls, num_labels: int = 150, id2label: dict[int, str] | None = None) -> MaskFormerConfig:
        return cls._published(ResNetConfig(depths=(3, 4, 23, 3)), num_labels, id2label)

    @classmethod
    def tiny(
        cls, num_labels: int = 8, id2label: dict[int, str] | None = None, num_queries: int = 20, **others: Any
    ) -> MaskFormerConfig:
        """Every kind of layer, including a shifted window, for tests. `others` do not change the architecture."""
        return cls(
            backbone_config=SMALLEST_SWIN,
            decoder_config=DetrDecoderConfig(
                d_model=64, num_queries=num_queries, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=128
            ),
            fpn_feature_size=64,
            mask_feature_size=64,
            id2label=id2label or numbered_labels(num_labels),
            **others,
        )

    @classmethod
    def _published(cls, backbone: BackboneConfig, num_labels: int, id2label: dict[int, str] | None) -> MaskFormerConfig:
        """As in the original's configurations: the loss of every layer, and a tenth dropped in each place.

        The hub's files have neither; both matter in training only.
        """
        return cls(
            backbone_config=backbone,
            decoder_config=ORIGINAL_DECODER,
            use_auxiliary_loss=True,
            id2label=id2label or numbered_labels(num_labels),
        )
