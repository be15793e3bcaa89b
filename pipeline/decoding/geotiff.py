"""GeoTIFFs by rasterio (GDAL), the extra `geo`: windows of any compression, and where on Earth the pixels lie.

Only GDAL's driver of TIFFs sees the bytes, in memory, with a bounded cache; no other file, service or format is opened.
Without the extra, a GeoTIFF is a TIFF like any other.
"""

import importlib.util
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2f_core.masks.box import Box
from pipeline.decoding import tiff
from pipeline.errors import ErrorCode, ImageError

logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # the ImageError carries the reason
warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # most TIFFs have none

_CACHE_MIB = 64  # of decoded blocks, for all files of the process; GDAL would take 5 % of the machine's memory
_MODEL_TRANSFORMATION, _PIXEL_SCALE, _GEO_KEYS = 34264, 33550, 34735  # tags of GeoTIFF 1.1, section 7
_MODEL_TYPE, _PROJECTED, _GEOGRAPHIC, _GEOCENTRIC = 1024, 1, 2, 3  # GTModelTypeGeoKey and its values


def is_installed() -> bool:
    """Whether the extra `geo` is."""
    return importlib.util.find_spec("rasterio") is not None


def georeference(data: bytes) -> dict[str, Any] | None:
    """Where the pixels of a GeoTIFF lie: `crs`, an authority's code or WKT, and `transform`, six numbers.

    The point of pixel corner (column x, row y) is (a x + b y + c, d x + e y + f) for the transform [a, b, c, d, e, f].
    Each is None if the file has none. None for other TIFFs, and where the extra is missing. ImageError if the file
    names a reference system that cannot be read: without it, the place of a segment would be lost or wrong.
    """
    if not is_installed():
        return None
    try:
        tags = tiff.first_page(data).tags
    except ImageError:  # decoding says so
        return None
    if not {tag.code for tag in tags} & {_MODEL_TRANSFORMATION, _PIXEL_SCALE, _GEO_KEYS}:
        return None
    orientation = tags.get("Orientation")
    if orientation is not None and orientation.value != 1:
        raise ImageError(
            ErrorCode.UNSUPPORTED, f"GeoTIFF: orientation {orientation.value} turns the pixels, but not their places"
        )
    dataset = _Dataset(data).dataset
    keys = tags.get(_GEO_KEYS)
    crs, model_type = dataset.crs, None if keys is None else _geo_keys(keys.value).get(_MODEL_TYPE)
    is_read = crs is not None and (crs.is_projected or crs.is_geographic or model_type == _GEOCENTRIC)
    if model_type in (_PROJECTED, _GEOGRAPHIC, _GEOCENTRIC) and not is_read:  # GDAL makes a local system of it
        raise ImageError(ErrorCode.DECODE_FAILED, "GeoTIFF: the coordinate reference system cannot be read")
    has_place = not dataset.transform.is_identity
    return {
        "crs": None if crs is None else crs.to_string(),
        "transform": list(dataset.transform)[:6] if has_place else None,
    }


def _geo_keys(values: tuple[int, ...]) -> dict[int, int]:
    """The keys whose value stands in the directory itself: rows of key, tag that holds the value (0), number, value."""
    rows = [values[at : at + 4] for at in range(4, len(values) - 3, 4)]
    return {key: value for key, tag, _, value in rows if tag == 0}


def open_reader(data: bytes, num_colours: int) -> Callable[[Box], NDArray[np.integer]]:
    """A function that gives the samples [h, w, num_colours] of a box."""
    dataset = _Dataset(data)
    return lambda box: dataset.read(box, num_colours)


class _Dataset:
    """A TIFF that GDAL has opened. GDAL's datasets belong to one thread at a time."""

    def __init__(self, data: bytes):
        import rasterio  # here, because few runs need it

        self._lock = threading.Lock()
        with _environment():
            self._memory = rasterio.MemoryFile(data)
            self.dataset = self._memory.open(driver="GTiff")

    def __del__(self) -> None:
        if hasattr(self, "dataset"):
            self.dataset.close()
        if hasattr(self, "_memory"):
            self._memory.close()  # GDAL knows the bytes by a name until then

    def read(self, box: Box, num_colours: int) -> NDArray[np.integer]:
        """Samples [h, w, num_colours] of a box."""
        from rasterio.windows import Window

        window = Window(box.left, box.top, box.right - box.left, box.bottom - box.top)
        with self._lock, _environment():
            samples_Chw = self.dataset.read(list(range(1, num_colours + 1)), window=window)
        return np.moveaxis(samples_Chw, 0, -1)


def _environment() -> Any:
    import rasterio

    return rasterio.Env(GDAL_CACHEMAX=_CACHE_MIB, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1")
