"""What a model of any family gives, and what its users may ask of it.

Legend: B batch, Q query, K classes, D width of a query, H W pixels of the normalised (and padded) image, h w cells of a
mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2f_core.config.labels import Task
from m2f_core.config.model_config import ModelConfig


@dataclass
class SegmentationOutput:
    """A model's output, under transformers' names. Logits and losses are float32, also under autocast.

    class_queries_logits: [B, Q, K+1], the last one for "no object".
    masks_queries_logits: [B, Q, h, w] over the padded image; a cell is on if its logit is at least 0.
    loss: the sum of `losses`; both are present if labels are given. See `m2f_core.losses.loss.Criterion`.
    queries: on request, what the class head reads: the decoder's last states of the queries, normalised, [B, Q, D].
    auxiliary_logits: the decoder's earlier predictions, from first to last: a dict with the two names above for each.

    Hidden states, on request (transformers always returns the last ones):
    encoder_hidden_states: the backbone's four maps, highest resolution first, [B, C, h, w] each at its stride.
    pixel_decoder_hidden_states: the refined maps, strides 32, 16 and 8; pixel_decoder_last_hidden_state: the mask
    features, [B, C, h, w].
    transformer_decoder_hidden_states: the queries before the first layer and after each, not normalised, [Q, B, D];
    transformer_decoder_last_hidden_state: the last of them, as [B, Q, D].
    """

    class_queries_logits: Tensor
    masks_queries_logits: Tensor
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    queries: Tensor | None = None


# With this, torch.export can flatten and rebuild the model's output, also after saving to a file.
torch.export.register_dataclass(SegmentationOutput, serialized_type_name="m2f_core.model.SegmentationOutput")


def joined(outputs: Sequence[SegmentationOutput]) -> SegmentationOutput:
    """The output of inference for all images; hidden states are left out if there are several."""
    if len(outputs) == 1:
        return outputs[0]
    queries = [output.queries for output in outputs if output.queries is not None]
    return SegmentationOutput(
        torch.cat([output.class_queries_logits for output in outputs]),
        torch.cat([output.masks_queries_logits for output in outputs]),
        queries=torch.cat(queries) if queries else None,
    )


class SegmentationModel(nn.Module, ABC):
    """A model that answers an image with classes and masks of queries: what pipelines, losses and checkpoints rely on.

    `class_predictor` is the linear layer whose rows are the classes, "no object" last. `criterion` is the loss.
    `decays_all`: weight decay applies to norms and embeddings, too.
    """

    decays_all = False

    config: ModelConfig
    class_predictor: nn.Module
    criterion: Any

    @abstractmethod
    def forward(
        self,
        pixel_values_B3HW: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        *,
        output_queries: bool = False,
    ) -> SegmentationOutput: ...

    @staticmethod
    def check_labels(mask_labels: Sequence[Tensor] | None, class_labels: Sequence[Tensor] | None) -> None:
        """ValueError unless both are given or neither."""
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels must be given together or not at all")

    def add_losses(
        self,
        output: SegmentationOutput,
        auxiliary_predictions: Sequence[dict[str, Tensor]],
        mask_labels: Sequence[Tensor] | None,
        class_labels: Sequence[Tensor] | None,
    ) -> None:
        """Fill in `losses` and `loss` of an output, if there are labels."""
        if mask_labels is None or class_labels is None:
            return
        output.losses = self.criterion(
            output.class_queries_logits,
            output.masks_queries_logits,
            auxiliary_predictions=auxiliary_predictions,
            mask_labels=mask_labels,
            class_labels=class_labels,
        )
        assert output.losses
        first, *others = output.losses.values()
        output.loss = sum(others, start=first)

    def set_task(self, task: Task) -> None:
        """Answer for this task from now on. A family whose models do not read the task has nothing to do."""

    def set_progress(self, share: float) -> None:
        """So much of the training is done, from 0 to 1. A family whose models train alike all the time ignores this."""

    def rate_factor(self, name: str, backbone_multiplier: float) -> float:
        """The learning rate of the parameter `name`, as a factor of the base value."""
        return backbone_multiplier if name.startswith("backbone.") else 1.0

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """The blocks that hold most of a training step's memory: their activations may be computed again."""
        return ()

    def parts_in_8_bits(self) -> Sequence[nn.Module]:
        """The parts whose wide layers may compute with 8 bits on a CPU; empty if this was not measured."""
        return ()

    def convolutional_parts(self) -> Sequence[nn.Module]:
        """The parts whose 1x1 convolutions are worth packing on a CPU: their maps have channels last in memory."""
        return ()
