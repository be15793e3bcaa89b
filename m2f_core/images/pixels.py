"""What `ImageProcessor` does to pixels, on a CPU and on any device.

Legend: B batch, C = 3 channels (red, green, blue), V = 256 values of a uint8, h w resized pixels, H W padded pixels.
Tuples `*_hw` are (height, width) in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

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
    padding_C: NDArray[np.float32],
    windows: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> torch.Tensor:
    """See `ImageProcessor.batch_by_torch`."""
    device = images_hw3[0].device
    groups: dict[tuple[torch.Size, tuple[int, int]], list[int]] = {}
    for place, (image_hw3, resized_hw) in enumerate(zip(images_hw3, resized_hws, strict=True)):
        groups.setdefault((image_hw3.shape, resized_hw), []).append(place)
    ends = list(accumulate(len(of_image) for of_image in windows)) if windows else [*range(1, len(images_hw3) + 1)]
    batch_B3HW = _padding(padding_C, (ends[-1], 3, *padded_hw), device)
    for (_, (height, width)), places in groups.items():
        stored = torch.stack([images_hw3[place] for place in places])
        small = resize_by_torch(stored, (height, width), resample)
        values = look_up_by_torch(small, *_table_on(table_CV.tobytes(), device))
        within_B3hw = batch_B3HW[:, :, :height, :width]
        if windows:
            for place, values_3hw in zip(places, values, strict=True):
                first = ends[place] - len(windows[place])
                for out_3HW, (top, left) in zip(batch_B3HW[first : ends[place]], windows[place], strict=True):
                    out_3HW.copy_(values_3hw[:, top : top + padded_hw[0], left : left + padded_hw[1]])
        elif len(groups) == 1:
            within_B3hw.copy_(values)
        else:
            for place, values_3hw in zip(places, values, strict=True):
                within_B3hw[place].copy_(values_3hw)
    return batch_B3HW


def _padding(padding_C: NDArray[np.float32], size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A batch that is nothing but padding."""
    if not padding_C.any():
        return torch.zeros(size, dtype=torch.float32, device=device)
    return to_device(padding_C, device).view(1, 3, 1, 1).repeat(size[0], 1, *size[2:])


def to_batch(
    images_hw3: Sequence[np.ndarray | torch.Tensor],
    padded_hw: tuple[int, int],
    device: torch.device | str,
    resample: int,
    table_CV: NDArray[np.float32],
    padding_C: NDArray[np.float32],
) -> torch.Tensor:
    """See `ImageProcessor.to_batch`."""
    assert images_hw3
    tensors_hw3 = [torch.as_tensor(image_hw3) for image_hw3 in images_hw3]
    for image_hw3 in tensors_hw3:
        assert image_hw3.dtype == torch.uint8 and image_hw3.ndim == 3 and image_hw3.shape[2] == 3
        assert image_hw3.shape[0] <= padded_hw[0] and image_hw3.shape[1] <= padded_hw[1]
    if torch.device(device).type == "cpu":
        return look_up(tensors_hw3, table_CV, padded_hw, padding_C)
    there = [image_hw3.to(device, non_blocking=True) for image_hw3 in tensors_hw3]
    sizes = [(image.shape[0], image.shape[1]) for image in there]
    return batch_by_torch(there, sizes, padded_hw, resample, table_CV, padding_C)


@lru_cache(maxsize=16)
def _table_on(table: bytes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The table of normalised values [C, V], and where each channel begins in it."""
    table_CV = np.frombuffer(table, np.float32).reshape(3, -1).copy()
    first_of_channel_C = np.arange(3, dtype=np.int32) * table_CV.shape[1]
    return to_device(table_CV, device), to_device(first_of_channel_C, device)
