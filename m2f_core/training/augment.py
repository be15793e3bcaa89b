"""Augmentation of an image and its annotations for training.

`LargeScaleJitter` is the paper's augmentation (Ghiasi et al. 2021, "Simple Copy-Paste"): an image is flipped or not,
resized to fit `scale` times the crop, then cropped at random, or padded at the right and at the bottom, to exactly the
crop. The original's `coco_panoptic_new_baseline_dataset_mapper.py` does this with detectron2's RandomFlip, ResizeScale
and FixedSizeCrop. `WholeImages` keeps each image whole, at its size in inference. `padding` is a grey in the image
before normalisation, as in that mapper; most inference pads with 0 after normalisation, which is nearly the same.

Legend: H, W pixels of the image; h, w of the crop.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.resize import RESAMPLES, resize_by_kernel

IMAGE_PADDING = ImageProcessor.training_padding


@dataclass(frozen=True)
class Jitter:
    """One draw: the transformation of one image and of all its annotations."""

    flip: bool
    resized_hw: tuple[int, int]
    offset_yx: tuple[int, int]  # position of the crop in the resized image
    crop_hw: tuple[int, int]
    resample: Image.Resampling = Image.Resampling.BILINEAR  # for pixels; maps and masks use nearest neighbour
    padding: int = IMAGE_PADDING

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image as uint8 [h, w, 3]."""
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.resample in RESAMPLES:
            pixels = resize_by_kernel(np.asarray(image), self.resized_hw, self.resample, self._window)
        else:
            pixels = np.asarray(image.resize(self.resized_hw[::-1], self.resample))[self._window]
        return self._padded(pixels, self.padding)

    def map(self, map_HW: NDArray[np.integer], padding: int) -> NDArray[np.int32]:
        """An integer map, by nearest neighbour, as int32 [h, w]."""
        return self._padded(self._nearest(map_HW.astype(np.int32, copy=False)), padding)

    def mask(self, mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask, by nearest neighbour, as bool [h, w]; padding does not belong to it."""
        return self._padded(self._nearest(mask_HW), False)

    @property
    def _window(self) -> tuple[slice, slice]:
        """Rows and columns of the resized image that lie in the crop. Only these are computed."""
        y, x = (
            slice(offset, min(offset + crop, resized))
            for offset, crop, resized in zip(self.offset_yx, self.crop_hw, self.resized_hw, strict=True)
        )
        return y, x

    def _nearest(self, map_HW: NDArray) -> NDArray:
        if self.flip:
            map_HW = map_HW[:, ::-1]
        rows, columns = (
            _nearest_places(length, resized)[window]
            for length, resized, window in zip(map_HW.shape, self.resized_hw, self._window, strict=True)
        )
        return map_HW[:, columns][rows]

    def _padded(self, cropped: NDArray, padding: int) -> NDArray:
        """Pad to the size of the crop, at the right and at the bottom."""
        out = np.full((*self.crop_hw, *cropped.shape[2:]), padding, cropped.dtype)
        out[: cropped.shape[0], : cropped.shape[1]] = cropped
        return out


@lru_cache(maxsize=2)  # rows and columns: an image may have hundreds of masks
def _nearest_places(num_in: int, num_out: int) -> NDArray[np.int32]:
    """For each of `num_out` pixels, its source among `num_in` pixels, as in Pillow: int32 [num_out]."""
    places = Image.fromarray(np.arange(num_in, dtype=np.int32)[None])
    return np.asarray(places.resize((num_out, 1), Image.Resampling.NEAREST))[0]


@dataclass(frozen=True)
class LargeScaleJitter:
    """The distribution that `Jitter`s are drawn from."""

    crop_hw: tuple[int, int]
    min_scale: float
    max_scale: float
    flip: bool  # half of the images, left to right
    padding: int = IMAGE_PADDING

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Jitter:
        """For an image of `height` x `width` pixels."""
        flip = self.flip and bool(rng.random() < 0.5)
        scale = rng.uniform(self.min_scale, self.max_scale)
        ratio = scale * min(self.crop_hw[0] / height, self.crop_hw[1] / width)
        resized_hw = max(1, round(height * ratio)), max(1, round(width * ratio))
        room_yx = (max(0, length - crop) for length, crop in zip(resized_hw, self.crop_hw, strict=True))
        y, x = (round(room * rng.random()) for room in room_yx)
        return Jitter(flip, resized_hw, (y, x), self.crop_hw, padding=self.padding)


@dataclass(frozen=True)
class WholeImages:
    """Resize an image as `processor` does in inference, without jitter and crop."""

    processor: ImageProcessor
    flip: bool  # half of the images, left to right

    @property
    def padding(self) -> int:
        return self.processor.training_padding

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Jitter:
        """For an image of `height` x `width` pixels."""
        flip = self.flip and bool(rng.random() < 0.5)
        geometry = self.processor.geometry(height, width)
        resample = Image.Resampling(self.processor.resample)
        return Jitter(flip, geometry.resized_hw, (0, 0), geometry.padded_hw, resample, self.padding)
