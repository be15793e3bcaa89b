"""Paint masks from their compressed counts into one map, without a mask in memory.

Legend: H, W pixels of the image; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled
from m2f_core.masks.rle import decode_counts


def paint_counts(map_WH: NDArray[np.unsignedinteger], counts: bytes, value: int) -> int:
    """Set the pixels of a mask to `value`; how many of them were not 0 before, and lose that value.

    ValueError if the counts are malformed or are those of a mask of another size.
    """
    lengths = decode_counts(counts)
    if lengths.sum() != map_WH.size:
        raise ValueError(f"its mask has {lengths.sum()} pixels, but its image has {map_WH.size}")
    return int(_paint(map_WH.reshape(-1), lengths, value))


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
