"""Images for a network that takes squares of one size only: padded with black, or cut into windows.

Padded, an image keeps its aspect ratio, its longer edge gets the side of the square, and the rest of the square is
black before the pixels are normalised. Cut, the shorter edge gets the side of the square, and squares that overlap as
little as they can cover the longer edge.

The two modes differ in sizes and in the last bits of pixels: `reference` is as in EoMT's own code
(https://github.com/tue-mps/eomt), `hf` as in transformers' `EomtImageProcessorPil`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from m2f_core.config.fields import excerpt
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor, truncated_edges
from m2f_core.images.image_size import MAX_LONGEST_EDGE, ImageSize

MAX_WINDOWS = 32  # of an image; one of usual shape has two or three


@dataclass(frozen=True)
class SquareProcessor(ImageProcessor):
    """`side`: pixels of a side of the square. `cuts`: into windows; otherwise images are padded."""

    side: int = 640
    cuts: bool = False
    training_padding: ClassVar[int] = 0  # black, as the authors' datasets/transforms.py pads

    @classmethod
    def read(
        cls, config: Mapping[str, Any] | None, mode: str, image_size: ImageSize | None, side: int, cuts: bool
    ) -> SquareProcessor:
        """Read the content of a `preprocessor_config.json`; None means transformers' defaults.

        ValueError names a field that is wrong, or says that the size is not the side of the square.
        """
        config = config or {}
        square = f"this model takes squares of {side}x{side} pixels alone, for which it has learned its positions"
        if image_size is not None and set(image_size.fixed_hw or image_size.edges or ()) != {side}:
            raise ValueError(f"image size {image_size}: {square}; leave the image size out")
        if config.get("do_resize") is False:
            raise ValueError(f"preprocessor_config.json: do_resize = false: {square}")
        if not _is_side(config.get("size"), side):
            raise ValueError(f"preprocessor_config.json: size = {excerpt(config['size'])}: {square}")
        longest = min(MAX_WINDOWS * side, MAX_LONGEST_EDGE) if cuts else side
        own = {"size": {"shortest_edge": side, "longest_edge": longest}, "pad_size": None, "size_divisor": 0}
        read = ImageProcessor.from_preprocessor_config({**config, **own}, mode)
        return cls(**{f.name: getattr(read, f.name) for f in fields(read)}, side=side, cuts=cuts)

    def check_crop(self, crop_hw: tuple[int, int] | None) -> None:
        if crop_hw is None and self.cuts:
            raise ValueError(f"whole images are no squares; this model takes crops of {self.side}x{self.side} pixels")
        if crop_hw not in (None, (self.side, self.side)):
            height, width = crop_hw
            raise ValueError(f"{height}x{width}: this model takes crops of {self.side}x{self.side} pixels alone")

    def to_preprocessor_config(self) -> dict[str, Any]:
        return {
            "image_processor_type": "EomtImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.side, "longest_edge": None if self.cuts else self.side},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_split_image": self.cuts,
            "do_pad": not self.cuts,
        }

    def geometry(self, height: int, width: int) -> ImageGeometry:
        """ValueError if the image has so long a side that it would be cut into more than `MAX_WINDOWS` windows."""
        assert height > 0 and width > 0
        square_hw = (self.side, self.side)
        if self.mode == "hf":
            longest = MAX_WINDOWS * self.side * 2 if self.cuts else self.side
            resized_hw = truncated_edges(height, width, self.side, longest)
        else:
            fit = max if self.cuts else min
            factor = fit(self.side / height, self.side / width)
            resized_hw = max(1, round(height * factor)), max(1, round(width * factor))
        if not self.cuts:
            return ImageGeometry((height, width), resized_hw, square_hw)
        starts = self._starts(max(resized_hw))
        windows = tuple((start, 0) if resized_hw[0] > resized_hw[1] else (0, start) for start in starts)
        return ImageGeometry((height, width), resized_hw, square_hw, windows)

    def _starts(self, longer: int) -> list[int]:
        """The first row or column of each window along the longer edge."""
        num_windows = math.ceil(longer / self.side)
        if num_windows > MAX_WINDOWS:
            raise ValueError(
                f"the image is {longer / self.side:.0f} times as long as it is wide, but at most {MAX_WINDOWS} windows "
                "of an image are segmented"
            )
        overlap = (num_windows * self.side - longer) / max(1, num_windows - 1)
        starts = [int(number * (self.side - overlap)) for number in range(num_windows)]
        if self.mode != "hf":
            # In one or two of a hundred sizes, rounding leaves the last line out: then the authors divide 0 by 0 there,
            # and transformers, which `hf` follows, gives its pixels the first class.
            starts[-1] = longer - self.side
        return starts

    @property
    def _divisor(self) -> int:
        return self.size_divisor  # nothing is rounded

    def padding_values(self) -> np.ndarray:
        """float32 [3]: black."""
        return np.ascontiguousarray(self.normalized_values()[:, 0])

    def normalized_values(self) -> np.ndarray:
        if self.mode == "hf":
            return super().normalized_values()
        # The authors divide by 255 and normalise in float32.
        values_V = np.arange(256, dtype=np.float32) / np.float32(1 / self.rescale_factor)
        mean_C1, std_C1 = (np.array(x, np.float32)[:, None] for x in (self.mean, self.std))
        return (values_V - mean_C1) / std_C1


def _is_side(size: object, side: int) -> bool:
    """Whether the shorter edge in a file's `size` is the side of the square. The longest edge is not read: a file for
    windows has none.
    """
    if isinstance(size, Mapping):
        return all(size.get(name) in (None, side) for name in ("shortest_edge", "height", "width"))
    return size in (None, side, [side, side])
