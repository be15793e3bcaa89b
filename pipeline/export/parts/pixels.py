"""The pixels of an image, read again from where the run has read them, for formats that hold pixels.

Legend: H, W pixels of the upright image.
"""

import numpy as np
from numpy.typing import NDArray
from tenacity import retry_if_not_exception_type

from pipeline.decoding.decode import decode_image
from pipeline.errors import ImageError, RunError
from pipeline.export.format import ExportImage
from pipeline.input_spec import Access
from pipeline.inputs.verified import LASTING, ChangedError, CorruptError, read_verified, request_seconds
from pipeline.store.filesystem import one_line, path_of, store_errors_as
from pipeline.store.objects import TooManyBytesError
from pipeline.store.other.opening import open_input
from pipeline.store.retries import OBJECT

IMAGES_WITH_PIXELS = 32  # of a batch: to read and decode an image takes a hundred times as long as its masks do
_SECONDS = 600.0  # for one object, as --step-timeout of a run has it
# What another attempt does not change, and what concerns this image alone.
_NO_PIXELS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ChangedError, TooManyBytesError)


class NoPixelsError(Exception):
    """The pixels of an image cannot be had; the text says why, for people."""


def read_bytes_of(image: ExportImage, access: Access) -> bytes:
    """The encoded image. NoPixelsError if it is gone, has changed since the run, lies in a container or is too large.

    Whatever else keeps the store from answering may pass: RunError, after a few attempts, because an export without
    these images would look complete.
    """
    if "#" in image.key:
        raise NoPixelsError("lies in a tar or Parquet file, which exports do not open")
    filesystem, _ = open_input(image.key, access)
    path = path_of(filesystem, image.key)
    with store_errors_as(RunError, f"the image {image.key} cannot be read", also=(CorruptError,)):
        try:
            for attempt in OBJECT.retrying(retry_if_not_exception_type((*LASTING, *_NO_PIXELS))):
                with attempt:
                    seconds = request_seconds(image.size_bytes or 0, attempt.retry_state.attempt_number, _SECONDS)
                    return read_verified(filesystem, path, image.etag, None, seconds)[0]
        except _NO_PIXELS as error:
            raise NoPixelsError(one_line(error)) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


def decode_as_run(image: ExportImage, data: bytes, exif: bool) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], upright if the run turned its images upright. NoPixelsError if they do not fit the row."""
    try:
        pixels_HW3 = np.asarray(decode_image(data, max_pixels=image.height * image.width, apply_exif=exif))
    except ImageError as error:
        raise NoPixelsError(error.message) from None
    if pixels_HW3.shape[:2] != (image.height, image.width):
        raise NoPixelsError(f"has {pixels_HW3.shape[:2]} pixels, but its row says {(image.height, image.width)}")
    return pixels_HW3
