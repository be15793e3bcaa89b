"""Area, box and runs of many COCO masks at once, straight from their compressed counts: to check tables of masks.

`rle.decode_counts`, `counts_area` and `counts_bbox_xywh` do the same for one mask; a test compares. Here a mask that is
none is not an error but a fault with a number, because one bad row must not hide the next one.

A mask is a sound one if its counts are those that `rle.encode_mask` writes: they fit the image, no run but the first is
empty, and no number takes more characters than it needs.

Legend: N masks, S bytes of all counts, K runs of ones of all masks, H, W pixels of an image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled
from m2f_core.masks.rle import MAX_PIXELS, encode_mask

# The kernel's faults. Numbers that `FAULTS` does not explain do not occur.
_EMPTY, _BAD_CHARACTER, _TOO_LONG, _OUT_OF_RANGE, _TRUNCATED, _WRONG_TOTAL, _NOT_SHORTEST = 1, 2, 3, 4, 5, 6, 7
FAULTS = {
    _EMPTY: "it has no characters",
    _BAD_CHARACTER: "it has a character outside '0' to 'o'",
    _TOO_LONG: "it has a number of more than 7 characters",
    _OUT_OF_RANGE: f"it has a run below 0 or above {MAX_PIXELS} pixels",
    _TRUNCATED: "its last number is cut off",
    _WRONG_TOTAL: "its runs do not add up to the pixels of its size",
    _NOT_SHORTEST: "it can be written with fewer characters, as pycocotools writes it",
}
_MAX_CHARS = 7  # of a number, as in rle.py


@dataclass(frozen=True, eq=False)
class Measured:
    """What N masks measure. Areas and boxes of masks with a fault are 0, and such masks have no runs."""

    faults: NDArray[np.uint8]  # [N] 0, or a key of FAULTS
    areas: NDArray[np.int64]  # [N] pixels
    boxes_xywh: NDArray[np.int64]  # [N, 4] x, y, width, height in pixels; zeros for an empty mask
    firsts: NDArray[np.int64]  # [N + 1] mask n has the runs firsts[n] to firsts[n + 1]
    starts: NDArray[np.uint32]  # [K] first pixel of each run of ones, in column-major order
    stops: NDArray[np.uint32]  # [K] the pixel behind the last


def measure(
    characters: NDArray[np.uint8],
    offsets: NDArray[np.integer],
    heights: NDArray[np.integer],
    widths: NDArray[np.integer],
) -> Measured:
    """Measure masks whose counts are `characters[offsets[n] : offsets[n + 1]]`, of images of `heights` x `widths`.

    `characters` [S] and `offsets` [N + 1] are as in a string array of Arrow. ValueError if the lengths do not fit.
    """
    number = len(offsets) - 1
    if number < 0 or len(heights) != number or len(widths) != number:
        raise ValueError(f"{len(offsets)} offsets, {len(heights)} heights and {len(widths)} widths do not fit together")
    offsets, heights, widths = (np.ascontiguousarray(a, np.int64) for a in (offsets, heights, widths))
    if number and (offsets[0] < 0 or offsets[-1] > characters.size or np.any(np.diff(offsets) < 0)):
        raise ValueError("the offsets do not lie in the characters")
    most = int(offsets[-1] - offsets[0]) // 2 + 1 if number else 0  # a run of ones has a run of zeros before it
    starts, stops = np.empty(most, np.uint32), np.empty(most, np.uint32)
    faults, areas = np.zeros(number, np.uint8), np.zeros(number, np.int64)
    boxes, firsts = np.zeros((number, 4), np.int64), np.zeros(number + 1, np.int64)
    _measure(characters, offsets, heights, widths, faults, areas, boxes, firsts, starts, stops)
    return Measured(faults, areas, boxes, firsts, starts[: firsts[-1]], stops[: firsts[-1]])


def share_pixels(starts: NDArray[np.uint32], stops: NDArray[np.uint32]) -> bool:
    """Whether masks whose runs these are, all of one image and in any order, have a pixel in common.

    Sorted starts and sorted stops alternate if and only if no two runs overlap.
    """
    return bool(np.any(np.sort(stops)[:-1] > np.sort(starts)[1:]))


@compiled
def _measure(characters, offsets, heights, widths, faults, areas, boxes, firsts, starts, stops):  # type: ignore[no-untyped-def]
    for n in range(heights.size):
        first = firsts[n]
        fault, end = _measure_one(
            characters, offsets[n], offsets[n + 1], heights[n], widths[n], areas, boxes, n, first, starts, stops
        )
        faults[n] = fault
        if fault:
            areas[n] = 0
            boxes[n, :] = 0
            end = first
        firsts[n + 1] = end


@compiled
def _measure_one(characters, begin, behind, height, width, areas, boxes, n, first, starts, stops):  # type: ignore[no-untyped-def]
    """The fault of mask `n`, and the place behind its last run."""
    if begin == behind:
        return _EMPTY, first
    total = height * width
    if height < 1 or width < 1 or total > MAX_PIXELS:
        return _WRONG_TOTAL, first
    following, run, position, area = first, 0, 0, 0
    before_last, last = 0, 0  # the lengths of the last two runs
    number, num_groups, group, group_before = 0, 0, 0, 0
    x, column = 0, 0  # the column that holds `position`, and its first pixel
    x0, x1, y0, y1 = -1, 0, height, 0
    is_shortest = True
    for i in range(begin, behind):
        group_before = group
        group = int(characters[i]) - 48
        if group < 0 or group > 63:
            return _BAD_CHARACTER, first
        if num_groups == _MAX_CHARS:
            return _TOO_LONG, first
        number |= (group & 31) << (5 * num_groups)
        num_groups += 1
        if group & 32:
            continue
        if num_groups > 1 and group == (31 if group_before & 16 else 0):
            is_shortest = False  # the group before shows the sign already
        if group & 16:
            number -= 1 << (5 * num_groups)
        if run > 2:
            number += before_last
        if number < 0 or number > MAX_PIXELS:
            return _OUT_OF_RANGE, first
        if number == 0 and run > 0:
            is_shortest = False
        if position + number > total:
            return _WRONG_TOTAL, first
        if run % 2 == 1 and number > 0:
            stop = position + number
            starts[following] = position
            stops[following] = stop
            following += 1
            area += number
            if position >= column + height:
                x = position // height
                column = x * height
            if x0 < 0:
                x0 = x
            top = position - column
            if stop <= column + height:
                y0 = min(y0, top)
                y1 = max(y1, stop - column)
            else:  # the run goes on in the next column
                y0, y1 = 0, height
                x = (stop - 1) // height
                column = x * height
            x1 = x
        position += number
        before_last, last = last, number
        run += 1
        number, num_groups, group = 0, 0, 0
    if num_groups:
        return _TRUNCATED, first
    if position != total:
        return _WRONG_TOTAL, first
    if not is_shortest:
        return _NOT_SHORTEST, first
    areas[n] = area
    if area:
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0, y0, x1 - x0 + 1, y1 - y0
    return 0, following


def warm_up() -> None:
    """Compile now what `measure` would compile on its first call."""
    counts = np.frombuffer(encode_mask(np.eye(2, dtype=bool)), np.uint8)
    measure(counts, np.array([0, counts.size]), np.array([2]), np.array([2]))
