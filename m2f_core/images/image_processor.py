"""From a decoded image to the network's input: resize, normalise, pad. Only methods that touch pixels import torch.

There are two modes, which give different sizes and so different masks:

* `reference`: like Mask2Former's authors (detectron2). Sizes are rounded, and after normalisation the image is padded
  with zeros on the right and at the bottom up to a multiple of the divisor.
* `hf`: like transformers' `Mask2FormerImageProcessorPil`. Sizes are truncated and the image is then stretched up to a
  multiple of the divisor; nothing is padded.

Both modes resize the uint8 image with Pillow's filter and normalise per channel. Their float32 results differ in the
last bits, because one subtracts on the scale 0..255 and the other on 0..1. A uint8 pixel has only 256 values, so each
mode's arithmetic runs once, in the mode's own order of operations, for a table of 3 x 256 values, in which pixels are
looked up. The result is bitwise equal to the original of either mode, on every device, and a pixel's value cannot
depend on its batch.

Legend: B batch, C = 3 channels (red, green, blue), V = 256 values of a uint8, h w resized pixels, H W padded pixels.
Tuples `*_hw` are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from m2f_core.config.fields import MAX_NUMBER, excerpt
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.hf_values import hf_values
from m2f_core.images.image_size import MAX_PIXELS_A_SIDE, PAPER_EDGES, PAPER_SIZE, ImageSize

if TYPE_CHECKING:
    import torch

MODES = ("reference", "hf")
NETWORK_STRIDE = 32  # of the coarsest feature map; the authors pad to multiples of it
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_DIVISOR = 1024  # published: 32. Every side of every image is rounded up to it
LEAST_SCALE = 1e-9  # of a deviation or a factor; smaller ones make numbers that are not finite
_NOT_NORMALIZED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and deviation


@dataclass(frozen=True)
class ImageProcessor:
    """How images are resized, normalised and padded. It holds only plain numbers, so it can be compared and pickled.

    `mean` and `std` are on the scale of `pixel * rescale_factor`, in the order red, green, blue. `resample` is the
    number of a Pillow filter (2 is bilinear). `size_divisor` is transformers': 0 rounds nothing; `reference` raises it
    to a multiple of 32. `pad_hw` is transformers' `pad_size`: `hf` pads every image up to it, `reference` does not,
    because padding changes the result. `size_source` says where `size` comes from.
    """

    mode: str
    size: ImageSize = PAPER_SIZE
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rescale_factor: float = 1 / 255
    resample: int = int(Image.Resampling.BILINEAR)
    size_divisor: int = NETWORK_STRIDE
    pad_hw: tuple[int, int] | None = None
    size_source: Literal["default", "file", "argument"] = "default"

    # What surrounds a small image in training, as pixels: the grey of the original's dataset mappers.
    training_padding: ClassVar[int] = 128

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"image processor mode {self.mode!r} is neither 'reference' nor 'hf'")
        largest_hw = self.size.largest_hw
        if self.pad_hw is not None and self.mode == "hf" and largest_hw is not None:
            # The longer edge may be either side of an image.
            most_hw = largest_hw if self.size.edges is None else (largest_hw[1], largest_hw[1])
            most_hw = (_round_up(most_hw[0], self._divisor), _round_up(most_hw[1], self._divisor))
            if most_hw[0] > self.pad_hw[0] or most_hw[1] > self.pad_hw[1]:
                raise ValueError(
                    f"pad_size {self.pad_hw[0]}x{self.pad_hw[1]} is smaller than a resized image, which may have "
                    f"{most_hw[0]}x{most_hw[1]} pixels"
                )

    @classmethod
    def from_preprocessor_config(
        cls, config: Mapping[str, Any] | None, mode: str, image_size: ImageSize | None = None
    ) -> ImageProcessor:
        """Read the content of a `preprocessor_config.json`; None means the paper's setting.

        `image_size` replaces the file's size, also where the file says `do_resize: false`. `do_normalize: false` and
        `do_rescale: false` are obeyed. Keys that do not change an image's pixels are ignored. Every ValueError names
        the wrong field.
        """
        if config is None:
            return cls(mode, image_size or PAPER_SIZE, size_source="argument" if image_size else "default")
        file_size = None if image_size else ImageSize() if config.get("do_resize") is False else _file_size(config)
        normalizes = config.get("do_normalize") is not False
        rescales = config.get("do_rescale") is not False
        return cls(
            mode=mode,
            size=image_size or file_size or PAPER_SIZE,
            mean=_three_numbers(config, "image_mean", IMAGENET_MEAN) if normalizes else _NOT_NORMALIZED[0],
            std=_three_numbers(config, "image_std", IMAGENET_STD, positive=True) if normalizes else _NOT_NORMALIZED[1],
            rescale_factor=_rescale_factor(config) if rescales else 1.0,
            resample=_resample(config),
            size_divisor=_size_divisor(config),
            pad_hw=read_pad_size(config),
            size_source="argument" if image_size else "file" if file_size else "default",
        )

    def check_crop(self, crop_hw: tuple[int, int] | None) -> None:
        """ValueError if the model cannot be trained on crops of this size, or, with None, on whole images."""

    def to_preprocessor_config(self) -> dict[str, Any]:
        """A `preprocessor_config.json` for transformers, from which `from_preprocessor_config` restores this object."""
        config: dict[str, Any] = {
            "image_processor_type": "Mask2FormerImageProcessor",
            "do_resize": self.size.largest_hw is not None,
            "size": _size_dict(self.size if self.size.largest_hw is not None else PAPER_SIZE),
            "size_divisor": self.size_divisor,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "ignore_index": 255,
            "do_reduce_labels": False,
        }
        if self.pad_hw is not None:
            config["pad_size"] = {"height": self.pad_hw[0], "width": self.pad_hw[1]}
        return config

    def warnings(self) -> list[str]:
        """Warnings for the user about these settings, one sentence each."""
        warnings = []
        if self.size_source == "file" and self.size.fixed_hw:
            warnings.append(
                f"preprocessor_config.json sets a fixed size of {self.size}, as the published Hugging Face files do; "
                "this distorts images, and the models were evaluated at another size "
                f"({PAPER_SIZE} = shortest:longest edge for COCO); pass an image size to override it"
            )
        if self.size_source == "file" and self.size.largest_hw is None:
            warnings.append(
                "preprocessor_config.json says do_resize: false, so every image enters the network at its own size, "
                "and an image of many megapixels needs much memory; pass an image size to override it"
            )
        if self.pad_hw is not None and self.mode == "reference":
            warnings.append(
                f"preprocessor_config.json has pad_size {self.pad_hw[0]}x{self.pad_hw[1]}; images are padded only to "
                f"multiples of {self._divisor} instead, as in the original code"
            )
        spread = (
            255 * self.rescale_factor / min(self.std)
        )  # between black and white; 4.4 to 4.5 with ImageNet's numbers
        if (self.mean, self.std) == _NOT_NORMALIZED or not 0.4 < spread < 40:
            warnings.append(
                "preprocessor_config.json does not normalise pixels (do_rescale or do_normalize is off, or mean and "
                f"deviation are of another scale: black and white are {spread:.3g} apart, in published models 4.5); "
                "this is right only for a model that was trained with such pixels, and no published model was"
            )
        if self._divisor != self.size_divisor and self.mode == "reference":
            warnings.append(
                f"preprocessor_config.json has size_divisor {self.size_divisor}; images are padded to multiples of "
                f"{self._divisor} instead, as in the original code"
            )
        return warnings

    @property
    def _divisor(self) -> int:
        """What divides the sides of a padded image."""
        if self.mode == "reference":
            return max(NETWORK_STRIDE, _round_up(self.size_divisor, NETWORK_STRIDE))
        return self.size_divisor or 1

    def geometry(self, height: int, width: int) -> ImageGeometry:
        """The sizes of an image of `height` x `width` pixels after resizing and after padding."""
        assert height > 0 and width > 0
        if self.size.largest_hw is None:
            resized_hw = height, width
        elif self.size.edges is not None:
            scale_edges = _rounded_edges if self.mode == "reference" else truncated_edges
            resized_hw = scale_edges(height, width, *self.size.edges)
        elif self.size.within_hw is not None:
            resized_hw = _truncated_within(height, width, *self.size.within_hw)
        else:
            assert self.size.fixed_hw is not None
            resized_hw = self.size.fixed_hw
        padded_hw = (_round_up(resized_hw[0], self._divisor), _round_up(resized_hw[1], self._divisor))
        if self.mode == "hf":
            # Stretched instead of padded; an image that is not resized is not stretched either.
            resized_hw = resized_hw if self.size.largest_hw is None else padded_hw
            padded_hw = self._padded(resized_hw)
        return ImageGeometry((height, width), resized_hw, padded_hw)

    def _padded(self, resized_hw: tuple[int, int]) -> tuple[int, int]:
        """`pad_hw`, if there is one."""
        if self.pad_hw is None:
            return resized_hw
        if resized_hw[0] > self.pad_hw[0] or resized_hw[1] > self.pad_hw[1]:
            raise ValueError(f"pad_size {self.pad_hw} (height, width) is smaller than an image of {resized_hw} pixels")
        return self.pad_hw

    def resize(self, image: Image.Image, resized_hw: tuple[int, int] | None = None) -> np.ndarray:
        """Resize an RGB image; returns uint8 [h, w, 3] of `resized_hw`, by default the size of its own `geometry`.

        The result equals Pillow's own `resize` to the last bit.
        """
        from m2f_core.images.pixels import resized

        return resized(image, resized_hw or self.geometry(image.height, image.width).resized_hw, self.resample)

    @property
    def resizes_anywhere(self) -> bool:
        """Whether `batch_by_torch` supports the filter; Pillow has more filters."""
        from m2f_core.images.resize import RESAMPLES

        return self.resample in RESAMPLES

    def batch_by_torch(
        self,
        images_hw3: Sequence[torch.Tensor],
        resized_hws: Sequence[tuple[int, int]],
        padded_hw: tuple[int, int],
        windows: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> torch.Tensor:
        """`resize` and `to_batch` of uint8 images [h, w, 3], with PyTorch's operations on the device of the images.

        Images of one size are resized together. With the `windows` of each image, the batch has an entry for each
        window, image after image.
        """
        from m2f_core.images.pixels import batch_by_torch

        values_CV, padding_C = self.normalized_values(), self.padding_values()
        return batch_by_torch(images_hw3, resized_hws, padded_hw, self.resample, values_CV, padding_C, windows)

    def to_batch(
        self,
        images_hw3: Sequence[np.ndarray | torch.Tensor],
        padded_hw: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Normalise uint8 images [h, w, 3] of one padded size; returns float32 [B, 3, H, W] on `device`.

        Resized sizes may differ. An image's values are bitwise independent of the other images and of the device. The
        padding is `padding_values`.
        """
        from m2f_core.images.pixels import to_batch

        values_CV, padding_C = self.normalized_values(), self.padding_values()
        return to_batch(images_hw3, padded_hw, device, self.resample, values_CV, padding_C)

    def inputs_of(self, image: Image.Image, device: torch.device | str = "cpu") -> tuple[torch.Tensor, ImageGeometry]:
        """The inputs of one image, float32 [n, 3, H, W]: one, or one for each of its windows."""
        geometry = self.geometry(image.height, image.width)
        pixels_hw3 = self.resize(image, geometry.resized_hw)
        height, width = geometry.padded_hw
        parts = [pixels_hw3[top : top + height, left : left + width].copy() for top, left in geometry.windows]
        return self.to_batch(parts or [pixels_hw3], geometry.padded_hw, device), geometry

    def warm_up(self) -> None:
        """Compile now what the methods above would compile on their first call, so that no image waits for it."""
        self.to_batch([self.resize(Image.new("RGB", (4, 4)))], self.geometry(4, 4).padded_hw)

    def padding_values(self) -> np.ndarray:
        """float32 [3]: 0 after normalisation, which is the mean colour and not black."""
        return np.zeros(3, np.float32)

    def normalized_values(self) -> np.ndarray:
        """float32 [3, 256]: the normalised value of each uint8, computed in the mode's own order of operations."""
        values_V = np.arange(256, dtype=np.float32)
        if self.mode == "hf":
            return hf_values(np.tile(values_V, (3, 1)), self.rescale_factor, self.mean, self.std)
        # detectron2 subtracts and divides in float32 on the scale of the pixels (123.675 = 0.485 * 255, ...)
        mean_C1, std_C1 = (np.array(x)[:, None] / self.rescale_factor for x in (self.mean, self.std))
        return (values_V - mean_C1.astype(np.float32)) / std_C1.astype(np.float32)


