"""The pixels of an image, read again from where the run has read them, for formats that hold pixels.

Legend: H, W pixels of the upright image.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.decoding.decode import decode_image
from pipeline.errors import ImageError, RunError
from pipeline.export.format import ExportImage
from pipeline.inputs.verified import ChangedError, CorruptError, read_verified
from pipeline.store.filesystem import STORE_ERRORS, one_line, path_of
from pipeline.store.other.opening import open_input

IMAGES_WITH_PIXELS = 32  # of a batch: to read and decode an image takes a hundred times as long as its masks do
_SECONDS = 300.0  # for one object


class NoPixelsError(Exception):
    """The pixels of an image cannot be had; the text says why, for people."""


def read_bytes_of(image: ExportImage) -> bytes:
    """The encoded image. NoPixelsError if it is gone, has changed since the run, or lies in a container."""
    if "#" in image.key:
        raise NoPixelsError("lies in a tar or Parquet file, which exports do not open")
    try:
        filesystem, _ = open_input(image.key)
        data, _ = read_verified(filesystem, path_of(filesystem, image.key), image.etag, None, _SECONDS)
    except (ChangedError, CorruptError, RunError, *STORE_ERRORS) as error:
        raise NoPixelsError(one_line(error)) from None
    return data


def decode_as_run(image: ExportImage, data: bytes, exif: bool) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], upright if the run turned its images upright. NoPixelsError if they do not fit the row."""
    try:
        pixels_HW3 = np.asarray(decode_image(data, max_pixels=image.height * image.width, apply_exif=exif))
    except ImageError as error:
        raise NoPixelsError(error.message) from None
    if pixels_HW3.shape[:2] != (image.height, image.width):
        raise NoPixelsError(f"has {pixels_HW3.shape[:2]} pixels, but its row says {(image.height, image.width)}")
    return pixels_HW3
