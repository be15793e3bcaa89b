"""What an image may cost beside its pixels: every limit with its reason, checked before a byte is decoded.

`max_pixels` bounds a usual image. The files here have few pixels, or few bytes, and cost seconds or gigabytes all the
same: by repetition (segments, chunks, scans), by extreme shapes, by structures that a decoder allocates for what a
header declares, or by a header that does not tell the truth. Each check reads headers alone; figures are of one core.

Legend of the formats' own words: ITU T.81 (JPEG), T.800 (JPEG 2000), AV1 bitstream 5.5 and ISO 14496-12 (AVIF).
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

from pipeline.decoding import heif
from pipeline.decoding.boxes import boxes
from pipeline.decoding.repair import jpeg_segments, png_chunks
from pipeline.errors import ErrorCode, ImageError

# The longest side of a JPEG. Pillow keeps a pointer and a block for each row (20 bytes a pixel where a row has one) and
# reads a row again with each block of the file (minutes where a row has 64 M pixels).
MAX_SIDE = 65_535
# A scan goes over each coefficient of the image: 0.07 s for 64 M pixels, from 1 kB. libjpeg writes 10, others up to 20.
MAX_JPEG_SCANS = 50
# Pillow and the checks here read segments, chunks, boxes and blocks one by one in Python: 0.1 to 0.6 s at the limit.
# Large profiles and extended XMP make hundreds of them; a PNG of 800 MB in pieces of 8 kB has 100,000 chunks.
MAX_JPEG_SEGMENTS = 50_000
MAX_PNG_CHUNKS = 100_000
MAX_GIF_BLOCKS = 100_000  # before the first frame
# Pillow makes a Python object of each strip or tile; 64 M pixels have 250,000 tiles of 16 x 16.
MAX_TIFF_STRIPS = 1_000_000
MAX_TIFF_TAGS = 4_096  # of a page; usual files have 20
# Pillow reads the header of a PNM byte by byte, comments included: 0.4 µs each.
MAX_PNM_HEADER_BYTES = 65_536
# Plain PNM and run-length BMP are decoded number by number in Python: 0.5 µs each.
MAX_SLOW_VALUES = 8_000_000
# What openjpeg allocates beside the pixels. An image of 64 M pixels with usual tiles and blocks needs 30 MiB.
MAX_JPEG_2000_BYTES = 256 << 20
_BYTES_OF_TILE, _BYTES_OF_BLOCK = 8_500, 550  # measured: a tile; a precinct or a block of code
_BYTES_OF_PACKET = 32  # it has 2, but each also takes 0.15 µs
MAX_JPEG_2000_SEGMENTS = 200_000  # of all headers; 10,000 tiles have 20,000
# Pixels of all pictures of an AVIF, in images of `max_pixels`: colour, alpha and a gain map. One has `max_pixels`.
MAX_AVIF_PICTURES = 3
MAX_AVIF_ITEMS = 10_000  # 64 M pixels have 250 cells of 512 x 512

_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_PNM_COMMENT = re.compile(rb"#[^\r\n]*(?:[\r\n]|$)")
_BMP_RUN_LENGTHS = (1, 2)
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = b"!,;"
_PLACES_OF_PIXELS = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
_CODESTREAM = b"\xff\x4f"


def _too_large(what: str, number: int, limit: int) -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, f"{what}: {number:,} are more than the limit of {limit:,}")


def _too_many(what: str, limit: int) -> ImageError:
    """Where counting all of them would cost too much."""
    return ImageError(ErrorCode.TOO_LARGE, f"{what}: {limit + 1:,} or more are more than the limit of {limit:,}")


def check_size(height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            ErrorCode.TOO_LARGE,
            f"{width * height:,} pixels (height {height}, width {width}) are more than the limit of {max_pixels:,}",
        )
    if max(height, width) > MAX_SIDE:
        raise _too_large(f"pixels of a side (height {height}, width {width})", max(height, width), MAX_SIDE)


def check_before_opening(data: bytes, format_name: str) -> None:
    """What reading the header would cost."""
    if format_name == "JPEG":
        _check_number(
            (marker for marker, _ in _until_first_scan(data)), "JPEG segments before the pixels", MAX_JPEG_SEGMENTS
        )
    elif format_name == "PNG":
        _check_number(png_chunks(data), "PNG chunks", MAX_PNG_CHUNKS)
    elif format_name == "GIF":
        _check_number(_gif_blocks(data), "GIF blocks before the pixels", MAX_GIF_BLOCKS)
    elif format_name == "TIFF":
        _check_tiff(data)
    elif format_name == "HEIF":
        heif.check_before_opening(data)
    elif format_name == "JPEG2000" and not data.startswith(_CODESTREAM):
        _codestream_at(data)
    elif format_name == "PPM" and len(data) > MAX_PNM_HEADER_BYTES:
        num_tokens = 3 if data[1:2] in b"14" else 4  # bitmaps have no highest value
        if len(_PNM_COMMENT.sub(b" ", data[:MAX_PNM_HEADER_BYTES]).split(None, num_tokens)) < num_tokens:
            raise _too_large("bytes of the header of a PNM", len(data), MAX_PNM_HEADER_BYTES)


def check_before_decoding(data: bytes, format_name: str, height: int, width: int, max_pixels: int) -> None:
    """What decoding would cost an image whose size is within the limits."""
    if format_name == "JPEG":
        _check_scans(data)
    elif format_name == "PPM" and data[1:2] in b"123":
        values = height * width * (3 if data[1:2] == b"3" else 1)
        if values > MAX_SLOW_VALUES:
            raise _too_large("numbers of a plain PNM", values, MAX_SLOW_VALUES)
    elif format_name == "BMP" and int.from_bytes(data[30:34], "little") in _BMP_RUN_LENGTHS:
        if height * width > MAX_SLOW_VALUES:
            raise _too_large("pixels of a run-length BMP", height * width, MAX_SLOW_VALUES)
    elif format_name == "JPEG2000":
        _check_jpeg_2000(data)
    elif format_name == "AVIF":
        _check_pictures(data, max_pixels)
    elif format_name == "HEIF":
        heif.check_before_decoding(data, max_pixels)


def _check_number(items: Iterator[object], what: str, limit: int) -> None:
    number = 0
    for number, _ in enumerate(items, start=1):
        if number > limit:
            raise _too_many(what, limit)


def _until_first_scan(data: bytes) -> Iterator[tuple[int, int]]:
    for marker, at in jpeg_segments(data):
        yield marker, at
        if marker == _START_OF_SCAN:
            return


def _check_scans(data: bytes) -> None:
    num_components, num_scans, progressive = 0, 0, False
    for num_segments, (marker, at) in enumerate(jpeg_segments(data), start=1):
        if marker in _START_OF_FRAME:
            progressive |= marker in _PROGRESSIVE
            num_components = data[at + 7] if at + 7 < len(data) else 0
        if marker == _START_OF_SCAN:
            num_scans += 1
            if not progressive and data[at + 2 : at + 3] == bytes([num_components]):
                return  # all components at once: libjpeg refuses another scan
        if num_scans > MAX_JPEG_SCANS:
            raise _too_many("JPEG scans", MAX_JPEG_SCANS)
        if num_segments > MAX_JPEG_SEGMENTS:
            raise _too_many("JPEG segments", MAX_JPEG_SEGMENTS)


def _gif_blocks(data: bytes) -> Iterator[int]:
    """The places of what precedes the first frame: blocks of extensions, and bytes that are none."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10:11] and data[10] & 128 else 0)
    while at < len(data) and data[at] not in (_GIF_FRAME, _GIF_END):
        yield at
        if data[at] != _GIF_EXTENSION:
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1


