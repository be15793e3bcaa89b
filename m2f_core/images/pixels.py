"""What `ImageProcessor` does to pixels, on a CPU and on any device.

Legend: B batch, C = 3 channels (red, green, blue), V = 256 values of a uint8, h w resized pixels, H W padded pixels.
Tuples `*_hw` are (height, width) in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.images.pixel_table import look_up, look_up_by_torch
from m2f_core.images.resize import RESAMPLES, resize_by_kernel, resize_by_torch
from m2f_core.to_device import to_device


def resized(image: Image.Image, resized_hw: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """See `ImageProcessor.resize`. ValueError if the image is not RGB."""
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}, not RGB")
    if resample in RESAMPLES:
        return resize_by_kernel(np.array(image), resized_hw, resample)
    height, width = resized_hw
    return np.array(image.resize((width, height), Image.Resampling(resample)))


def batch_by_torch(
    images_hw3: Sequence[torch.Tensor],
    resized_hws: Sequence[tuple[int, int]],
    padded_hw: tuple[int, int],
    resample: int,
    table_CV: NDArray[np.float32],
) -> torch.Tensor:
    """See `ImageProcessor.batch_by_torch`."""
    device = images_hw3[0].device
    groups: dict[tuple[torch.Size, tuple[int, int]], list[int]] = {}
    for place, (image_hw3, resized_hw) in enumerate(zip(images_hw3, resized_hws, strict=True)):
        groups.setdefault((image_hw3.shape, resized_hw), []).append(place)
    batch_B3HW = torch.zeros((len(images_hw3), 3, *padded_hw), dtype=torch.float32, device=device)
    for (_, (height, width)), places in groups.items():
        stored = torch.stack([images_hw3[place] for place in places])
        small = resize_by_torch(stored, (height, width), resample)
        values = look_up_by_torch(small, *_table_on(table_CV.tobytes(), device))
        within_B3hw = batch_B3HW[:, :, :height, :width]
        if len(groups) == 1:
            within_B3hw.copy_(values)
        else:
            for place, values_3hw in zip(places, values, strict=True):
                within_B3hw[place].copy_(values_3hw)
    return batch_B3HW


def to_batch(
    images_hw3: Sequence[np.ndarray | torch.Tensor],
    padded_hw: tuple[int, int],
    device: torch.device | str,
    resample: int,
    table_CV: NDArray[np.float32],
) -> torch.Tensor:
    """See `ImageProcessor.to_batch`."""
    assert images_hw3
    tensors_hw3 = [torch.as_tensor(image_hw3) for image_hw3 in images_hw3]
    for image_hw3 in tensors_hw3:
        assert image_hw3.dtype == torch.uint8 and image_hw3.ndim == 3 and image_hw3.shape[2] == 3
        assert image_hw3.shape[0] <= padded_hw[0] and image_hw3.shape[1] <= padded_hw[1]
    if torch.device(device).type == "cpu":
        return look_up(tensors_hw3, table_CV, padded_hw)
    there = [image_hw3.to(device, non_blocking=True) for image_hw3 in tensors_hw3]
    return batch_by_torch(there, [(image.shape[0], image.shape[1]) for image in there], padded_hw, resample, table_CV)


@lru_cache(maxsize=16)
def _table_on(table: bytes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The table of normalised values [C, V], and where each channel begins in it."""
    table_CV = np.frombuffer(table, np.float32).reshape(3, -1).copy()
    first_of_channel_C = np.arange(3, dtype=np.int32) * table_CV.shape[1]
    return to_device(table_CV, device), to_device(first_of_channel_C, device)
