"""The configuration of an EoMT on a DINOv3: every number of the architecture, checked.

Field names equal those of a Hugging Face `config.json`, except `rope_theta`, which lies in its `rope_parameters`. This
module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from m2f_core.config.class_names import read_id2label
from m2f_core.config.eomt import PlainTransformerConfig
from m2f_core.config.fields import (
    MAX_WIDTH,
    ConfigError,
    check_booleans,
    check_counts,
    check_divisible,
    check_numbers,
    excerpt,
    known_fields,
)

BIASES = ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias")
_AUGMENTATIONS = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


@dataclass(frozen=True, kw_only=True)
class EomtDinov3Config(PlainTransformerConfig):
    """EoMT on a DINOv3: queries and keys of attention are turned by the place of their patch (rotary positions).

    `rope_theta`: the slowest of the turns. `pos_embed_shift`, `..._jitter` and `..._rescale`: how far training shifts
    and stretches the places at random.
    """

    MODEL_TYPE = "eomt_dinov3"
    ARCHITECTURE = "EomtDinov3ForUniversalSegmentation"

    intermediate_size: int = 4096
    use_gated_mlp: bool = False
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    rope_theta: float = 100.0
    pos_embed_shift: float | None = None
    pos_embed_jitter: float | None = None
    pos_embed_rescale: float | None = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, ("intermediate_size",), MAX_WIDTH)
        check_booleans(self, ("use_gated_mlp", *BIASES))
        check_numbers(self, ("rope_theta",), least=1)
        check_numbers(self, tuple(name for name in _AUGMENTATIONS if getattr(self, name) is not None))
        for name in ("pos_embed_jitter", "pos_embed_rescale"):
            if getattr(self, name) is not None:
                check_numbers(self, (name,), least=1)
        head = self.hidden_size // self.num_attention_heads
        check_divisible("hidden_size / num_attention_heads", head, "the four parts of a place in two dimensions", 4)

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @classmethod
    def published(cls, size: str, **fields: Any) -> EomtDinov3Config:
        """The sizes of the authors' models for COCO panoptic: configs/dinov3/coco/panoptic of their code."""
        width, layers, heads, blocks = {
            "small": (384, 12, 6, 3),
            "base": (768, 12, 12, 3),
            "large": (1024, 24, 16, 4),
        }[size]
        return cls(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_blocks=blocks,
            **fields,
        )

    @classmethod
    def from_dict(cls, json_dict: Mapping[str, Any]) -> Self:
        rope = json_dict.get("rope_parameters") or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
            raise ConfigError(f'rope_parameters.rope_type must be "default", as in transformers, not {excerpt(rope)}')
        theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        # Without a value, places stay; without the field, transformers' default holds.
        given = {name: json_dict[name] for name in _AUGMENTATIONS if name in json_dict}
        known = known_fields(cls, {**json_dict, **theta})
        return cls(**{**known, **given, "id2label": read_id2label(json_dict)})

    def to_dict(self) -> dict[str, Any]:
        own = super().to_dict()
        own |= {name: float(own[name]) for name in _AUGMENTATIONS if own[name] is not None}
        return own | {"rope_parameters": {"rope_type": "default", "rope_theta": float(own.pop("rope_theta"))}}