def _rounded_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """detectron2's `ResizeShortestEdge`, with the same float operations, but at least 1 pixel where it gives 0."""
    scale = shortest / min(height, width)
    if height < width:
        new_height, new_width = float(shortest), scale * width
    else:
        new_height, new_width = scale * height, float(shortest)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def truncated_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """transformers' `get_size_with_aspect_ratio`, but at least 1 pixel where it gives 0 and fails."""
    short, long = min(height, width), max(height, width)
    exact_short: float = shortest
    if long / short * shortest > longest:
        exact_short = longest * short / long
    new_short = round(exact_short)
    # If one edge already fits, the image stays as it is, even if the other edge exceeds `longest`.
    new_long = long if new_short == short else int(exact_short * long / short)
    new_short, new_long = max(1, new_short), max(1, new_long)
    return (new_long, new_short) if width < height else (new_short, new_long)


def _truncated_within(height: int, width: int, max_height: int, max_width: int) -> tuple[int, int]:
    """transformers' `get_image_size_for_max_height_width`, but at least 1 pixel where it gives 0 and fails."""
    scale = min(max_height / height, max_width / width)
    return max(1, int(height * scale)), max(1, int(width * scale))


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor


def _field_error(field: str, value: object, reason: str) -> ValueError:
    return ValueError(f"preprocessor_config.json: {field} = {excerpt(value)}: {reason}")


