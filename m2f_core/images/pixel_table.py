"""Normalise pixels by a table: uint8 images into one normalised, padded float32 batch.

Legend: B images, C = 3 channels, V = 256 values, h w an image, H W the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f_core.jit import compiled


def look_up(
    images_hw3: Sequence[Tensor],
    table_CV: NDArray[np.float32],
    padded_hw: tuple[int, int],
    padding_C: NDArray[np.float32],
) -> Tensor:
    """float32 [B, C, H, W] on a CPU: `table[c, pixel]`, and `padding[c]` at the right and bottom."""
    batch_BCHW = torch.empty((len(images_hw3), 3, *padded_hw), dtype=torch.float32)
    for image_hw3, out_CHW in zip(images_hw3, batch_BCHW, strict=True):
        _look_up(image_hw3.numpy(), table_CV, padding_C, out_CHW.numpy())
    return batch_BCHW


@compiled
def _look_up(image, table, padding, out):  # type: ignore[no-untyped-def]
    height, width, _ = image.shape
    for y in range(height):
        row = image[y]
        red, green, blue = out[0, y], out[1, y], out[2, y]
        for x in range(width):
            red[x] = table[0, row[x, 0]]
            green[x] = table[1, row[x, 1]]
            blue[x] = table[2, row[x, 2]]
        red[width:], green[width:], blue[width:] = padding[0], padding[1], padding[2]
    for c in range(3):
        out[c, height:] = padding[c]


def look_up_by_torch(images_Bhw3: Tensor, table_CV: Tensor, first_of_channel_C: Tensor) -> Tensor:
    """[B, C, h, w] of images of one size, on their device; channel c of the table begins at `first_of_channel[c]`."""
    places_Bhw3 = images_Bhw3 + first_of_channel_C  # int32
    values = table_CV.flatten().index_select(0, places_Bhw3.flatten()).view(places_Bhw3.shape)
    return values.permute(0, 3, 1, 2)