def _check_tiff(data: bytes) -> None:
    """The entries of the first directory, and the number of values of those that Pillow makes objects of."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    big = 43 in data[2:4]
    offset_bytes, count_bytes, entry_bytes = (8, 8, 20) if big else (4, 2, 12)
    start = 8 if big else 4
    at = int.from_bytes(data[start : start + offset_bytes], order)
    num_tags = int.from_bytes(data[at : at + count_bytes], order)
    if num_tags > MAX_TIFF_TAGS:
        raise _too_large("tags of a TIFF", num_tags, MAX_TIFF_TAGS)
    at += count_bytes
    for place in range(at, at + num_tags * entry_bytes, entry_bytes):
        entry = data[place : place + entry_bytes]
        num_values = int.from_bytes(entry[4 : 4 + offset_bytes], order)
        if int.from_bytes(entry[:2], order) in _PLACES_OF_PIXELS and num_values > MAX_TIFF_STRIPS:
            raise _too_large("strips or tiles of a TIFF", num_values, MAX_TIFF_STRIPS)


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------

_SIZE, _CODING, _CODING_OF_COMPONENT, _START_OF_TILE_PART, _START_OF_DATA = 0x51, 0x52, 0x53, 0x90, 0x93


def _check_jpeg_2000(data: bytes) -> None:
    start = 0 if data.startswith(_CODESTREAM) else _codestream_at(data)
    size: tuple[int, ...] = ()
    for marker, content in _jpeg_2000_segments(data, start + 2):
        if marker == _SIZE and len(content) >= 36:
            size = struct.unpack_from(">HIIIIIIIIH", content)
        if marker in (_CODING, _CODING_OF_COMPONENT) and size:
            needed = _jpeg_2000_bytes(size, content, marker)
            if needed > MAX_JPEG_2000_BYTES:
                raise _too_large(
                    "bytes for the tiles, precincts and blocks of a JPEG 2000", needed, MAX_JPEG_2000_BYTES
                )


def _codestream_at(data: bytes) -> int:
    return next((begin for kind, begin, _ in boxes(data, 0, len(data)) if kind == b"jp2c"), len(data))


def _jpeg_2000_segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The segments (marker, content) of the main header and of the header of each tile part."""
    next_part, number = len(data), 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        number += 1
        if number > MAX_JPEG_2000_SEGMENTS:
            raise _too_many("segments of a JPEG 2000", MAX_JPEG_2000_SEGMENTS)
        marker = data[at + 1]
        if marker == _START_OF_DATA:
            at = next_part
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_TILE_PART:
            part_bytes = int.from_bytes(data[at + 6 : at + 10], "big")
            next_part = at + part_bytes if part_bytes >= 14 else len(data)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _jpeg_2000_bytes(size: tuple[int, ...], coding: bytes, marker: int) -> int:
    """About what openjpeg allocates for the structure of an image with this size and coding segment."""
    _, right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, num_components = size
    if not tile_width or not tile_height:
        return 0  # openjpeg says so
    num_tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    component_bytes = 1 if num_components < 257 else 2
    style_at = component_bytes if marker == _CODING_OF_COMPONENT else 0
    layers = int.from_bytes(coding[2:4], "big") if marker == _CODING else 1
    parameters = coding[style_at + 1 if marker == _CODING_OF_COMPONENT else 5 :]
    if len(parameters) < 5:
        return 0
    num_levels = min(parameters[0], 32)
    block_exponents = (parameters[1] & 15) + 2, (parameters[2] & 15) + 2
    precinct_sizes = parameters[5:] if coding[style_at] & 1 else b""
    width, height = min(tile_width, right - left), min(tile_height, bottom - top)
    blocks = precincts = most_precincts = 0
    for resolution in range(num_levels + 1):
        halvings = num_levels - resolution
        w, h = (max(1, -(-side >> halvings)) for side in (width, height))
        given = precinct_sizes[resolution] if resolution < len(precinct_sizes) else 0xFF
        wide, high = given & 15, given >> 4
        here = _cells(w, wide) * _cells(h, high)
        band = 1 if resolution else 0  # above the lowest, three bands of half the size share the precincts
        across, down = (min(e, max(p - band, 0)) for e, p in zip(block_exponents, (wide, high), strict=True))
        blocks += (3 if band else 1) * _cells(-(-w >> band), across) * _cells(-(-h >> band), down)
        precincts += (3 if band else 1) * here
        most_precincts = max(most_precincts, here)
    packets = layers * most_precincts * (num_levels + 1)
    of_components = num_components * ((precincts + blocks) * _BYTES_OF_BLOCK + packets * _BYTES_OF_PACKET)
    return num_tiles * _BYTES_OF_TILE + of_components