def _is_pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def _file_size(config: Mapping[str, Any]) -> ImageSize | None:
    """The file's size. A missing longest edge means 1333, as in the transformers versions that wrote such files."""
    size = config.get("size")
    max_size = config.get("max_size")
    if size is None and max_size is None:
        return None
    if size is None:
        size = {"shortest_edge": PAPER_EDGES[0]}
    elif isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
        if shortest is not None and not longest:
            longest = PAPER_EDGES[1] if max_size is None else max_size
        forms: dict[str, tuple[Any, Any]] = {
            "edges": (shortest, longest),
            "within_hw": (size.get("max_height"), size.get("max_width")),
            "fixed_hw": (size.get("height"), size.get("width")),
        }
        if shortest is None and longest is not None:
            forms["within_hw"] = (longest, longest)
        try:
            for form, lengths in forms.items():
                if all(map(_is_pixels, lengths)):
                    return ImageSize(**{form: lengths})
        except ValueError as error:
            raise _field_error("size", size, str(error)) from None
    forms_of_text = (
        '{"shortest_edge": 800, "longest_edge": 1333}, {"longest_edge": 1333}, {"max_height": 800, "max_width": 1333} '
        'or {"height": 384, "width": 384}'
    )
    raise _field_error("size", config.get("size"), f"expected the form {forms_of_text}")


