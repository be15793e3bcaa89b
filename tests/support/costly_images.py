"""Small files that cost a decoder much time or memory: what a header declares, repeated or nested.

Each is a sound file of its format, or close to one, so that a decoder does not refuse it before the cost.
"""

import io
import struct
import zlib

from PIL import Image


def segment(marker: int, content: bytes) -> bytes:
    """One segment of a JPEG or of a JPEG 2000 codestream."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_with_scans(side: int, num_scans: int) -> bytes:
    """A gray progressive JPEG of side x side pixels, whose scans say in few bytes that no block changes.

    Each scan is a row of "end of band for 32,767 blocks": a code of one bit and 14 bits of 1.
    """
    code_of_one_bit = bytes([1]) + bytes(15)
    num_blocks = (-(-side // 8)) ** 2
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([16] * 64))
    head += segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    head += segment(0xC4, b"\x00" + code_of_one_bit + b"\x00") + segment(0xC4, b"\x10" + code_of_one_bit + b"\xe0")
    first = segment(0xDA, b"\x01\x01\x00" + b"\x00\x00\x00") + bytes(-(-num_blocks // 8))
    num_runs = -(-num_blocks // 32_767)
    bits = ("0" + "1" * 14) * num_runs
    bits += "1" * (-len(bits) % 8)
    band = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + first + (segment(0xDA, b"\x01\x01\x00" + b"\x01\x3f\x00") + band) * (num_scans - 1) + b"\xff\xd9"


def jpeg_with_segments(num_segments: int) -> bytes:
    """A small JPEG with that many empty comments."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    return data[:2] + segment(0xFE, b"") * num_segments + data[2:]


def tiff(fields: dict[int, int], content: bytes) -> bytes:
    """A TIFF of one strip or tile, which begins after the header; 273 or 324 and 279 or 325 are filled in here."""
    tiled = 322 in fields
    fields = fields | {324 if tiled else 273: 8, 325 if tiled else 279: len(content)}
    content += b"\0" * (len(content) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    return (
        b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(fields)) + entries + bytes(4)
    )


def tiff_of_jpeg(side: int, num_scans: int) -> bytes:
    jpeg = jpeg_with_scans(side, num_scans)
    return tiff({256: side, 257: side, 258: 8, 259: 7, 262: 1, 277: 1, 278: side}, jpeg)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, more: bytes = b"") -> bytes:
    """Gray, 8 bits; `pixels` as the stream inflates, with a filter byte before each row."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")


def thin(format_name: str, width: int, height: int) -> bytes:
    """An image that is one pixel wide or high."""
    if format_name == "PNG":
        return png(width, height, bytes((width + 1) * height))
    if format_name == "BMP":
        stride = (width * 3 + 3) // 4 * 4
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54 + stride * height, 0, 0, 54) + head + bytes(stride * height)
    if format_name == "PPM":
        return b"P5 %d %d 255 " % (width, height) + bytes(width * height)
    if format_name == "TIFF":
        fields = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 278: height}
        return tiff(fields, zlib.compress(bytes(width * height)))
    assert format_name == "JPEG2000"
    return jpeg_2000(width, height)


def jpeg_2000(
    width: int,
    height: int,
    tile: tuple[int, int] | None = None,
    levels: int = 0,
    code_block: tuple[int, int] = (6, 6),
    precinct: int = 15,
) -> bytes:
    """A gray codestream whose tiles have no data; `code_block` and `precinct` are powers of two."""
    tile_width, tile_height = tile or (width, height)
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, 1) + b"\x07\x01\x01"
    coding = struct.pack(">BBHBBBBBB", 1, 0, 1, 0, levels, code_block[0] - 2, code_block[1] - 2, 0, 1)
    coding += bytes([precinct | precinct << 4] * (levels + 1))
    quantization = b"\x40" + b"\x40" * (3 * levels + 1)
    data = b"\xff\x4f" + segment(0x51, size) + segment(0x52, coding) + segment(0x5C, quantization)
    num_tiles = -(-width // tile_width) * -(-height // tile_height)
    parts = [segment(0x90, struct.pack(">HIBB", number, 14, 0, 1)) + b"\xff\x93" for number in range(num_tiles)]
    return data + b"".join(parts) + b"\xff\xd9"


def jpeg_2000_with_layers(side: int, layers: int) -> bytes:
    """A codestream that declares `layers`, of which it has one."""
    file = io.BytesIO()
    options = {"precinct_size": (128, 128), "codeblock_size": (64, 64), "num_resolutions": 3}
    Image.new("L", (side, side)).save(file, "JPEG2000", no_jp2=True, **options)
    data = file.getvalue()
    at = data.index(b"\xff\x52") + 6
    return data[:at] + struct.pack(">H", layers) + data[at + 2 :]


def gif_with_blocks(middle: bytes) -> bytes:
    """`middle` lies before the first frame."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    at = 13 + 3 * (2 << (data[10] & 7))
    return data[:at] + middle + data[at:]


