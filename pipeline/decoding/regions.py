"""An image whose pixels are read box by box, so that no second form of the whole image is ever in memory."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.masks.box import Box
from pipeline.decoding.orientation import stored_box, upright, upright_hw


class Regions(Protocol):
    """An open image. Several threads may read."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, as `measure_image` gives them."""

    def read(self, box: Box) -> NDArray[np.uint8]:
        """The pixels of the box, RGB [h, w, 3]: those that `decode_image` gives there. Raises only ImageError."""


class WholeImage:
    """An image that Pillow has decoded, in the mode of the file: 4 bytes a pixel for RGB, 1 for gray and palettes."""

    def __init__(self, image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image], orientation: int):
        """`to_rgb` converts any part of the image."""
        self._image, self._to_rgb, self._orientation = image, to_rgb, orientation

    @property
    def size_hw(self) -> tuple[int, int]:
        return upright_hw((self._image.height, self._image.width), self._orientation)

    def read(self, box: Box) -> NDArray[np.uint8]:
        stored = stored_box(box, (self._image.height, self._image.width), self._orientation)
        part = self._image.crop((stored.left, stored.top, stored.right, stored.bottom))
        return np.asarray(upright(self._to_rgb(part), self._orientation))
