"""Segment ids in the colours of a COCO panoptic PNG. Does not import torch, which an evaluation does not need.

Legend: H, W pixels of the image.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

PANOPTIC_VOID = 0  # the id of pixels without a segment


def panoptic_ids(png_HW3: ArrayLike) -> NDArray[np.int32]:
    """Segment ids [H, W] of the PNG's pixels: red + 256 green + 65536 blue. ValueError for any other PNG."""
    rgb_HW3 = np.asarray(png_HW3)
    if rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or rgb_HW3.dtype != np.uint8:
        raise ValueError(
            f"a panoptic PNG must be uint8 of shape [H, W, 3], got {rgb_HW3.dtype} of shape {rgb_HW3.shape}"
        )
    return rgb_HW3.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def panoptic_png(ids_HW: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of a COCO panoptic PNG; the inverse of `panoptic_ids`."""
    return np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], axis=-1).astype(np.uint8)
