"""The network as a program of torch.export: normalised pixels in, class and mask logits out, and nothing of ours in it.

Legend: B batch, Q query, K classes, H W pixels of the normalised (and padded) image, h w cells of a mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from m2f_core.layers.deformable_attention import DeformableAttention
from m2f_core.model.contract import SegmentationModel

INPUT = "pixel_values"
OUTPUTS = ("class_queries_logits", "masks_queries_logits")


class Logits(nn.Module):
    """A model whose output is a pair of tensors, so that a reader of the program needs no class of this package."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, 3, H, W] -> float32 [B, Q, K+1] and [B, Q, h, w], the first two fields of the model's output."""
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


def export_program(
    model: SegmentationModel, size_hw: tuple[int, int], *, by_grid_sample: bool = False
) -> torch.export.ExportedProgram:
    """`model`, which is in eval mode and not prepared for inference, for any number of images of `size_hw`.

    The program has the values of the model's weights at this moment, and answers for the task that `set_task` has set.
    Deformable attention, whose kernels no program can call, becomes `F.embedding_bag`, or with `by_grid_sample`
    `F.grid_sample`, for which other formats have an operator. ValueError if the model takes no image of this size.
    """
    # Two images: from a batch of one, torch would conclude that a batch is always one.
    pixel_values = torch.zeros(2, 3, *size_hw)
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), _reads_by_grid_sample(model, by_grid_sample):
        return torch.export.export(Logits(model), (pixel_values,), dynamic_shapes=shapes)


@contextmanager
def _reads_by_grid_sample(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Deformable attention in training mode uses `F.grid_sample`; the mode changes nothing else in this layer."""
    layers = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = wanted
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.training = mode