def box(kind: bytes, content: bytes = b"") -> bytes:
    """Of a JP2 or AVIF."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def jp2_with_boxes(num_boxes: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG2000")
    data = file.getvalue()
    return data[:32] + box(b"free") * num_boxes + data[32:]  # after the signature and the type


def jpeg_2000_with_comments(number: int) -> bytes:
    data = jpeg_2000(8, 8)
    at = data.index(b"\xff\x52")
    return data[:at] + segment(0x64, b"") * number + data[at:]


def avif_with_items(number: int) -> bytes:
    """A second list of items, each without a place."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "AVIF")
    places = struct.pack(">IBBI", 2 << 24, 0x44, 0, number) + struct.pack(">IHHH", 1, 0, 0, 0) * number
    return file.getvalue() + box(b"meta", bytes(4) + box(b"iloc", places))


def tiff_of_strips(number: int) -> bytes:
    """8 x 8 pixels, and that many strips, which share their place."""
    fields = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items()]
    entries += [struct.pack("<HHII", tag, 4, number, 8) for tag in (273, 279)]
    content = struct.pack("<I", 64) * number
    head = b"II*\0" + struct.pack("<I", 8 + len(content)) + content
    return head + struct.pack("<H", len(entries)) + b"".join(sorted(entries)) + bytes(4)


def bigtiff_with_tags(number: int) -> bytes:
    entry = struct.pack("<HHQQ", 256, 4, 1, 8)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, number) + entry * number + bytes(8)


def avif_that_lies(real: tuple[int, int], declared: tuple[int, int]) -> bytes:
    """An AVIF whose item property says (width, height) `declared`, while the coded picture has `real`."""
    file = io.BytesIO()
    Image.new("L", real).save(file, "AVIF", quality=10, speed=10, subsampling="4:0:0")
    old, new = (b"ispe" + bytes(4) + struct.pack(">II", *size) for size in (real, declared))
    assert file.getvalue().count(old) == 1
    return file.getvalue().replace(old, new)


def bmp_run_lengths(width: int, height: int) -> bytes:
    """Every row is one pixel and "end of line", up to which Pillow fills it pixel by pixel."""
    rows = b"\1\0\0\0" * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62 + len(rows), 0, 0, 62) + head + bytes(8) + rows


def tiff_of_one_block(num_tags: int, size: int) -> bytes:
    """A TIFF whose tags all have the same `size` bytes as their value."""
    entries = b"".join(struct.pack("<HHII", 33_000 + n if n else 256, 7, size, 8) for n in range(num_tags))
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", num_tags) + entries + bytes(4)


def jpeg_with_exif(exif: bytes) -> bytes:
    """In segments that Pillow puts together."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    parts = [exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    return b"\xff\xd8" + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + file.getvalue()[2:]
