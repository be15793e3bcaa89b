"""GeoTIFFs made by GDAL, in memory."""

from typing import Any

import numpy as np


def gdal_file(pixels_HWC: np.ndarray, **options: Any) -> bytes:
    """A TIFF of these pixels; `options` are those of rasterio, such as crs, transform and compress."""
    import rasterio

    height, width, count = pixels_HWC.shape
    profile = {"height": height, "width": width, "count": count, "dtype": pixels_HWC.dtype}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **{**profile, "photometric": "rgb", **options}) as file:
            file.write(np.moveaxis(pixels_HWC, -1, 0))
        return bytes(memory.getbuffer())
