"""Images that are cut into tiles: opened once, read tile by tile, and given up as soon as the last tile is read."""

import threading
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.tiling import Tiling
from pipeline.decoding.regions import Regions
from pipeline.errors import ImageError

# Images of up to so many pixels together are open at a time, so that the tiles of small ones can share batches. An
# image that has more is open alone.
PIXELS_TOGETHER = 64_000_000


class CutImage:
    """One image and what is known of its tiles. Threads read tiles; one thread collects their results."""

    def __init__(
        self,
        name: str,
        image_hw: tuple[int, int],
        tiling: Tiling,
        geometry: ImageGeometry,
        open_image: Callable[[], Regions],
    ):
        """`geometry` is that of each tile. `open_image` may raise ImageError; it is called for the first tile."""
        self.name = name
        self.image_hw = image_hw
        self.geometry = geometry
        self.tiles = tiling.tiles(*image_hw)
        self._open_image = open_image
        self._regions: Regions | ImageError | None = None
        self._lock = threading.Lock()
        self._num_to_read = len(self.tiles)

    @property
    def num_pixels(self) -> int:
        return self.image_hw[0] * self.image_hw[1]

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels of tile `index`, RGB [h, w, 3]. Each tile is read once. Raises ImageError."""
        try:
            return self._opened().read(self.tiles[index].box)
        finally:
            with self._lock:
                self._num_to_read -= 1
                if self._num_to_read == 0:
                    self._regions = None

    def _opened(self) -> Regions:
        with self._lock:
            if self._regions is None:
                try:
                    self._regions = self._open_image()
                except ImageError as error:
                    self._regions = error
            if isinstance(self._regions, ImageError):
                raise self._regions
            return self._regions


def open_together(images: Sequence[CutImage]) -> list[list[CutImage]]:
    """Groups of images whose tiles have one padded size, each of at most PIXELS_TOGETHER pixels or one image."""
    groups: list[list[CutImage]] = []
    by_size = sorted(images, key=lambda image: image.geometry.padded_hw)  # sorted() keeps the order of equal sizes
    for _, of_size in groupby(by_size, key=lambda image: image.geometry.padded_hw):
        groups.append([])
        for image in of_size:
            if groups[-1] and sum(one.num_pixels for one in groups[-1]) + image.num_pixels > PIXELS_TOGETHER:
                groups.append([])
            groups[-1].append(image)
    return groups
