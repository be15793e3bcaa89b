"""A mask of a large image as intervals of pixels: to move, crop, compare and join masks without ever drawing one.

Pixels are counted in column-major order, as in COCO RLE: pixel (y, x) of an image of height H is number x * H + y. An
interval is a first pixel and the pixel behind the last one. A mask of a tile becomes a mask of the image by splitting
its runs at the ends of the tile's columns:

    tile   0 1 1   one run of ones: pixels 2 to 4 of the tile
           0 1 0   at (top 1, left 3) of an image of height 4: pixels 17 and 18, and pixel 21

Legend: N intervals, ascending and disjoint; K intervals of many masks.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled
from m2f_core.masks.box import Box
from m2f_core.masks.rle import Rle, counts_bbox_xywh, decode_counts, encode_counts

Intervals = NDArray[np.int64]  # [2, N]: first pixels, pixels behind the last


def placed(counts: bytes, box: Box, within: Box, image_hw: tuple[int, int]) -> Intervals:
    """The mask of the tile `box` as intervals of the image, cut to `within`, a part of `box`.

    `counts` are compressed counts of a mask of the tile. An interval lies in one column. ValueError if the counts do
    not fit the tile, or `within` is no part of it.
    """
    lengths = decode_counts(counts)
    height, width = box.size_hw
    if lengths.sum() != height * width:
        raise ValueError(f"a mask of {lengths.sum()} pixels is no mask of a tile of {height} x {width}")
    if box.common(within) != within:
        raise ValueError(f"{within} is no part of {box}")
    inside = (within.top - box.top, within.left - box.left, within.bottom - box.top, within.right - box.left)
    intervals: Intervals = _place(lengths, height, image_hw[0], box.left * image_hw[0] + box.top, *inside)
    return intervals


@compiled
def _place(lengths, tile_height, image_height, first, top, left, bottom, right):  # type: ignore[no-untyped-def]
    """Go through the runs of ones column by column. `top` to `right` count from the tile's corner, pixel `first`."""
    most, position = 0, 0
    for run in range(lengths.size):
        if run % 2 == 1 and lengths[run] > 0:
            most += (position + lengths[run] - 1) // tile_height - position // tile_height + 1
        position += lengths[run]
    intervals = np.empty((2, most), np.int64)
    number, position = 0, 0
    for run in range(lengths.size):
        start, stop = position, position + lengths[run]
        position = stop
        if run % 2 == 0 or start == stop:
            continue
        for x in range(max(start // tile_height, left), min((stop - 1) // tile_height + 1, right)):
            y0 = max(start - x * tile_height, top)
            y1 = min(stop - x * tile_height, bottom)
            if y0 < y1:
                intervals[0, number] = first + x * image_height + y0
                intervals[1, number] = first + x * image_height + y1
                number += 1
    return intervals[:, :number].copy()


def num_pixels(intervals: Intervals) -> int:
    """Pixels of the mask."""
    return int((intervals[1] - intervals[0]).sum())


def num_common(one: Intervals, other: Intervals) -> int:
    """Pixels that are in both masks."""
    if one.size == 0 or other.size == 0 or one[0, 0] >= other[1, -1] or other[0, 0] >= one[1, -1]:
        return 0
    return int(_common(one, other))


@compiled
def _common(one, other):  # type: ignore[no-untyped-def]
    total, i, j = 0, 0, 0
    while i < one.shape[1] and j < other.shape[1]:
        start, stop = max(one[0, i], other[0, j]), min(one[1, i], other[1, j])
        if start < stop:
            total += stop - start
        if one[1, i] < other[1, j]:
            i += 1
        else:
            j += 1
    return total


def bounds(intervals: Intervals, image_hw: tuple[int, int]) -> Box:
    """The smallest box around a mask of at least one pixel whose intervals lie in one column each."""
    starts, lasts, height = intervals[0], intervals[1] - 1, image_hw[0]
    top, bottom = int((starts % height).min()), int((lasts % height).max()) + 1
    return Box(top, int(starts[0]) // height, bottom, int(lasts[-1]) // height + 1)


def painted(masks: Sequence[Intervals]) -> tuple[Intervals, NDArray[np.int64]]:
    """Paint masks over each other, the first on top: disjoint intervals [2, K], and the mask [K] that each comes from.

    Intervals of one mask may touch each other.
    """
    sources = np.repeat(np.arange(len(masks)), [mask.shape[1] for mask in masks])
    if sources.size == 0:
        return np.zeros((2, 0), np.int64), sources
    together = np.concatenate(masks, axis=1)
    order = np.argsort(together[0], kind="stable")
    starts, stops, found = _paint(together[0][order], together[1][order], sources[order])
    return np.stack([starts, stops]), found


@compiled
def _paint(starts, stops, sources):  # type: ignore[no-untyped-def]
    """Sweep over the pixels. A heap holds the masks at the current pixel, the topmost first."""
    most = 2 * starts.size  # each interval begins a piece, and ends one
    out_starts, out_stops, out_sources = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    number, following, position = 0, 0, starts[0]
    here = [(sources[0], stops[0])]
    following = 1
    while here:
        while following < starts.size and starts[following] <= position:
            heapq.heappush(here, (sources[following], stops[following]))
            following += 1
        source, stop = here[0]
        if stop <= position:
            heapq.heappop(here)
        else:
            end = min(stop, starts[following]) if following < starts.size else stop
            if number and out_sources[number - 1] == source and out_stops[number - 1] == position:
                out_stops[number - 1] = end
            else:
                out_starts[number], out_stops[number], out_sources[number] = position, end, source
                number += 1
            position = end
        if not here and following < starts.size:
            position = starts[following]
            here.append((sources[following], stops[following]))
            following += 1
    return out_starts[:number].copy(), out_stops[:number].copy(), out_sources[:number].copy()


def united(masks: Sequence[Intervals]) -> Intervals:
    """The mask of all pixels that are in any of the masks. Its intervals do not touch each other."""
    together = np.concatenate(masks, axis=1)
    starts, stops = together[:, np.argsort(together[0], kind="stable")]
    if starts.size == 0:
        return together
    stops = np.maximum.accumulate(stops)
    first = np.append(True, starts[1:] > stops[:-1])
    return np.stack([starts[first], stops[np.append(first[1:], True)]])


def to_rle(intervals: Intervals, image_hw: tuple[int, int], label: int) -> Rle:
    """A mask of at least one pixel, as `united` gives it, as COCO RLE."""
    ends = np.append(intervals.T.reshape(-1), image_hw[0] * image_hw[1])
    lengths = np.diff(ends, prepend=0)
    counts = encode_counts(lengths if lengths[-1] else lengths[:-1])
    return Rle(label, counts, num_pixels(intervals), counts_bbox_xywh(counts, *image_hw))


def warm_up() -> None:
    """Compile now what the functions above would compile on their first call, so that no image waits for it."""
    box = Box(0, 0, 2, 2)
    mask = placed(encode_counts(np.array([1, 2, 1])), box, box, (2, 2))
    assert num_common(mask, mask) == 2
    to_rle(united([painted([mask, mask])[0]]), (2, 2), 1)
