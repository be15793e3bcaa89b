"""PNGs of label maps, several times as fast as by Pillow: the rows of such maps are mostly equal to the row above.

Each row is written as its difference to the row above (the filter "up" of the PNG specification), so nearly all bytes
are 0. They are packed as runs of equal bytes, in the fixed code of RFC 1951, section 3.2.6: a literal, then copies from
one byte before. No other repetition is looked for.

Legend: H, W pixels of the image; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3  # colour types of the PNG specification
_UP = 2  # the filter of a row
_LONGEST = 258  # bytes of one copy
_ZLIB_HEADER = b"\x78\x01"  # deflate with a window of 32 KiB, fastest


def gray_png(labels_WH: NDArray[np.unsignedinteger], palette: Sequence[tuple[int, int, int]] | None = None) -> bytes:
    """The PNG of a map of uint8 or uint16; `palette` gives the RGB colours of values from 0 (uint8 only)."""
    num_bytes = labels_WH.dtype.itemsize
    colour = _GRAY if palette is None else _PALETTE
    return _png(_rows(labels_WH, num_bytes, True), labels_WH.shape, 8 * num_bytes, colour, palette)


def panoptic_png_bytes(ids_WH: NDArray[np.uint32]) -> bytes:
    """The PNG of segment ids below 2^24 as COCO panoptic has them: red + 256 green + 65536 blue."""
    return _png(_rows(ids_WH, 3, False), ids_WH.shape, 8, _RGB, None)


def _png(
    rows: NDArray[np.uint8],
    shape_wh: tuple[int, ...],
    bits: int,
    colour: int,
    palette: Sequence[tuple[int, int, int]] | None,
) -> bytes:
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", *shape_wh, bits, colour, 0, 0, 0))]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", bytes(value for rgb in palette for value in rgb)))
    flat = rows.reshape(-1)
    packed = _deflated(flat, _LITERALS, _COPIES)
    data = _ZLIB_HEADER + packed.tobytes() + struct.pack(">I", zlib.adler32(flat.data))
    return _SIGNATURE + b"".join([*chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@compiled
def _rows(map_WH, num_bytes, highest_first):  # type: ignore[no-untyped-def]
    """Filtered rows: the filter's number, then each pixel's bytes minus the bytes of the pixel above."""
    width, height = map_WH.shape
    rows = np.empty((height, 1 + num_bytes * width), np.uint8)
    rows[:, 0] = _UP
    for x in range(width):
        above = 0
        for y in range(height):
            value = int(map_WH[x, y])
            for n in range(num_bytes):
                shift = 8 * (num_bytes - 1 - n if highest_first else n)
                rows[y, 1 + num_bytes * x + n] = ((value >> shift) - (above >> shift)) & 255
            above = value
    return rows


# --- deflate ----------------------------------------------------------------------------------------------------------


def _reversed(code: int, num_bits: int) -> int:
    """Huffman codes are written with their highest bit first, all other numbers with their lowest."""
    return int(f"{code:0{num_bits}b}"[::-1], 2)


def _symbol(number: int) -> tuple[int, int]:
    """(bits as they are written, how many) of a literal or length symbol."""
    for first, last, num_bits, code in ((0, 143, 8, 0x30), (144, 255, 9, 0x190), (256, 279, 7, 0), (280, 287, 8, 0xC0)):
        if first <= number <= last:
            return _reversed(code + number - first, num_bits), num_bits
    raise ValueError(number)


def _copy(length: int) -> tuple[int, int]:
    """A copy of `length` bytes from one byte before: length symbol, extra bits, and distance 1, five zeros."""
    if length == _LONGEST:
        code, num_bits = _symbol(285)
        return code, num_bits + 5
    symbol, base, extra = 257, 3, 0
    while base + (1 << extra) <= length:
        base += 1 << extra
        symbol += 1
        extra = max(0, (symbol - 261) // 4)
    code, num_bits = _symbol(symbol)
    return code | (length - base) << num_bits, num_bits + extra + 5


_LITERALS = np.array([_symbol(value) for value in range(256)], np.uint64)
_COPIES = np.array([(0, 0)] * 3 + [_copy(length) for length in range(3, _LONGEST + 1)], np.uint64)


@compiled
def _deflated(data, literals, copies):  # type: ignore[no-untyped-def]
    out = np.empty(data.size * 9 // 8 + 16, np.uint8)
    held, num_held, end = np.uint64(3), np.uint64(3), 0  # the last block, in the fixed code
    place = 0
    while place < data.size:
        value = data[place]
        stop = place + 1
        while stop < data.size and data[stop] == value:
            stop += 1
        left = stop - place
        place = stop
        is_first = True
        while left > 0:
            if left >= 3 and not is_first:
                length = min(left, 258)
                held |= copies[length, 0] << num_held
                num_held += copies[length, 1]
                left -= length
            else:
                held |= literals[value, 0] << num_held
                num_held += literals[value, 1]
                left -= 1
                is_first = False
            while num_held >= 8:
                out[end] = held & np.uint64(255)
                held >>= np.uint64(8)
                num_held -= np.uint64(8)
                end += 1
    num_held += np.uint64(7)  # the symbol of the end, seven zeros
    while num_held > 0:
        out[end] = held & np.uint64(255)
        held >>= np.uint64(8)
        num_held -= min(num_held, np.uint64(8))
        end += 1
    return out[:end]
