"""The tiles of an image: of one size, with cores that partition the image, and overlaps as asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.inference.tiling import Tiling, neighbours


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    size = draw(st.integers(32, 80))
    return Tiling(size, draw(st.integers(1, size // 2)))


@given(tilings(), st.integers(1, 300), st.integers(1, 300))
def test_cores_partition_the_image_and_tiles_overlap_as_asked(tiling: Tiling, height: int, width: int) -> None:
    tiles = tiling.tiles(height, width)
    owners = np.zeros((height, width), int)
    for tile in tiles:
        assert tile.box.size_hw == tiling.tile_hw(height, width)
        assert tile.box.common(tile.core) == tile.core
        owners[tile.core.top : tile.core.bottom, tile.core.left : tile.core.right] += 1
    assert (owners == 1).all()
    assert (len(tiles) > 1) == tiling.cuts(height, width)
    strips = list(neighbours(tiles))
    for one, other, strip in strips:
        places = tiles[one].place, tiles[other].place
        assert max(abs(a - b) for a, b in zip(*places, strict=True)) == 1
        if places[0][0] == places[1][0]:
            assert strip.size_hw[1] >= tiling.overlap
        if places[0][1] == places[1][1]:
            assert strip.size_hw[0] >= tiling.overlap
    rows, columns = (1 + tile for tile in tiles[-1].place)
    assert len(tiles) == rows * columns
    assert len(strips) == rows * (columns - 1) + columns * (rows - 1) + 2 * (rows - 1) * (columns - 1)


@given(tilings(), st.integers(1, 300))
def test_a_pixel_belongs_to_the_tile_whose_edge_is_farthest(tiling: Tiling, width: int) -> None:
    """The distance to an edge of the image does not count."""
    tiles = tiling.tiles(1, width)
    for tile in tiles:
        for x in (tile.core.left, tile.core.right - 1):
            assert (
                distance(tile.box, x, width) >= max(distance(t.box, x, width) for t in tiles if is_beside(t, tile)) - 1
            )


def distance(box, x: int, width: int) -> float:
    """From the nearer edge that is none of the image; below 0 outside."""
    left = x - box.left if box.left else float("inf")
    right = box.right - 1 - x if box.right < width else float("inf")
    return min(left, right)


def is_beside(one, other) -> bool:
    return abs(one.place[1] - other.place[1]) <= 1


def test_the_example_of_the_documentation() -> None:
    tiling = Tiling.parse(" 2048:256 ")
    assert (tiling, str(tiling)) == (Tiling(2048, 256), "2048:256")
    boxes = [(tile.box.left, tile.box.right, tile.core.left, tile.core.right) for tile in tiling.tiles(100, 4000)]
    assert boxes == [(0, 2048, 0, 1920), (1792, 3840, 1920, 2896), (1952, 4000, 2896, 4000)]
    assert tiling.cuts(100, 2049) and tiling.cuts(2049, 100) and not tiling.cuts(2048, 2048)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2048", "is not SIZE:OVERLAP in pixels, such as 2048:256"),
        ("2048x256", "is not SIZE:OVERLAP"),
        ("-1:2", "is not SIZE:OVERLAP"),
        ("31:1", "must have 32 to 16384 pixels a side, not 31"),
        ("16385:1", "must have 32 to 16384 pixels a side, not 16385"),
        ("64:0", "must overlap by 1 to 32 pixels, not 0"),
        ("65:33", "must overlap by 1 to 32 pixels, not 33"),
    ],
)
def test_other_tilings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling.parse(text)
