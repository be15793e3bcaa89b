"""Paint masks from their compressed counts into one map, without a mask in memory.

Legend: H, W pixels of the image; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled
from m2f_core.masks.box import Box
from m2f_core.masks.rle import counts_bbox_xywh, decode_counts


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
