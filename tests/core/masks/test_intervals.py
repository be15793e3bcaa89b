"""Masks as intervals against masks as arrays: placed, cropped, counted, painted over each other, united."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_core.masks import rle
from m2f_core.masks.box import Box
from m2f_core.masks.intervals import bounds, num_common, num_pixels, painted, placed, to_rle, united
from tests.core.masks.test_rle import blobs

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def drawn(intervals: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The mask of intervals, each pixel at most once."""
    pixels = np.zeros(size_hw[0] * size_hw[1], int)
    for start, stop in intervals.T:
        assert start < stop
        pixels[start:stop] += 1
    assert pixels.max(initial=0) <= 1
    return pixels.reshape(size_hw[::-1]).T == 1


@st.composite
def tiles_of_images(draw: st.DrawFn) -> tuple[np.ndarray, Box, Box, tuple[int, int]]:
    """The mask of a tile, the tile's box, a part of the box, the size of the image."""
    mask = draw(SIZES.flatmap(lambda size: hnp.arrays(bool, size)))
    (above, left), (below, right) = draw(st.tuples(SIZES, SIZES))
    box = Box(above - 1, left - 1, above - 1 + mask.shape[0], left - 1 + mask.shape[1])
    rows, columns = (draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)) for n in mask.shape)
    within = Box(box.top + min(rows), box.left + min(columns), box.top + max(rows), box.left + max(columns))
    return mask, box, within, (box.bottom + below - 1, box.right + right - 1)


@given(tiles_of_images())
def test_the_mask_of_a_tile_is_moved_to_its_place_and_cropped(example: tuple) -> None:
    mask, box, within, image_hw = example
    whole = np.zeros(image_hw, bool)
    whole[box.top : box.bottom, box.left : box.right] = mask
    kept = np.zeros(image_hw, bool)
    part = np.s_[within.top : within.bottom, within.left : within.right]
    kept[part] = whole[part]
    intervals = placed(rle.encode_mask(mask), box, within, image_hw)
    assert np.array_equal(drawn(intervals, image_hw), kept)
    assert np.array_equal(intervals[0] // image_hw[0], (intervals[1] - 1) // image_hw[0]), "one column each"
    assert num_pixels(intervals) == kept.sum()
    if kept.any():
        rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
        assert bounds(intervals, image_hw) == (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        found = to_rle(united([intervals]), image_hw, 7)
        assert (found.label, found.counts, found.area) == (7, rle.encode_mask(kept), kept.sum())
        assert found.bbox_xywh == rle.counts_bbox_xywh(found.counts, *image_hw)


@given(SIZES.flatmap(lambda size: st.lists(hnp.arrays(bool, size), min_size=1, max_size=5)))
def test_masks_are_compared_united_and_painted(masks: list[np.ndarray]) -> None:
    size_hw = masks[0].shape
    everything = Box(0, 0, *size_hw)
    intervals = [placed(rle.encode_mask(mask), everything, everything, size_hw) for mask in masks]
    assert num_common(intervals[0], intervals[-1]) == (masks[0] & masks[-1]).sum()
    together = united(intervals)
    assert np.array_equal(drawn(together, size_hw), np.any(masks, axis=0))
    assert np.all(together[0, 1:] > together[1, :-1]), "intervals of the union do not touch"
    topmost = np.full(size_hw, -1)
    for number, mask in reversed(list(enumerate(masks))):
        topmost[mask] = number
    pieces, sources = painted(intervals)
    assert np.all(pieces[0, 1:] >= pieces[1, :-1])
    for number in range(len(masks)):
        assert np.array_equal(drawn(pieces[:, sources == number], size_hw), topmost == number)


def test_nothing_is_painted_of_nothing() -> None:
    for masks in ([], [np.zeros((2, 0), np.int64)] * 2):
        pieces, sources = painted(masks)
        assert pieces.shape == (2, 0) and sources.shape == (0,)
    assert united([np.zeros((2, 0), np.int64)]).shape == (2, 0)
    assert num_common(np.zeros((2, 0), np.int64), np.array([[0], [4]])) == 0


def test_an_image_of_more_than_two_to_the_31_pixels() -> None:
    """60,000 x 65,000: pixel numbers beyond 32 bits."""
    image_hw, mask = (60_000, 65_000), blobs(0, 40, 30, 2) == 1
    box = Box(59_960, 64_970, 60_000, 65_000)
    intervals = placed(rle.encode_mask(mask), box, box, image_hw)
    found = to_rle(united([intervals]), image_hw, 1)
    assert found.area == mask.sum() == rle.counts_area(found.counts)
    assert rle.decode_counts(found.counts).sum() == 60_000 * 65_000
    x, y, width, height = rle.counts_bbox_xywh(rle.encode_mask(mask), 40, 30)
    assert found.bbox_xywh == (x + 64_970, y + 59_960, width, height)


@pytest.mark.parametrize(
    ("box", "within", "message"),
    [
        (Box(0, 0, 3, 3), Box(0, 0, 3, 3), "no mask of a tile of 3 x 3"),
        (Box(1, 1, 3, 4), Box(0, 1, 3, 4), "no part of"),
        (Box(1, 1, 3, 4), Box(1, 1, 3, 5), "no part of"),
    ],
)
def test_what_does_not_fit_is_refused(box: Box, within: Box, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(rle.encode_mask(np.ones((2, 3), bool)), box, within, (9, 9))
