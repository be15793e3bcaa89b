"""Large TIFFs, decoded window by window: pixels equal to those of `decode`, never the whole image in memory.

tifffile decodes single strips and tiles of the usual layouts: whole numbers of 8 or 16 bits, gray or RGB, with or
without alpha that is not multiplied in, in chunky or separate planes, uncompressed, deflated or PackBits. GDAL decodes
the others (LZW, JPEG, Zstandard, ...), if the extra `geo` is installed (`geotiff`). All else, and a strip or tile that
is large by itself, is decoded as a whole by `decode`.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2f_core.masks.box import Box
from pipeline.decoding import geotiff, tiff
from pipeline.decoding.image_errors import as_image_error
from pipeline.errors import ErrorCode, ImageError

_YCBCR, _JPEG = 6, 7
_DECODED_BY_GDAL = (5, _JPEG, 34925, 50000, 50001)  # LZW, JPEG, LZMA, Zstandard, WebP
_NO_PREDICTOR, _HORIZONTAL_PREDICTOR = 1, 2
_MAX_SEGMENT_BYTES = 256 << 20  # of one strip or tile; the whole image costs less than several of these

Reader = Callable[[Box], NDArray[np.integer]]  # samples [h, w, C] of a box: gray, or red, green and blue


class TiffWindows:
    """An open TIFF. Windows of a tiled file are decoded one by one, those of a file in strips row by row of windows."""

    def __init__(self, size_hw: tuple[int, int], read_samples: Reader, is_tiled: bool, bits: int, inverted: bool):
        """`bits` of a sample, 8 or 16; `inverted`: 0 is white."""
        self.size_hw = size_hw
        self._read_samples = read_samples
        self._is_tiled = is_tiled
        self._shift = bits - 8
        self._inverted = inverted
        self._lock = threading.Lock()
        self._rows: tuple[Box, NDArray[np.uint8]] | None = None

    def read(self, box: Box) -> NDArray[np.uint8]:
        """As `Regions.read`. Of a file in strips, the rows of the last box are kept for the next box of these rows."""
        with as_image_error("TIFF"):
            if self._is_tiled:
                return self._rgb(self._read_samples(box))
            with self._lock:
                rows = Box(box.top, 0, box.bottom, self.size_hw[1])
                if self._rows is None or self._rows[0] != rows:
                    self._rows = None  # free these rows before the next are decoded
                    self._rows = rows, self._high_bytes(self._read_samples(rows))
                part = self._rows[1][:, box.left : box.right]
            return np.ascontiguousarray(np.broadcast_to(part, (*part.shape[:2], 3)))

    def _rgb(self, samples_hwC: NDArray[np.integer]) -> NDArray[np.uint8]:
        bytes_hwC = self._high_bytes(samples_hwC)
        return np.ascontiguousarray(np.broadcast_to(bytes_hwC, (*bytes_hwC.shape[:2], 3)))

    def _high_bytes(self, samples_hwC: NDArray[np.integer]) -> NDArray[np.uint8]:
        bytes_hwC = (samples_hwC >> self._shift).astype(np.uint8) if self._shift else samples_hwC.astype(np.uint8)
        return 255 - bytes_hwC if self._inverted else bytes_hwC


def open_windows(data: bytes) -> TiffWindows | None:
    """The first page of a TIFF, or None if it must be decoded as a whole. Costs are checked by `decode` before."""
    try:
        page = tiff.first_page(data)
    except ImageError:  # Pillow may read what tifffile does not
        return None
    photometric, compression = int(page.photometric), int(page.compression)
    is_ycbcr_jpeg = photometric == _YCBCR and compression == _JPEG  # GDAL and libtiff make RGB of it
    if (
        page.dtype is None
        or page.dtype.kind != "u"
        or page.bitspersample not in (8, 16)
        or page.imagedepth != 1
        or int(page.fillorder) != 1
        or _orientation(page) != 1
        or tiff.ASSOCIATED in map(int, page.extrasamples)
        or not (photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB) or is_ycbcr_jpeg)
    ):
        return None
    num_colours = 1 if photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO) else 3
    if page.samplesperpixel < num_colours or _segment_bytes(page) > _MAX_SEGMENT_BYTES:
        return None
    reader: Reader
    if compression in tiff.DECODABLE and int(page.predictor) in (_NO_PREDICTOR, _HORIZONTAL_PREDICTOR):
        reader = _Segments(page, data, num_colours).read
    elif compression in _DECODED_BY_GDAL and geotiff.is_installed():
        reader = geotiff.open_reader(data, num_colours)
    else:
        return None
    size_hw = page.imagelength, page.imagewidth
    return TiffWindows(
        size_hw, reader, page.is_tiled, int(page.bitspersample), inverted=photometric == tiff.WHITE_IS_ZERO
    )


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _segment_hw(page: Any) -> tuple[int, int]:
    """Rows and columns of a tile or strip, as the file stores it."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip or page.imagelength, page.imagelength), page.imagewidth


def _segment_bytes(page: Any) -> int:
    height, width = _segment_hw(page)
    planes = 1 if int(page.planarconfig) == tiff.SEPARATE else page.samplesperpixel
    return int(height * width * planes * page.dtype.itemsize)


class _Segments:
    """Strips or tiles, decoded one at a time by tifffile."""

    def __init__(self, page: Any, data: bytes, num_colours: int):
        self._page, self._data, self._num_colours = page, memoryview(data), num_colours
        self._segment_hw = _segment_hw(page)
        height, width = self._segment_hw
        self._grid = -(-page.imagelength // height), -(-page.imagewidth // width)
        self._is_separate = int(page.planarconfig) == tiff.SEPARATE
        planes = page.samplesperpixel if self._is_separate else 1
        if len(page.dataoffsets) < planes * self._grid[0] * self._grid[1]:
            raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: strips or tiles are missing")

    def read(self, box: Box) -> NDArray[np.integer]:
        """Samples [h, w, C] of a box."""
        (height, width), (_, across) = self._segment_hw, self._grid
        samples_hwC = np.empty((*box.size_hw, self._num_colours), self._page.dtype)
        for plane in range(self._num_colours if self._is_separate else 1):
            channels = slice(plane, plane + 1) if self._is_separate else slice(None)
            for row in range(box.top // height, -(-box.bottom // height)):
                for column in range(box.left // width, -(-box.right // width)):
                    index = (plane * self._grid[0] + row) * across + column
                    y, x = row * height, column * width
                    common = box.common(Box(y, x, y + height, x + width))
                    assert common is not None, "only segments of the box are decoded"
                    target_hwC = samples_hwC[
                        common.top - box.top : common.bottom - box.top,
                        common.left - box.left : common.right - box.left,
                        channels,
                    ]
                    segment_hwC = self._decoded(index)
                    target_hwC[:] = segment_hwC[
                        common.top - y : common.bottom - y, common.left - x : common.right - x, : target_hwC.shape[-1]
                    ]
        return samples_hwC

    def _decoded(self, index: int) -> NDArray[np.integer]:
        """Samples [h, w, C] of one strip or tile; the last ones may have fewer rows."""
        page = self._page
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if length <= 0 or offset + length > len(self._data):
            raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: the file ends before its pixels do")
        encoded = bytes(self._data[offset : offset + length])
        if int(page.compression) in tiff.DEFLATE:
            tiff.check_inflated(encoded, _segment_bytes(page))
        segment, _, _ = page.decode(encoded, index)
        if segment is None:
            raise ImageError(ErrorCode.DECODE_FAILED, "TIFF: a strip or tile has no pixels")
        pixels: NDArray[np.integer] = segment[0]
        return pixels
