"""How a large image is cut into overlapping tiles, and which pixels each tile decides.

Along one axis, by example: length 10, SIZE 4, OVERLAP 2. A tile begins every SIZE - OVERLAP pixels; the last tile is
moved back to end with the image, so that all tiles of an image have one size and share batches.

    pixel   0 1 2 3 4 5 6 7 8 9
    tile 0  # # # .                  #: the tile's core, the pixels that it decides
    tile 1      . # # .              .: shared with a neighbour, which decides them
    tile 2          . # # .
    tile 3              . # # #

The border between two cores lies in the middle of the pixels that two neighbouring tiles share: there, a pixel belongs
to the tile whose edge is farther away. An image is cut along both axes, so a tile has up to eight neighbours.

Nothing heavy is imported here, so that a command line can parse a tiling at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from m2f_core.images.image_size import MAX_PIXELS_A_SIDE
from m2f_core.masks.box import Box

MIN_TILE_SIDE = 32  # a smaller tile shows nothing to a network whose coarsest cells have 32 pixels
_WRITTEN = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


@dataclass(frozen=True)
class Tile:
    """One tile of an image, in pixels of the image. The cores of all tiles are disjoint and cover the image."""

    box: Box
    core: Box
    place: tuple[int, int]  # row and column in the grid of tiles


@dataclass(frozen=True)
class Tiling:
    """Tiles of `size` x `size` pixels, of which neighbours share `overlap` columns or rows, the last two maybe more."""

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not MIN_TILE_SIDE <= self.size <= MAX_PIXELS_A_SIDE:
            raise ValueError(f"a tile must have {MIN_TILE_SIDE} to {MAX_PIXELS_A_SIDE} pixels a side, not {self.size}")
        if not 1 <= self.overlap <= self.size // 2:
            raise ValueError(
                f"tiles of {self.size} pixels must overlap by 1 to {self.size // 2} pixels, not {self.overlap}"
            )

    @classmethod
    def parse(cls, text: str) -> "Tiling":
        """Read "2048:256" (size:overlap); `str` is the inverse."""
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not SIZE:OVERLAP in pixels, such as 2048:256")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.size}:{self.overlap}"

    def cuts(self, height: int, width: int) -> bool:
        """Whether an image of this size is cut. Otherwise it is one tile, which is the image."""
        return max(height, width) > self.size

    def tile_hw(self, height: int, width: int) -> tuple[int, int]:
        """The size of every tile of an image of this size."""
        return min(self.size, height), min(self.size, width)

    def tiles(self, height: int, width: int) -> tuple[Tile, ...]:
        """The tiles of an image, row by row."""
        return tuple(
            Tile(Box(top, left, bottom, right), Box(core_top, core_left, core_bottom, core_right), (row, column))
            for row, (top, bottom, core_top, core_bottom) in enumerate(self._along(height))
            for column, (left, right, core_left, core_right) in enumerate(self._along(width))
        )

    def _along(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """(start, stop, start of the core, stop of the core) of the tiles along one axis."""
        size, stride = min(self.size, length), self.size - self.overlap
        starts = [*range(0, length - size, stride), length - size]
        # A tile ends behind the start of the next one, because the overlap is at least one pixel.
        borders = [(start + size + following) // 2 for start, following in pairwise(starts)]
        for start, core_start, core_stop in zip(starts, [0, *borders], [*borders, length], strict=True):
            yield start, start + size, core_start, core_stop


def neighbours(tiles: tuple[Tile, ...]) -> Iterator[tuple[int, int, Box]]:
    """Each pair of tiles beside, above or diagonally next to each other, once: both indices, and what they share."""
    at = {tile.place: index for index, tile in enumerate(tiles)}
    for index, tile in enumerate(tiles):
        row, column = tile.place
        for place in ((row, column + 1), (row + 1, column - 1), (row + 1, column), (row + 1, column + 1)):
            other = at.get(place)
            if other is not None and (strip := tile.box.common(tiles[other].box)) is not None:
                yield index, other, strip
