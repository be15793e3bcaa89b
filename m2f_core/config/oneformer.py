"""The configuration of a OneFormer: every number of the architecture, checked.

Field names equal those of a Hugging Face `config.json`. This class leaves out the fields of the loss and of the text
mapper, which only a training reads. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from m2f_core.config.backbones import SMALLEST_SWIN, BackboneConfig, paper_swin, read_backbone
from m2f_core.config.class_names import check_id2label, numbered_labels, read_id2label
from m2f_core.config.fields import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_PATCH_SIZE,
    MAX_QUERIES,
    MAX_WIDTH,
    ConfigError,
    check_booleans,
    check_count_tuple,
    check_counts,
    check_divisible,
    check_numbers,
    excerpt,
    known_fields,
)
from m2f_core.config.labels import Task
from m2f_core.config.mask2former import GROUP_NORM_GROUPS, LEGACY_NAMES

# "the task is panoptic" and so on as CLIP's tokenizer numbers them, start and end included; zeros follow up to
# `task_seq_len`. transformers' OneFormerProcessor multiplies the tokenizer's padding by its attention mask, and the
# authors' Tokenize (SHI-Labs/OneFormer, oneformer/data/tokenizer.py) pads with zeros: the same numbers. They were
# derived with the merges that the authors ship, bpe_simple_vocab_16e6.txt.gz (sha256 924691ac...6804a).
TASK_TOKENS: dict[Task, tuple[int, ...]] = {
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),  # the task is pan|optic
    "instance": (49406, 518, 10549, 533, 34572, 49407),  # the task is instance
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),  # the task is seman|tic
}
MOST_TASK_TOKENS = max(map(len, TASK_TOKENS.values()))


@dataclass(frozen=True)
class OneFormerConfig:
    """The whole model, as it is at inference.

    `decoder_layers` counts predictions: 10 means 9 layers and one prediction before the first layer. The last of the
    `num_queries` queries is the task. `query_dec_layers` are the layers of the query transformer.
    """

    backbone_config: BackboneConfig = field(default_factory=lambda: paper_swin("tiny"))
    conv_dim: int = 256
    mask_dim: int = 256
    hidden_dim: int = 256
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    query_dec_layers: int = 2
    pre_norm: bool = False
    enforce_input_proj: bool = False
    use_task_norm: bool = True
    layer_norm_eps: float = 1e-5
    norm: str = "GN"
    common_stride: int = 4
    strides: tuple[int, ...] = (4, 8, 16, 32)
    num_queries: int = 150
    task_seq_len: int = 77
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2), hash=False)

    def __post_init__(self) -> None:
        widths = ("conv_dim", "mask_dim", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward", "task_seq_len")
        check_counts(self, widths, MAX_WIDTH)
        check_counts(self, ("encoder_layers", "query_dec_layers"), MAX_LAYERS)
        check_counts(self, ("decoder_layers",), MAX_LAYERS + 1)
        check_counts(self, ("num_attention_heads",), MAX_HEADS)
        check_counts(self, ("common_stride",), MAX_PATCH_SIZE)
        check_counts(self, ("num_queries",), MAX_QUERIES)
        check_booleans(self, ("pre_norm", "enforce_input_proj", "use_task_norm"))
        check_numbers(self, ("layer_norm_eps",), least=1e-30, most=1)
        check_count_tuple(self, "strides", 4, 8 * MAX_PATCH_SIZE)
        check_divisible("hidden_dim", self.hidden_dim, "num_attention_heads", self.num_attention_heads)
        check_divisible("hidden_dim", self.hidden_dim, "the four parts of a 2D sine code", 4)
        check_divisible("hidden_dim", self.hidden_dim, "the groups of its GroupNorm", GROUP_NORM_GROUPS)
        self._check_constants()
        if self.num_queries < 2:
            raise ConfigError("num_queries must be at least 2, because the last query is the task, not 1")
        if self.task_seq_len < MOST_TASK_TOKENS:
            raise ConfigError(f"task_seq_len must be at least {MOST_TASK_TOKENS}, not {self.task_seq_len}")
        check_id2label(self.id2label)

    def _check_constants(self) -> None:
        """Values that no checkpoint has otherwise; transformers has no weights for other ones, or fails."""
        for name in ("conv_dim", "mask_dim"):
            if getattr(self, name) != self.hidden_dim:
                raise ConfigError(f"{name} must be hidden_dim = {self.hidden_dim}, not {getattr(self, name)}")
        if self.enforce_input_proj:
            raise ConfigError("enforce_input_proj=true is not supported: a checkpoint holds no weights for it")
        if self.norm != "GN":
            raise ConfigError(f'norm must be "GN", not {excerpt(self.norm)}')
        if self.strides != self.backbone_config.feature_strides:
            raise ConfigError(
                f"strides must be the backbone's {list(self.backbone_config.feature_strides)}, not {list(self.strides)}"
            )
        if self.common_stride != self.strides[0]:
            raise ConfigError(f"common_stride must be {self.strides[0]}, not {self.common_stride}")

    @property
    def num_labels(self) -> int:
        """Number of classes, the "no object" class not counted."""
        return len(self.id2label)

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> OneFormerConfig:
        """Read a Hugging Face config.json. Unknown keys are ignored; missing keys get transformers' defaults."""
        backbone = json_dict.get("backbone_config")
        if isinstance(backbone, Mapping) and backbone.get("model_type") == "dinat":
            raise ConfigError(
                'backbone_config.model_type "dinat": a OneFormer with a DiNAT backbone is not supported, '
                "only Swin and ResNet; take a checkpoint whose name says swin"
            )
        legacy = {name: json_dict[old] for old, name in LEGACY_NAMES.items() if old in json_dict}
        known = known_fields(cls, {**legacy, **json_dict})
        known.pop("backbone_config", None)
        return cls(**{**known, **read_backbone(json_dict), "id2label": read_id2label(json_dict)})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers can read and from which `from_dict` restores this configuration."""
        return {
            "architectures": ["OneFormerForUniversalSegmentation"],
            "model_type": "oneformer",
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "layer_norm_eps": float(self.layer_norm_eps),  # transformers refuses a whole number in a float field
            "is_training": False,  # without the text mapper, whose weights we do not have
            "backbone_config": self.backbone_config.to_dict(),
            "strides": list(self.strides),
            "id2label": {str(class_id): name for class_id, name in self.id2label.items()},
            "label2id": {name: class_id for class_id, name in self.id2label.items()},
        }

    @classmethod
    def tiny(
        cls, num_labels: int = 8, id2label: dict[int, str] | None = None, num_queries: int = 20
    ) -> OneFormerConfig:
        """Every kind of layer, including a shifted window, with 1.7 M parameters: for tests."""
        return cls(
            backbone_config=SMALLEST_SWIN,
            conv_dim=64,
            mask_dim=64,
            hidden_dim=64,
            encoder_layers=2,
            encoder_feedforward_dim=128,
            decoder_layers=4,
            num_attention_heads=4,
            dim_feedforward=128,
            num_queries=num_queries,
            id2label=id2label or numbered_labels(num_labels),
        )
