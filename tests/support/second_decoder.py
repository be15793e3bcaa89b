"""What a file shows by a second decoder, imagecodecs, which shares no Python with Pillow and has builds of its own.

imagecodecs gives what a file stores. The conversion to RGB here follows the documented rules of
`pipeline.decoding.decode`, written a second time: the first frame; alpha dropped without blending (colours that a TIFF
has multiplied with alpha are divided again); palettes and CMYK expanded; WhiteIsZero inverted; the high byte of 16
bits; the orientation of a TIFF, and of EXIF, XMP or an AVIF's boxes, applied.
"""

import io
import re
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile

_WHITE_IS_ZERO, _PALETTE, _YCBCR, _LAB = 0, 3, 6, 8  # photometric interpretations of a TIFF
_JPEG, _ASSOCIATED = 7, 1  # a compression, and a kind of alpha


class CannotDecodeError(Exception):
    """The second decoder has no pixels for this file, or pixels without a meaning in RGB; the message says why."""


def second_decoder(data: bytes) -> np.ndarray:
    """The upright image, uint8 [H, W, 3]. Raises CannotDecodeError."""
    try:
        return _reader(data)(data)
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        raise CannotDecodeError(f"{type(error).__name__}: {error}") from error


def has_reader(data: bytes) -> bool:
    """Whether the signature is that of a format that the second decoder reads."""
    try:
        return _reader(data) is not None
    except CannotDecodeError:
        return False


def _reader(data: bytes) -> Callable[[bytes], np.ndarray]:
    for signature, read in _READERS.items():
        if data.startswith(signature):
            return read
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    if data[4:8] == b"ftyp" and b"avif" in data[8:32]:
        return _avif
    raise CannotDecodeError(f"imagecodecs has no reader for {data[:8]!r}")


def _jpeg(data: bytes) -> np.ndarray:
    pixels = imagecodecs.jpeg8_decode(data)
    if pixels.shape[2:] == (4,):
        pixels = _of_cmyk(255 - pixels)  # Adobe's files hold the complement
    found = re.search(rb"Exif\0\0(.*)", data[:65_536], re.DOTALL)
    return _turned(_rgb(pixels), _exif_orientation(found[1] if found else b""))


def _png(data: bytes) -> np.ndarray:
    exif = b""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        at += 12 + length
    xmp = re.search(rb"tiff:Orientation(?:=\"|>)([1-8])", data)
    orientation = _exif_orientation(exif) if exif or xmp is None else int(xmp[1])
    return _turned(_rgb(imagecodecs.png_decode(data)), orientation)


def _webp(data: bytes) -> np.ndarray:
    exif = b""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return _turned(_rgb(imagecodecs.webp_decode(data, index=0)), _exif_orientation(exif))


def _avif(data: bytes) -> np.ndarray:
    """imagecodecs leaves the boxes irot (quarters anticlockwise) and then imir (0: upside down, 1: sideways) to us."""
    pixels = _rgb(imagecodecs.avif_decode(data, index=0))
    if (found := re.search(rb"\0\0\0\x09irot(.)", data, re.DOTALL)) is not None:
        pixels = np.rot90(pixels, found[1][0] & 3)
    if (found := re.search(rb"\0\0\0\x09imir(.)", data, re.DOTALL)) is not None:
        pixels = pixels[:, ::-1] if found[1][0] & 1 else pixels[::-1]
    return pixels


def _gif(data: bytes) -> np.ndarray:
    """By the palette, because imagecodecs paints transparent pixels black. It also makes room for later frames."""
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    return _gif_palette(data)[imagecodecs.gif_decode(data, index=0, asrgb=False)][:height, :width]


def _gif_palette(data: bytes) -> np.ndarray:
    """[256, 3]: the palette of the first frame, or that of all frames."""

    def colours(flags: int, at: int) -> np.ndarray:
        table = np.frombuffer(data, np.uint8, 3 * (2 << (flags & 7)), at).reshape(-1, 3)
        return np.concatenate([table, np.zeros((256 - len(table), 3), np.uint8)])

    at = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 128 else 0)
    while data[at] == 0x21:  # an extension: blocks, of which the last is empty
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] == 0x2C and data[at + 9] & 128:
        return colours(data[at + 9], at + 10)
    if not data[10] & 128:
        raise CannotDecodeError("a GIF without a palette")
    return colours(data[10], 13)