def _size_dict(size: ImageSize) -> dict[str, int]:
    if size.edges is not None:
        return {"shortest_edge": size.edges[0], "longest_edge": size.edges[1]}
    if size.within_hw is not None:
        return {"max_height": size.within_hw[0], "max_width": size.within_hw[1]}
    assert size.fixed_hw is not None
    return {"height": size.fixed_hw[0], "width": size.fixed_hw[1]}


def read_pad_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """`pad_size` of a `preprocessor_config.json` as (height, width). ValueError if it has another form."""
    value = config.get("pad_size")
    if value is None:
        return None
    lengths: Any = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else value
    lengths = (lengths, lengths) if _is_pixels(lengths) else lengths
    if not isinstance(lengths, (list, tuple)) or len(lengths) != 2 or not all(map(_is_pixels, lengths)):
        raise _field_error("pad_size", value, 'expected the form {"height": 512, "width": 512}')
    if max(lengths) > MAX_PIXELS_A_SIDE:
        raise _field_error("pad_size", value, f"a side may have at most {MAX_PIXELS_A_SIDE} pixels")
    return int(lengths[0]), int(lengths[1])


def _three_numbers(
    config: Mapping[str, Any], field: str, default: tuple[float, float, float], *, positive: bool = False
) -> tuple[float, float, float]:
    value = config.get(field)
    if value is None:
        return default
    numbers = [value] * 3 if _is_number(value) else value
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise _field_error(field, value, f"expected three finite numbers from -{MAX_NUMBER:.9g} to {MAX_NUMBER:.9g}")
    if positive and min(numbers) < LEAST_SCALE:
        raise _field_error(field, value, f"must be positive, at least {LEAST_SCALE}")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))


def _rescale_factor(config: Mapping[str, Any]) -> float:
    value = config.get("rescale_factor")
    if value is None:
        return 1 / 255
    if not _is_number(value) or value < LEAST_SCALE:
        raise _field_error(
            "rescale_factor", value, f"expected a positive number from {LEAST_SCALE} to {MAX_NUMBER:.9g}"
        )
    return float(value)


def _resample(config: Mapping[str, Any]) -> int:
    value = config.get("resample")
    if value is None:
        return int(Image.Resampling.BILINEAR)
    if isinstance(value, bool) or value not in list(Image.Resampling):
        known = ", ".join(f"{filter_.value} {filter_.name.lower()}" for filter_ in sorted(Image.Resampling))
        raise _field_error("resample", value, f"not one of Pillow's filters ({known})")
    return int(value)


def _size_divisor(config: Mapping[str, Any]) -> int:
    value = config.get("size_divisor")
    if value is None:
        return NETWORK_STRIDE
    if value == 0 and not isinstance(value, bool):
        return 0
    if not _is_pixels(value) or value > MAX_DIVISOR:
        reason = f"expected a whole number of pixels up to {MAX_DIVISOR}, or 0 to round nothing"
        raise _field_error("size_divisor", value, reason)
    return int(value)
