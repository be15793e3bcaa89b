"""The outputs of the documented classes: read by attribute, by key, or by position like a tuple."""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ModelOutput(OrderedDict[str, Any]):
    """The base of outputs: a dataclass whose fields other than None are also entries of a dictionary, in their order.

    `output.loss`, `output["loss"]` and `output[0]` are the same value, if a loss was computed.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in their order."""
        return tuple(self.values())


@dataclass
class Mask2FormerModelOutput(ModelOutput):
    """The output of `Mask2FormerModel`.

    B batch, Q queries, D `hidden_dim`, C channels, h w cells of a map, L predictions (`decoder_layers`).

    encoder_last_hidden_state: the backbone's last map [B, C, h, w], at stride 32.
    pixel_decoder_last_hidden_state: the mask features [B, C, h, w], at stride 4.
    transformer_decoder_last_hidden_state: the queries after the last layer [B, Q, D].
    transformer_decoder_intermediate_states: L normalised states [Q, B, D], which a class head reads.
    masks_queries_logits: L mask predictions [B, Q, h, w], at stride 4.

    With `output_hidden_states`: encoder_hidden_states, the backbone's four maps from fine to coarse;
    pixel_decoder_hidden_states, the three refined maps from coarse to fine; transformer_decoder_hidden_states, L states
    [Q, B, D], of which the first are the learned queries. With `output_attentions`: attentions, the self-attention of
    the L - 1 layers, [B, num_attention_heads, Q, Q].
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    masks_queries_logits: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Mask2FormerForUniversalSegmentationOutput(ModelOutput):
    """The output of `Mask2FormerForUniversalSegmentation`; fields without a line here as in `Mask2FormerModelOutput`.

    loss: the sum of all losses, if labels were given.
    class_queries_logits: [B, Q, num_labels + 1], the last one for "no object".
    masks_queries_logits: the last prediction [B, Q, h, w], at stride 4.
    auxiliary_logits: with `output_auxiliary_logits`, the earlier predictions, as dicts with the two names above.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SemanticSegmentationOutput(ModelOutput):
    """segmentation: class ids [H, W], int64; segmentation_scores: [num_labels, H, W]."""

    segmentation: Tensor | None = None
    segmentation_scores: Tensor | None = None


for _output in (Mask2FormerModelOutput, Mask2FormerForUniversalSegmentationOutput):
    # With this, torch.export can flatten and rebuild the output, also after saving to a file.
    torch.export.register_dataclass(_output, serialized_type_name=f"m2f_core.{_output.__name__}")


class BatchFeature(dict[str, Any]):
    """The output of the image processor: a dictionary whose entries are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to(self, *args: Any, **kwargs: Any) -> "BatchFeature":
        """Move all tensors, also those in lists, as `Tensor.to`; a floating-point type applies to such tensors only."""

        def move(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(move, value))
            if not isinstance(value, Tensor):
                return value
            types = [given for given in (*args, *kwargs.values()) if isinstance(given, torch.dtype)]
            if value.is_floating_point() or not types:
                return value.to(*args, **kwargs)
            others = {name: given for name, given in kwargs.items() if not isinstance(given, torch.dtype)}
            return value.to(*(given for given in args if not isinstance(given, torch.dtype)), **others)

        moved = {name: move(value) for name, value in self.items()}
        self.update(moved)
        return self


def as_tensors(arrays: list[np.ndarray], return_tensors: str | None, name: str) -> Any:
    """Arrays of one batch as `return_tensors` asks: one tensor ("pt"), one array ("np"), or as they are (None).

    ValueError if they do not have one shape, or for another `return_tensors`.
    """
    if return_tensors is None:
        return arrays
    if return_tensors not in ("pt", "np"):
        raise ValueError(f"return_tensors must be 'pt' or 'np', not {return_tensors!r}")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"{name} cannot be one tensor: its images have the shapes {sorted(shapes)}")
    stacked = np.stack(arrays)
    return torch.from_numpy(stacked) if return_tensors == "pt" else stacked
