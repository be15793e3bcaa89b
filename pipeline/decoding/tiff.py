"""TIFFs that Pillow refuses or reads wrongly, decoded by tifffile: other layouts, depths and byte orders.

Pixels become RGB by the rules of `decode`: the high byte of whole numbers, alpha dropped (colours that were multiplied
with it are divided again), WhiteIsZero inverted. Signed numbers, floats, 32 bits and other colour spaces are refused.
"""

import io
import logging
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ErrorCode, ImageError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the ImageError carries the reason

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
SEPARATE = 2  # planes
ASSOCIATED = 1  # alpha with which the colours are multiplied
DEFLATE = (8, 32946, 50013)
DECODABLE = (1, 32773, *DEFLATE)  # none, PackBits and deflate, which tifffile decodes without other libraries
_HEADER_BYTES = 8  # 16 in a BigTIFF
_USUAL_TILE_PIXELS = 1024 * 1024  # are never too many
_SAMPLES_OF_A_PIXEL, _BYTES_OF_A_SAMPLE = 4, 2  # of the largest usual image, RGBA of 16 bits


def pillow_reads_wrongly(planar: int, bits: tuple[int, ...], formats: tuple[int, ...]) -> bool:
    """Whether Pillow's pixels would be noise, or none: it takes each of separate planes for 8 bits of gray, red, green,
    blue or alpha, and signed bytes for unsigned ones.
    """
    return (planar == 2 and (any(number != 8 for number in bits) or len(bits) == 2)) or (
        2 in formats and all(number == 8 for number in bits)
    )


def check_offsets(offsets: Iterable[int]) -> None:
    """ImageError if a strip or tile lies in the file's header, where a reader would take the header for pixels.

    Some writers leave 0 there; in sparse files 0 stands for a strip or tile that the file leaves out.
    """
    if any(offset < _HEADER_BYTES for offset in offsets):
        raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: the file does not say where its pixels are")


def check_tile(tile_pixels: int, max_pixels: int) -> None:
    """ImageError if a tile is too large: a small file may declare huge tiles, and a decoder allocates a whole tile."""
    if tile_pixels > max(max_pixels, _USUAL_TILE_PIXELS):
        raise ImageError(ErrorCode.TOO_LARGE, f"TIFF tiles have {tile_pixels:,} pixels, the limit is {max_pixels:,}")


class OtherTiff:
    """The first page of a TIFF, of which the header is read. ImageError if there is none."""

    format = None  # Pillow has not opened it

    def __init__(self, data: bytes):
        self._data = data
        self._page = first_page(data)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow gives them."""
        return self._page.imagewidth, self._page.imagelength

    def decode(self, max_pixels: int) -> Image.Image:
        """RGB. ImageError if the pixels have no defined meaning, are not all there, or need more memory than an image
        of `max_pixels`.
        """
        page = self._page
        what = f"TIFF: {page.dtype} pixels, photometric {int(page.photometric)}"
        if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
            raise ImageError(ErrorCode.UNSUPPORTED, f"{what} have no defined range for RGB")
        if int(page.photometric) not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            raise ImageError(
                ErrorCode.UNSUPPORTED, f"{what} are of a colour space that is not supported in this layout"
            )
        if int(page.compression) not in DECODABLE:
            raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF: compression {int(page.compression)} in this layout")
        check_offsets(page.dataoffsets)
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            if length <= 0 or offset + length > len(self._data):
                raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: the file ends before its pixels do")
        _check_memory(page, self._data, max_pixels)
        channels_HWC = _channels_last(page.asarray(), page)
        return Image.fromarray(_to_rgb(channels_HWC, page))


def _check_memory(page: Any, data: bytes, max_pixels: int) -> None:
    check_tile(page.tilelength * page.tilewidth, max_pixels)
    most_samples = max(max_pixels, _USUAL_TILE_PIXELS) * _SAMPLES_OF_A_PIXEL
    samples = page.imagelength * page.imagewidth * page.samplesperpixel
    if samples > most_samples:
        raise ImageError(
            ErrorCode.TOO_LARGE, f"TIFF: the pixels have {samples:,} samples, the limit is {most_samples:,}"
        )
    if int(page.compression) in DEFLATE:  # tifffile inflates whatever is there
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            check_inflated(data[offset : offset + length], most_samples * _BYTES_OF_A_SAMPLE)


def check_inflated(deflated: bytes, most: int) -> None:
    """ImageError if a deflated strip or tile has more than `most` bytes."""
    if _inflates_beyond(deflated, most):
        raise ImageError(ErrorCode.TOO_LARGE, f"TIFF: a strip or tile has more than {most:,} bytes")


def _inflates_beyond(deflated: bytes, most: int) -> bool:
    inflater, number = zlib.decompressobj(), 0
    while deflated and not inflater.eof and number <= most:
        try:
            number += len(inflater.decompress(deflated, _USUAL_TILE_PIXELS))
        except zlib.error:
            return False  # tifffile says so
        deflated = inflater.unconsumed_tail
    return number > most


def first_page(data: bytes) -> Any:
    """The first page, as tifffile describes it. ImageError if there is none."""
    try:
        return tifffile.TiffFile(io.BytesIO(data)).pages[0]
    except (tifffile.TiffFileError, IndexError, ValueError) as error:
        raise ImageError(ErrorCode.DECODE_FAILED, f"TIFF: {' '.join(str(error).split())[:200]}") from None


def _channels_last(array: NDArray[Any], page: Any) -> NDArray[Any]:
    """[H, W, C]; the first of several slices."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or "S" not in page.axes:
        raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF: pixels of shape {array.shape}")
    return np.moveaxis(array, page.axes.index("S"), -1)


def _to_rgb(channels_HWC: NDArray[Any], page: Any) -> NDArray[np.uint8]:
    num_colours = 3 if int(page.photometric) == RGB else 1
    if channels_HWC.shape[-1] < num_colours:
        raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF: {channels_HWC.shape[-1]} channels of RGB")
    values_HWC = channels_HWC[..., :num_colours].astype(np.float64)
    highest = (1 << int(page.bitspersample)) - 1
    if ASSOCIATED in map(int, page.extrasamples):
        alpha_HW1 = channels_HWC[..., num_colours : num_colours + 1]
        values_HWC = np.divide(values_HWC * highest, alpha_HW1, out=np.zeros_like(values_HWC), where=alpha_HW1 != 0)
    whole_HWC = np.minimum(values_HWC, highest).astype(np.uint32)
    if int(page.photometric) == WHITE_IS_ZERO:
        whole_HWC = highest - whole_HWC
    bits = int(page.bitspersample)
    bytes_HWC = (whole_HWC >> (bits - 8) if bits >= 8 else whole_HWC * 255 // highest).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3)))