def _cells(length: int, exponent: int) -> int:
    return -(-length >> exponent)


# --- AVIF -------------------------------------------------------------------------------------------------------------

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_SEQUENCE_HEADER = 1
_OBUS_LOOKED_AT = 16  # the sequence header is the first or the second


def _check_pictures(data: bytes, max_pixels: int) -> None:
    together = 0
    for pixels in _avif_pictures(data):
        if pixels > max_pixels:
            raise _too_large("pixels of a coded picture of an AVIF", pixels, max_pixels)
        together += pixels
        if together > MAX_AVIF_PICTURES * max_pixels:
            raise _too_large("pixels of an AVIF's pictures together", together, MAX_AVIF_PICTURES * max_pixels)


def _avif_pictures(data: bytes) -> Iterator[int]:
    """The number of pixels of each picture, by its own header: libavif decodes it before it compares."""
    for kind, begin, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            yield from _pictures_of_items(data, begin + 4, end)
        elif kind in _CONTAINERS:
            yield from _pictures_of_tracks(data, begin, end)


def _pictures_of_items(data: bytes, start: int, end: int) -> Iterator[int]:
    found = {kind: (begin, stop) for kind, begin, stop in boxes(data, start, end)}
    inside = found.get(b"idat", (0, 0))[0]
    at, stop = found.get(b"iloc", (0, 0))
    if stop - at < 8:
        return
    version, sizes = data[at], data[at + 4 : at + 6]
    offset_bytes, length_bytes = sizes[0] >> 4, sizes[0] & 15
    base_bytes, index_bytes = sizes[1] >> 4, sizes[1] & 15 if version in (1, 2) else 0
    wide = 4 if version == 2 else 2
    num_items = int.from_bytes(data[at + 6 : at + 6 + wide], "big")
    at += 6 + wide
    if num_items > MAX_AVIF_ITEMS:
        raise _too_large("items of an AVIF", num_items, MAX_AVIF_ITEMS)
    for _ in range(num_items):
        at += wide
        method = data[at + 1] & 15 if version and at + 1 < stop else 0
        at += 4 if version else 2
        base = int.from_bytes(data[at : at + base_bytes], "big")
        at += base_bytes
        num_extents = int.from_bytes(data[at : at + 2], "big")
        at += 2
        offset = int.from_bytes(data[at + index_bytes : at + index_bytes + offset_bytes], "big")
        at += num_extents * (index_bytes + offset_bytes + length_bytes)
        if at > stop:
            return
        yield _coded_pixels(data, base + offset + (inside if method == 1 else 0))


