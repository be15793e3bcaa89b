"""Runs of a mask in row-major order, as most formats but COCO have them, and the packed bits of Label Studio's brush.

Legend: H, W pixels of the mask; R runs.
"""

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled

_CHANNELS = 4  # a brush is an image of red, green, blue and alpha
_SIZES = (3, 4, 8, 16)  # bits of a run's length, of which a run uses the first that suffices
_WORD = 8
_ON = 255


def row_runs(mask_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths [R] of the runs along the rows; the first is outside the mask, and 0 if the first pixel is inside."""
    pixels = np.ascontiguousarray(mask_HW).reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(changes, prepend=0, append=pixels.size)
    return np.concatenate([[0], lengths]) if pixels[0] else lengths


def brush_rle(mask_HW: NDArray[np.bool_]) -> list[int]:
    """The bytes of Label Studio's brush RLE: the mask as an RGBA image whose four channels are 255 inside, else 0.

    The format, in bits: number of values (32), word size - 1 (5), four run sizes - 1 (4 each), then for each run 1, the
    index of a run size (2), length - 1 in that size, and the value (8). The same bytes as `label_studio_sdk`'s
    `encode_rle` gives, which writes a byte of zeros behind the last run even if the bits end with a byte.
    """
    if mask_HW.size * _CHANNELS >= 2**32:
        raise ValueError(f"a brush holds up to 2^30 - 1 pixels, not {mask_HW.size}")
    lengths = row_runs(mask_HW) * _CHANNELS
    return _packed(lengths, np.array(_SIZES, np.int64)).tolist()


@compiled
def _packed(lengths, sizes):  # type: ignore[no-untyped-def]
    total = 0
    most = 32 + 5 + 16 + 16
    for length in lengths:
        total += length
        most += (length // 65536 + 1) * (3 + 16 + 8)
    out = np.zeros(most // 8 + 2, np.uint8)
    place = _put(out, 0, total, 32)
    place = _put(out, place, _WORD - 1, 5)
    for size in sizes:
        place = _put(out, place, size - 1, 4)
    for run in range(lengths.size):
        left = lengths[run]
        while left > 0:
            part = min(left, 65536)
            left -= part
            index = 0
            while part > 1 << sizes[index]:
                index += 1
            place = _put(out, place, 1, 1)
            place = _put(out, place, index, 2)
            place = _put(out, place, part - 1, sizes[index])
            place = _put(out, place, _ON if run % 2 else 0, _WORD)
    return out[: place // 8 + 1]


@compiled
def _put(out, place, value, bits):  # type: ignore[no-untyped-def]
    """Write `bits` bits of a value at bit `place`, the highest first; the place behind them."""
    for bit in range(bits):
        if value >> (bits - 1 - bit) & 1:
            out[(place + bit) // 8] |= 1 << (7 - (place + bit) % 8)
    return place + bits
