"""What Pillow does not do with some files: leave metadata out, read channels in their declared order, notice a cut.

Every function takes the bytes of one format and costs next to nothing for usual files.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

_END_OF_IMAGE = b"\xff\xd9"
_FEWEST_ZEROS = 16  # fewer zeros at the end of a file may be the end of its pixels
# Any decoder that still wants pixels reads these bytes as such. The restart markers (0xffd0 to 0xffd7) between them are
# for a decoder that waits for the next one.
_FILLER = b"".join(
    np.random.default_rng(number).integers(0, 255, 256, dtype=np.uint8).tobytes() + bytes((0xFF, 0xD0 + number % 8))
    for number in range(24)
)
_BLOCK = 8  # pixels: the side of a block of a JPEG
_FILLED, _ROUNDING = 128, 3  # brightness of a block that libjpeg fills, and how far colours may move it

# A marker that is followed by a segment, or the end. Between them lie pixels, where 0 or a restart follows 0xff.
_MARKER = re.compile(rb"\xff+[\xc0-\xcf\xd9-\xfe]")
_PROGRESSIVE, _START_OF_SCAN = 0xC2, 0xDA

_PNG_HEAD = 8  # bytes before the first chunk
_NOT_NEEDED = frozenset((b"iCCP", b"tEXt", b"zTXt", b"iTXt"))
_ORIENTATION_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def png_without_metadata(data: bytes) -> bytes:
    """The PNG without colour profiles and texts, except for those that may hold an orientation.

    Pillow inflates them, and refuses the whole image if one has more than a megabyte.
    """
    kept, end, dropped = [data[:_PNG_HEAD]], _PNG_HEAD, False
    for kind, at, end in png_chunks(data):
        needed = kind not in _NOT_NEEDED or data[at + 8 : at + 40].startswith(_ORIENTATION_KEYWORDS)
        if needed:
            kept.append(data[at:end])
        dropped |= not needed
        if kind == b"IDAT" and not dropped:  # they come before the pixels, or cost little after them
            return data
    return b"".join([*kept, data[end:]]) if dropped else data


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin, end) of each chunk of a PNG, its length and checksum included."""
    at = _PNG_HEAD
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def jpeg_without_zeros_at_its_end(data: bytes) -> bytes:
    """The JPEG without a tail of zeros that takes the place of its end, as a download leaves that stops half way.

    Decoders read such zeros as pixels.
    """
    stripped = data.rstrip(b"\0")
    padded = len(data) - len(stripped) >= _FEWEST_ZEROS
    return stripped if padded and not stripped.endswith(_END_OF_IMAGE) else data


def jpeg_is_cut(data: bytes, image: Image.Image) -> bool:
    """Whether the pixels of a decoded JPEG end before the file says that the image ends.

    libjpeg only warns of this, which Pillow does not pass on, and fills the rest with medium gray. So only an image
    whose last block is of that brightness is looked at: with other bytes before the end marker, pixels change if they
    are cut.
    """
    left, top = (image.width - 1) // _BLOCK * _BLOCK, (image.height - 1) // _BLOCK * _BLOCK
    block = image.crop((left, top, image.width, image.height))
    brightness = np.asarray(block.convert("L") if block.mode == "RGB" else block).astype(int)
    end = data.rfind(_END_OF_IMAGE)
    if end < 0 or (abs(brightness - _FILLED) > _ROUNDING).any():
        return False
    with Image.open(io.BytesIO(data[:end] + _FILLER + data[end:]), formats=("JPEG",)) as again:
        assert isinstance(again, JpegImagePlugin.JpegImageFile)
        if again.size != image.size:
            again.draft(None, image.size)
        again.load()
        return not np.array_equal(np.asarray(again), np.asarray(image))


def jpeg_lacks_scans(data: bytes) -> bool:
    """Whether a progressive JPEG ends before the bits that its scans announce: it would decode, but coarsely.

    ITU T.81, B.2.3: a scan names its components, its coefficients (first, last) and the position of its last bit, Al; a
    later scan of the same coefficients brings the next bit. All must have come down to 0.
    """
    lowest: dict[tuple[int, int], int] = {}  # (component, coefficient) -> Al
    is_progressive = False
    for marker, at in jpeg_segments(data):
        is_progressive |= marker == _PROGRESSIVE
        if marker == _START_OF_SCAN:
            if not is_progressive:
                return False
            number = data[at + 2] if at + 2 < len(data) else 0
            first, last, bits = (*data[at + 3 + 2 * number : at + 6 + 2 * number], 0, 0, 0)[:3]
            for component in data[at + 3 : at + 3 + 2 * number : 2]:
                lowest |= {(component, coefficient): bits & 15 for coefficient in range(first, last + 1)}
    return any(lowest.values())


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, place of its length) of each segment of a JPEG up to the end of the image, which is the last one."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        at, marker = found.end(), data[found.end() - 1]
        yield marker, at
        if marker == _END_OF_IMAGE[1]:
            return
        at += int.from_bytes(data[at : at + 2], "big")


def jp2_channel_order(data: bytes) -> tuple[int, int, int] | None:
    """Channels of red, green and blue by a JP2's channel definition box; None if they are in their usual order.

    ISO 15444-1, I.5.3.6: each entry has channel, type (0: colour) and association (1, 2, 3: red, green, blue).
    """
    at = data[:4096].find(b"cdef")
    if at < 4:
        return None
    number = int.from_bytes(data[at + 4 : at + 6], "big")
    order: dict[int, int] = {}
    for entry in range(number):
        start = at + 6 + 6 * entry
        channel, kind, association = (int.from_bytes(data[start + 2 * i : start + 2 * i + 2], "big") for i in range(3))
        if kind == 0 and 1 <= association <= 3:
            order[association - 1] = channel
    if sorted(order) != [0, 1, 2] or sorted(order.values()) != [0, 1, 2] or order == {0: 0, 1: 1, 2: 2}:
        return None
    return order[0], order[1], order[2]


def netpbm_pixels(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """The pixels [H, W] or [H, W, 3] of a binary PGM or PPM that Pillow would decode in Python; None for others.

    Values are scaled as Pillow scales them. ValueError if there are too few bytes.
    """
    if not data.startswith((b"P5", b"P6")) or not image.tile or image.tile[0][0] == "raw":  # type: ignore[attr-defined]
        return None
    _, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]
    highest = int(arguments[-1]) if isinstance(arguments, tuple) else int(arguments)
    shape = (image.height, image.width, 3) if data.startswith(b"P6") else (image.height, image.width)
    dtype = np.dtype(">u2") if highest > 255 else np.dtype(np.uint8)
    wanted = int(np.prod(shape)) * dtype.itemsize
    if len(data) - offset < wanted:
        raise ValueError(f"the file ends after {len(data) - offset} of {wanted} bytes of pixels")
    values = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape)
    scaled = np.arange(highest + 1) / highest
    if len(shape) == 2 and highest > 255:  # Pillow scales gray to 16 bits, of which the high byte is used
        table = (np.minimum(65535, np.rint(scaled * 65535)).astype(np.uint32) >> 8).astype(np.uint8)
    else:
        table = np.minimum(255, np.rint(scaled * 255)).astype(np.uint8)
    return table[np.minimum(values, highest)]