def _pictures_of_tracks(data: bytes, start: int, end: int) -> Iterator[int]:
    for kind, begin, stop in boxes(data, start, end):
        if kind in _CONTAINERS:
            yield from _pictures_of_tracks(data, begin, stop)
        elif kind in (b"stco", b"co64"):
            wide = 4 if kind == b"stco" else 8
            yield _coded_pixels(data, int.from_bytes(data[begin + 8 : begin + 8 + wide], "big"))


def _coded_pixels(data: bytes, at: int) -> int:
    """Pixels of the AV1 picture at this place; 0 if there is none."""
    for _ in range(_OBUS_LOOKED_AT):
        if at + 2 > len(data) or data[at] & 0x81 or not data[at] & 2:  # reserved bits; only OBUs with a size are here
            return 0
        kind, extended = data[at] >> 3 & 15, data[at] >> 2 & 1
        at += 1 + extended
        length = shift = 0
        for position in range(at, min(at + 8, len(data))):
            length |= (data[position] & 127) << shift
            shift += 7
            if data[position] < 128:
                break
        at += shift // 7
        if kind == _SEQUENCE_HEADER:
            return _sequence_pixels(data[at : at + min(length, 64)])
        at += length
    return 0


def _sequence_pixels(header: bytes) -> int:
    """Width x height of an AV1 sequence header."""
    bits, position = int.from_bytes(header, "big"), len(header) * 8

    def take(number: int) -> int:
        nonlocal position
        position -= number
        return bits >> position & ((1 << number) - 1) if position >= 0 else 0

    take(4)  # profile, still picture
    if take(1):  # the short form
        take(5)
    else:
        delay_bits = 0
        if take(1):  # timing
            take(64)
            if take(1):
                zeros = 0
                while position > 0 and not take(1):
                    zeros += 1
                take(zeros)
            if take(1):  # model of a decoder
                delay_bits = take(5) + 1
                take(42)
        has_delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay_bits and take(1):
                take(2 * delay_bits + 1)
            if has_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)
