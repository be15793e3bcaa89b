"""Paint masks from their compressed counts into one map, without a mask in memory, and if possible without the map.

Legend: H, W pixels of the image; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled
from m2f_core.masks.box import Box
from m2f_core.masks.rle import LabelRuns, counts_bbox_xywh, decode_counts, read_numbers


def painted_runs(masks: Sequence[tuple[bytes, int]], height: int, width: int, background: int = 0) -> LabelRuns:
    """The map [H, W] in which the pixels of each mask have its value and all others are `background`, as its runs.

    `masks` are (counts, value) pairs; values fit into int32. ValueError if some counts are malformed or are those of a
    mask of another size, or if two masks share a pixel: `paint_counts` finds out which.
    """
    characters = np.frombuffer(b"".join(counts for counts, _ in masks), np.uint8).astype(np.int64)
    ends = np.cumsum([len(counts) for counts, _ in masks], dtype=np.int64)
    values_N = np.array([value for _, value in masks], np.int32)
    starts, stops, values, is_sound = _read_runs(characters, ends, values_N, height * width)
    if is_sound:
        order = np.argsort(starts, kind="stable")  # runs of one mask ascend: such a sort merges them
        values, lengths, is_sound = _joined(starts, stops, values, order, height * width, background)
    if not is_sound:
        raise ValueError("the masks are damaged, are not of this image, or share pixels")
    return LabelRuns(values, lengths)


def paint_counts(map_WH: NDArray[np.unsignedinteger], counts: bytes, value: int) -> int:
    """Set the pixels of a mask to `value`; how many of them were not 0 before, and lose that value.

    ValueError if the counts are malformed or are those of a mask of another size.
    """
    lengths = decode_counts(counts)
    if lengths.sum() != map_WH.size:
        raise ValueError(f"its mask has {lengths.sum()} pixels, but its image has {map_WH.size}")
    return int(_paint(map_WH.reshape(-1), lengths, value))


def decode_in_box(counts: bytes, height: int, width: int) -> tuple[Box, NDArray[np.bool_]]:
    """The smallest box around a mask of an image, and the mask's pixels in the box: large scenes hold small masks.

    ValueError if the counts are malformed, are those of another image, or hold no pixel.
    """
    x, y, w, h = map(int, counts_bbox_xywh(counts, height, width))
    if not w:
        raise ValueError("its mask is empty")
    lengths = decode_counts(counts)
    lengths[0] -= x * height
    stops = np.minimum(np.cumsum(lengths), w * height)
    colours = np.arange(lengths.size) % 2 == 1
    columns_wH = np.repeat(colours, np.diff(stops, prepend=0)).reshape(w, height)
    return Box(y, x, y + h, x + w), columns_wH.T[y : y + h]


@compiled
def _read_runs(characters, ends, values_N, num_pixels):  # type: ignore[no-untyped-def]
    """First pixel, pixel behind the last, and value of each run of ones; false if some counts are wrong."""
    starts = np.empty(characters.size, np.int64)
    stops = np.empty(characters.size, np.int64)
    values = np.empty(characters.size, np.int32)
    num_found, first = 0, 0
    for n in range(ends.size):
        lengths, num_runs, error, _ = read_numbers(characters[first : ends[n]])
        first = ends[n]
        position = 0
        for run in range(num_runs):
            stop = position + lengths[run]
            if run % 2 == 1 and stop > position:
                starts[num_found], stops[num_found], values[num_found] = position, stop, values_N[n]
                num_found += 1
            position = stop
        if error or position != num_pixels:
            return starts[:0], stops[:0], values[:0], False
    return starts[:num_found], stops[:num_found], values[:num_found], True


@compiled
def _joined(starts, stops, values, order, num_pixels, background):  # type: ignore[no-untyped-def]
    """Values and lengths of the runs of the whole map; false if two runs share a pixel."""
    of_runs = np.empty(2 * order.size + 1, np.int32)
    lengths = np.empty(2 * order.size + 1, np.uint32)
    num_runs, position = 0, 0
    for place in range(order.size + 1):
        is_end = place == order.size
        start = num_pixels if is_end else starts[order[place]]
        if start < position:
            return of_runs[:0], lengths[:0], False
        for is_mask in range(2):  # what lies before the mask, then the mask
            stop = start if not is_mask else position if is_end else stops[order[place]]
            if stop > position:
                value = background if not is_mask else values[order[place]]
                if num_runs and of_runs[num_runs - 1] == value:
                    lengths[num_runs - 1] += np.uint32(stop - position)
                else:
                    of_runs[num_runs], lengths[num_runs] = value, stop - position
                    num_runs += 1
                position = stop
    return of_runs[:num_runs], lengths[:num_runs], True


@compiled
def _paint(pixels, lengths, value):  # type: ignore[no-untyped-def]
    taken, position = 0, 0
    for run in range(lengths.size):
        stop = position + lengths[run]
        if run % 2 == 1:
            for pixel in range(position, stop):
                if pixels[pixel] != 0:
                    taken += 1
                pixels[pixel] = value
        position = stop
    return taken