def _jpeg_2000(data: bytes) -> np.ndarray:
    size_marker = data.index(b"\xff\x51")
    return _rgb(imagecodecs.jpeg2k_decode(data), bits=(data[size_marker + 40] & 127) + 1)


def _bmp(data: bytes) -> np.ndarray:
    return _rgb(imagecodecs.bmp_decode(data))


def _tiff(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        photometric, bits, compression = int(page.photometric), page.bitspersample, int(page.compression)
        planar = int(page.planarconfig) == 2 and page.samplesperpixel > 1
        associated = _ASSOCIATED in map(int, page.extrasamples)
        orientation = int(page.tags.valueof("Orientation", 1))
        colormap = page.colormap
    pixels = imagecodecs.tiff_decode(data)
    if photometric == _LAB or pixels.dtype.kind not in "bu" or pixels.dtype.itemsize > 2:
        raise CannotDecodeError(f"photometric {photometric} of {pixels.dtype} has no range in RGB")
    if photometric == _YCBCR and compression != _JPEG:  # of JPEG and of CMYK libtiff makes RGB itself
        return _rgb(imagecodecs.tiff_decode(data, asrgb=True))
    pixels = np.moveaxis(pixels, 0, -1) if planar else pixels
    if photometric == _PALETTE:
        indices = pixels[..., 0] if pixels.ndim == 3 else pixels
        return _turned((colormap >> 8).astype(np.uint8).T[indices.astype(int)], orientation)
    if associated:
        pixels, bits = _rgb(pixels, bits, channels=pixels.shape[-1]), 8  # the high byte, as for any image of 16 bits
        pixels = np.minimum(pixels[..., :-1].astype(int) * 255 // np.maximum(pixels[..., -1:], 1), 255).astype(np.uint8)
    image = _rgb(pixels, bits)
    return _turned(255 - image if photometric == _WHITE_IS_ZERO else image, orientation)


_READERS: dict[bytes, Callable[[bytes], np.ndarray]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG": _png,
    b"GIF8": _gif,
    b"\xff\x4f\xff\x51": _jpeg_2000,
    b"\0\0\0\x0cjP  ": _jpeg_2000,
    b"BM": _bmp,
    b"II": _tiff,
    b"MM": _tiff,
}


def _rgb(pixels: np.ndarray, bits: int | None = None, channels: int = 3) -> np.ndarray:
    """[H, W] or [H, W, C] of `bits` bits -> uint8 [H, W, channels]: other channels dropped, one repeated."""
    bits = bits or 8 * pixels.dtype.itemsize
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype == np.bool_:
        pixels, bits = pixels.astype(np.uint8), 1
    if bits > 8:
        pixels = pixels >> (bits - 8)
    elif bits < 8:
        pixels = pixels.astype(np.uint16) * 255 // ((1 << bits) - 1)
    kept = pixels[..., :channels] if pixels.shape[-1] >= channels else pixels[..., :1]
    return np.broadcast_to(kept, (*pixels.shape[:2], channels)).astype(np.uint8)


def _of_cmyk(pixels_HW4: np.ndarray) -> np.ndarray:
    light = 255 - pixels_HW4.astype(int)
    return np.rint(light[..., :3] * light[..., 3:] / 255).astype(np.uint8)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by the table of the EXIF standard: which side of the scene the first row and column show."""
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }
    return turns[orientation](pixels) if orientation in turns else pixels


def _exif_orientation(exif: bytes) -> int:
    """By tifffile, because an EXIF block is a TIFF; 1 if the block is absent or broken."""
    try:
        with tifffile.TiffFile(io.BytesIO(exif.removeprefix(b"Exif\0\0"))) as file:
            return int(file.pages[0].tags.valueof("Orientation", 1))
    except Exception:
        return 1
