"""Images and segmentation maps in any documented form -> arrays, and their resizing as in transformers.

Legend: C channels; H W pixels of an image, before or after resizing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.training.targets import checked_map

_CHANNELS = (1, 3, 4)


def to_list(images: Any, ndim: int, name: str) -> list[Any]:
    """One image, a stack of images, a list or a list of lists -> a flat list. ValueError if there is no image."""
    if isinstance(images, (list, tuple)):
        found = [image for entry in images for image in to_list(entry, ndim, name)]
        if not found:
            raise ValueError(f"{name} is empty")
        return found
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        if images.ndim == ndim + 1 and len(images):
            return list(images)
        if images.ndim in (2, ndim):
            return [images]
        raise ValueError(f"{name}: an array of shape {tuple(images.shape)} is neither an image nor a stack of images")
    raise ValueError(f"{name}: images are of Pillow, numpy or torch, not {type(images).__name__}; open files first")


def to_channels_first(image: Any, do_convert_rgb: bool | None, input_data_format: str | None) -> NDArray[Any]:
    """The image as an array [C, H, W]. ValueError if it cannot be known which axis is the channel's."""
    if isinstance(image, Image.Image):
        array_HWC = np.array(_on_white(image) if do_convert_rgb else image)
        return array_HWC[None] if array_HWC.ndim == 2 else np.moveaxis(array_HWC, -1, 0)
    array = _as_array(image)
    if array.ndim == 2:
        array = array[None]
    elif _channel_axis(array, input_data_format) == 2:
        array = np.moveaxis(array, -1, 0)
    return _rgb_on_white(array) if do_convert_rgb else array


def to_map(segmentation_map: Any) -> NDArray[np.integer]:
    """A segmentation map as whole numbers [H, W]; a palette image gives its indices. ValueError if it is none."""
    if isinstance(segmentation_map, Image.Image):
        return checked_map(np.array(segmentation_map))
    return checked_map(_as_array(segmentation_map))


def resized(image_CHW: NDArray[Any], size_hw: tuple[int, int], resample: int) -> NDArray[Any]:
    """Resize with Pillow, as transformers does: other types than uint8 pass through uint8.

    Values from 0 to 1 that are not whole are scaled to 255 and back (the result is float32); whole values from 0 to 255
    stay as they are. Whole maps of other values, such as instance ids, are resized by nearest neighbour without loss.
    ValueError for other values.
    """
    height, width = size_hw
    if image_CHW.shape[0] == 1 and image_CHW.dtype.kind in "iu" and resample == Image.Resampling.NEAREST:
        pixels = Image.fromarray(image_CHW[0].astype(np.int32))
        return np.asarray(pixels.resize((width, height), Image.Resampling.NEAREST))[None]
    scaled = image_CHW.dtype != np.uint8 and not np.allclose(image_CHW, image_CHW.astype(int))
    most = 1 if scaled else 255
    if image_CHW.min() < 0 or image_CHW.max() > most:
        raise ValueError(
            "an image to be resized has whole values from 0 to 255 or values from 0 to 1, not from "
            f"{image_CHW.min()} to {image_CHW.max()}; resize it before it is normalised"
        )
    image_HWC = np.moveaxis((image_CHW.astype(np.float64) * 255).astype(np.float32) if scaled else image_CHW, 0, -1)
    image_HWC = image_HWC.astype(np.uint8)
    try:
        image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
    except TypeError:
        raise ValueError(f"an image of {image_HWC.shape[-1]} channels cannot be resized; give 1, 2, 3 or 4") from None
    array = np.asarray(image.resize((width, height), Image.Resampling(resample)))
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return (array.astype(np.float64) * (1 / 255)).astype(np.float32) if scaled else array


def pad(array_XHW: NDArray[Any], padded_hw: tuple[int, int]) -> NDArray[Any]:
    """Zeros at the right and at the bottom. ValueError if the array is larger."""
    height, width = array_XHW.shape[1:]
    if height > padded_hw[0] or width > padded_hw[1]:
        raise ValueError(f"pad_size {padded_hw} (height, width) is smaller than an image of {(height, width)} pixels")
    return np.pad(array_XHW, ((0, 0), (0, padded_hw[0] - height), (0, padded_hw[1] - width)))


def for_channels(numbers: float | Sequence[float], name: str, num_channels: int) -> list[float]:
    """`image_mean` or `image_std` for each channel. ValueError if their number differs."""
    listed = [float(numbers)] * num_channels if isinstance(numbers, (int, float)) else [*map(float, numbers)]
    if len(listed) != num_channels:
        raise ValueError(
            f"{name} has {len(listed)} numbers, but an image has {num_channels} channels; pass do_convert_rgb=True for "
            "images that are not RGB"
        )
    return listed


def _as_array(image: Any) -> NDArray[Any]:
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)


def _channel_axis(array: NDArray[Any], input_data_format: str | None) -> int:
    if array.ndim != 3:
        raise ValueError(f"an image has 2 or 3 axes, not the shape {array.shape}")
    if input_data_format is not None:
        name = str(getattr(input_data_format, "value", input_data_format))  # transformers has an enumeration
        if name not in ("channels_first", "channels_last"):
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', not {name!r}")
        return 0 if name == "channels_first" else 2
    for axis in (0, 2):
        if array.shape[axis] in _CHANNELS:
            return axis
    raise ValueError(
        f"an image of shape {array.shape} has no axis of 1, 3 or 4 channels; pass input_data_format to name the axis"
    )


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _rgb_on_white(image_CHW: NDArray[Any]) -> NDArray[Any]:
    if image_CHW.shape[0] == 1:
        return np.repeat(image_CHW, 3, axis=0)
    if image_CHW.shape[0] != 4:
        return image_CHW
    whole = image_CHW.dtype.kind in "iu"
    if not whole and (image_CHW.min() < 0 or image_CHW.max() > 1):
        raise ValueError("an image with transparency has whole values from 0 to 255 or values from 0 to 1")
    white = 255 if whole else 1.0
    alpha_1HW = image_CHW[3:] / white
    blended_CHW = alpha_1HW * image_CHW[:3] + (1 - alpha_1HW) * white
    return (np.round(blended_CHW) if whole else blended_CHW).astype(image_CHW.dtype)
