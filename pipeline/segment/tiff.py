"""TIFFs that Pillow refuses or reads wrongly, decoded by tifffile: other layouts, depths and byte orders.

Pixels become RGB by the rules of `decode`: the high byte of whole numbers, alpha dropped (colours that were multiplied
with it are divided again), WhiteIsZero inverted. Signed numbers, floats, 32 bits and other colour spaces are refused.
"""

import io
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ErrorCode, ImageError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the ImageError carries the reason

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED = 1  # alpha with which the colours are multiplied
_UNCOMPRESSED_AND_OWN = (
    1,
    8,
    32946,
    50013,
    32773,
)  # none, deflate (three numbers), PackBits: decoded without libraries
_HEADER_BYTES = 8  # 16 in a BigTIFF


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


def measure(data: bytes) -> tuple[int, int]:
    """(height, width) of the first page. ImageError if there is none."""
    page = _page(data)
    return page.imagelength, page.imagewidth


def decode(data: bytes) -> Image.Image:
    """The first page as RGB. ImageError if its pixels have no defined meaning or are not all there."""
    page = _page(data)
    what = f"TIFF: {page.dtype} pixels, photometric {int(page.photometric)}"
    if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
        raise ImageError(ErrorCode.UNSUPPORTED, f"{what} have no defined range for RGB")
    if int(page.photometric) not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise ImageError(ErrorCode.UNSUPPORTED, f"{what} are of a colour space that is not supported in this layout")
    if int(page.compression) not in _UNCOMPRESSED_AND_OWN:
        raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF: compression {int(page.compression)} in this layout")
    check_offsets(page.dataoffsets)
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if length <= 0 or offset + length > len(data):
            raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: the file ends before its pixels do")
    array = page.asarray()
    channels_HWC = _channels_last(array, page)
    return Image.fromarray(_to_rgb(channels_HWC, page))


def _page(data: bytes) -> Any:
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
    num_colours = 3 if int(page.photometric) == _RGB else 1
    if channels_HWC.shape[-1] < num_colours:
        raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF: {channels_HWC.shape[-1]} channels of RGB")
    values_HWC = channels_HWC[..., :num_colours].astype(np.float64)
    highest = (1 << int(page.bitspersample)) - 1
    if _ASSOCIATED in map(int, page.extrasamples):
        alpha_HW1 = channels_HWC[..., num_colours : num_colours + 1]
        values_HWC = np.divide(values_HWC * highest, alpha_HW1, out=np.zeros_like(values_HWC), where=alpha_HW1 != 0)
    whole_HWC = np.minimum(values_HWC, highest).astype(np.uint32)
    if int(page.photometric) == _WHITE_IS_ZERO:
        whole_HWC = highest - whole_HWC
    bits = int(page.bitspersample)
    bytes_HWC = (whole_HWC >> (bits - 8) if bits >= 8 else whole_HWC * 255 // highest).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3)))
