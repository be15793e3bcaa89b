"""Normalise pixels by a table: uint8 images into one normalised, padded float32 batch.

Legend: B images, C = 3 channels, V = 256 values, h w an image, H W the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from m2f_core.jit import compiled


def look_up(images_hw3: Sequence[Tensor], table_CV: Tensor, padded_hw: tuple[int, int]) -> Tensor:
    """float32 [B, C, H, W] on the device of the table: `table[c, pixel]`, and 0 in the padding at the right and bottom.

    Each uint8 image is copied to that device unchanged, and asynchronously if it is in pinned memory.
    """
    batch_BCHW = torch.empty((len(images_hw3), 3, *padded_hw), dtype=torch.float32, device=table_CV.device)
    for image_hw3, out_CHW in zip(images_hw3, batch_BCHW, strict=True):
        if table_CV.device.type == "cpu":
            _look_up(image_hw3.numpy(), table_CV.numpy(), out_CHW.numpy())
        else:
            _look_up_by_torch(image_hw3.to(table_CV.device, non_blocking=True), table_CV, out_CHW)
    return batch_BCHW


@compiled
def _look_up(image, table, out):  # type: ignore[no-untyped-def]
    height, width, _ = image.shape
    for y in range(height):
        row = image[y]
        red, green, blue = out[0, y], out[1, y], out[2, y]
        for x in range(width):
            red[x] = table[0, row[x, 0]]
            green[x] = table[1, row[x, 1]]
            blue[x] = table[2, row[x, 2]]
        out[:, y, width:] = np.float32(0.0)
    out[:, height:] = np.float32(0.0)


def _look_up_by_torch(image_hw3: Tensor, table_CV: Tensor, out_CHW: Tensor) -> None:
    height, width, _ = image_hw3.shape
    for channel in range(3):  # one channel at a time: the int64 indices are eight times as large as the pixels
        out_CHW[channel, :height, :width] = torch.take(table_CV[channel], image_hw3[..., channel].long())
    out_CHW[:, height:] = 0
    out_CHW[:, :, width:] = 0
