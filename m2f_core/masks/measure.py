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


def shared_pixels(
    measured: Measured,
    firsts: NDArray[np.integer],
    num_pixels: NDArray[np.integer],
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """For each of G images, whether two of its masks have a pixel in common.

    Image g has the masks firsts[g] to firsts[g + 1] (`firsts` has G + 1 numbers) and num_pixels[g] pixels. Masks that
    are not `counted` are left out.

    The pixels that lie in an odd number of masks are as many as all masks have together if and only if no pixel lies in
    two. Where the number of masks changes between odd and even is known from the ends of all runs: an end that occurs
    twice is none. So an image costs a bit for each of its pixels, and no mask is drawn.

    ValueError if a mask goes beyond the pixels of its image.
    """
    counted = np.ones(measured.faults.size, bool) if counted is None else counted
    firsts, num_pixels = np.ascontiguousarray(firsts, np.int64), np.ascontiguousarray(num_pixels, np.int64)
    is_small = num_pixels <= _MOST_BITS
    bits = np.zeros(int(num_pixels.max(initial=0, where=is_small)) // 64 + 1, np.uint64)
    shared = np.zeros(num_pixels.size, bool)
    ends = measured.starts, measured.stops
    wrong = _count_odd(*ends, measured.firsts, measured.areas, firsts, counted, num_pixels, bits, shared)
    if wrong >= 0:
        raise ValueError(f"image {wrong} has {num_pixels[wrong]} pixels, and a mask that goes beyond them")
    for image in np.flatnonzero(~is_small).tolist():
        masks = [n for n in range(firsts[image], firsts[image + 1]) if counted[n]]
        runs = [slice(measured.firsts[n], measured.firsts[n + 1]) for n in masks]
        if runs:
            shared[image] = _overlap(*(np.concatenate([of_run[run] for run in runs]) for of_run in ends))
    return shared


_MOST_BITS = 2**28  # pixels of an image: 32 MiB of bits; runs of larger images are sorted


def _overlap(starts: NDArray[np.uint32], stops: NDArray[np.uint32]) -> bool:
    """Whether any two runs overlap: sorted starts and sorted stops alternate if and only if none do."""
    return bool(np.any(np.sort(stops)[:-1] > np.sort(starts)[1:]))


@compiled
def _count_odd(starts, stops, runs_of, areas, firsts, counted, num_pixels, bits, shared):  # type: ignore[no-untyped-def]
    """Images with more pixels than `bits` has are left out. All `bits` are 0 before and after an image.

    The number of an image with a mask that does not fit the image, or -1.
    """
    one = np.uint64(1)
    for image in range(num_pixels.size):
        num_words = num_pixels[image] // 64 + 1
        if num_words > bits.size or firsts[image + 1] - firsts[image] < 2:
            continue
        area = 0
        for n in range(firsts[image], firsts[image + 1]):
            if not counted[n]:
                continue
            area += areas[n]
            if runs_of[n] < runs_of[n + 1] and np.int64(stops[runs_of[n + 1] - 1]) > num_pixels[image]:
                return image
            for run in range(runs_of[n], runs_of[n + 1]):
                start, stop = np.int64(starts[run]), np.int64(stops[run])
                bits[start >> 6] ^= one << np.uint64(start & 63)
                bits[stop >> 6] ^= one << np.uint64(stop & 63)
        odd, sign = 0, -1
        for index in range(num_words):
            word = bits[index]
            if word == 0:
                continue
            bits[index] = 0
            for bit in range(64):
                if word & (one << np.uint64(bit)):
                    odd += sign * (64 * index + bit)
                    sign = -sign
        shared[image] = odd != area
    return -1


@compiled
def _measure(characters, offsets, heights, widths, faults, areas, boxes, firsts, starts, stops):  # type: ignore[no-untyped-def]
    most = 1
    for n in range(heights.size):
        most = max(most, offsets[n + 1] - offsets[n])
    lengths = np.empty(most, np.int64)
    for n in range(heights.size):
        first = firsts[n]
        fault, count = _read_lengths(characters, offsets[n], offsets[n + 1], lengths)
        end = first
        if fault == 0:
            fault, end = _go_through(lengths, count, heights[n], widths[n], areas, boxes, n, first, starts, stops)
        faults[n] = fault
        firsts[n + 1] = end


@compiled
def _read_lengths(characters, place, behind, lengths):  # type: ignore[no-untyped-def]
    """A fault or 0, and the number of runs, whose lengths may still be wrong. Most numbers have one character."""
    count = 0
    while place < behind:
        group = np.int64(characters[place]) - 48
        place += 1
        if group < 0 or group > 63:
            return _BAD_CHARACTER, count
        if group < 32:
            number = group - ((group & 16) << 1)
        else:
            number, shift, before = group & 31, 5, group
            while True:
                if place == behind:
                    return _TRUNCATED, count
                if shift == 5 * _MAX_CHARS:
                    return _TOO_LONG, count
                before = group
                group = np.int64(characters[place]) - 48
                place += 1
                if group < 0 or group > 63:
                    return _BAD_CHARACTER, count
                number |= (group & 31) << shift
                shift += 5
                if group < 32:
                    break
            if group & 16:
                number -= np.int64(1) << shift
            if group == (31 if before & 16 else 0):
                return _NOT_SHORTEST, count  # the group before shows the sign already
        if count > 2:
            number += lengths[count - 2]
        if number < 0 or number > MAX_PIXELS:
            return _OUT_OF_RANGE, count
        lengths[count] = number
        count += 1
    return (0 if count else _EMPTY), count


@compiled
def _go_through(lengths, count, height, width, areas, boxes, n, first, starts, stops):  # type: ignore[no-untyped-def]
    """The fault of mask `n` or 0, and the place behind its last run."""
    total = height * width
    if height < 1 or width < 1 or total > MAX_PIXELS or lengths[0] > total:
        return _WRONG_TOTAL, first
    following, position, area = first, lengths[0], 0
    x0, y0, y1 = width, height, 0
    inverse = 1.0 / height
    for run in range(1, count):
        length = lengths[run]
        if length == 0:
            return _NOT_SHORTEST, first
        if length > total - position:
            return _WRONG_TOTAL, first
        if run & 1:
            starts[following] = position
            stops[following] = position + length
            following += 1
            area += length
            x = np.int64(position * inverse)  # by one too many or too few where the quotient is nearly whole
            top = position - x * height
            correction = np.int64(top >= height) - np.int64(top < 0)
            x += correction
            top -= correction * height
            bottom = top + length
            x0 = min(x0, x)
            y0 = min(y0, top if bottom <= height else 0)  # else the run goes on in the next column
            y1 = max(y1, min(bottom, height))
        position += length
    if position != total:
        return _WRONG_TOTAL, first
    areas[n] = area
    if area:
        x1 = (np.int64(stops[following - 1]) - 1) // height
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0, y0, x1 - x0 + 1, y1 - y0
    return 0, following


def warm_up() -> None:
    """Compile now what the functions above would compile on their first call."""
    counts = np.frombuffer(encode_mask(np.eye(2, dtype=bool)), np.uint8)
    measured = measure(counts, np.array([0, counts.size]), np.array([2]), np.array([2]))
    shared_pixels(measured, np.array([0, 1]), np.array([4]))
