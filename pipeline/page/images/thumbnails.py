"""Thumbnails of failed images, of whatever part of them can be decoded.

These images have failed once: their bytes may be cut off, have too many pixels, or end or block the process that
decodes them. So another process decodes them, with a bound on its memory and an alarm that ends it. Then the next image
gets a new process. An image without a thumbnail is no error.
"""

import contextlib
import io
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageFile, ImageOps

from pipeline.decoding.decode import FORMATS
from pipeline.errors import ErrorCode, RunError
from pipeline.guard import planted_faults
from pipeline.guard.worker_pool import worker_pool
from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.sample import SampledImage
from pipeline.page.images.pictures import data_uri, encoded, open_reader

# The bytes of all others could not be read, or are not those of the image that failed.
_WITH_BYTES = (
    ErrorCode.DECODE_FAILED,
    ErrorCode.TOO_LARGE,
    ErrorCode.UNSUPPORTED,
    ErrorCode.INFERENCE_FAILED,
    ErrorCode.TIMED_OUT,
    ErrorCode.CRASHED_WORKER,
)
_MOST, _SIDE = 24, 160  # images; pixels of the longer side
_MOST_BYTES, _MOST_PIXELS = 64 * 2**20, 50_000_000  # encoded; decoded, where a JPEG may be decoded at an eighth
_SECONDS, _MEMORY_BYTES = 10, 2**30  # for an image; beyond what the process has before
_MOST_ENDS = 4  # processes that images have ended; then the rest get no thumbnail


def thumbnails(run: ShownRun, failed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """image_key -> data URI, of those failed images of which pixels are left. `failed`: as `tallies.failures`."""
    images = _chosen(failed)
    reader = open_reader(run, images) if images else ""
    if isinstance(reader, str):
        return {}
    read = zip(images, reader.read_each(images), strict=True)
    rest = ((image.image_key, data) for image, data in read if isinstance(data, bytes))
    found: dict[str, str] = {}
    for _ in range(_MOST_ENDS):
        with contextlib.suppress(RunError):  # an image has ended the process: a new one goes on with the next image
            for key, (mime, data) in _decoded(rest):
                if data:
                    found[key] = data_uri(mime, data)
            break
    return found


def _chosen(failed: Sequence[Mapping[str, Any]]) -> list[SampledImage]:
    """Of each code some: the first of each, then the second of each, and so on."""
    places: dict[str, int] = {}
    ranked = []
    for one in failed:
        places[one["code"]] = place = places.get(one["code"], -1) + 1
        if one["code"] in _WITH_BYTES and (one["size_bytes"] or 0) <= _MOST_BYTES:
            ranked.append((place, one))
    ranked.sort(key=lambda of: of[0])
    return [
        SampledImage(one["image_key"], one["shard"], 0, 0, one["etag"], one["size_bytes"], 0, None, None, None)
        for _, one in ranked[:_MOST]
    ]


def _decoded(images: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """(key, (MIME type, bytes of a thumbnail)) of each image. RunError if an image has ended the process."""
    with worker_pool(1, _take_what_is_there) as pool:
        for key, data in images:
            yield key, pool.submit(_thumbnail, data).result()


# --- in the other process ---------------------------------------------------------------------------------------------


def _take_what_is_there() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True


def _thumbnail(data: bytes) -> tuple[str, bytes]:
    """(MIME type, bytes), empty if there is nothing to show."""
    signal.alarm(_SECONDS)  # nobody handles the signal, so it ends the process, whatever library hangs
    most = psutil.Process().memory_info().data + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    try:
        if planted_faults.are_asked_for():
            planted_faults.trip(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (_SIDE, _SIDE))
            if image.width * image.height > _MOST_PIXELS:
                return "", b""
            small = _rgb(image)
            small.thumbnail((_SIDE, _SIDE))
            return encoded(ImageOps.exif_transpose(small))
    except Exception:  # whatever a library raises for such bytes
        return "", b""
    finally:
        signal.alarm(0)


def _rgb(image: Image.Image) -> Image.Image:
    """The pixels; of a kind without defined white, from the least to the greatest value."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values_HW = np.asarray(image.convert("F"))
    finite_HW = np.isfinite(values_HW)
    low, high = values_HW[finite_HW].min(), values_HW[finite_HW].max()
    levels_HW = (values_HW - low) * (255 / max(high - low, 1e-9))
    grey = Image.fromarray(np.where(finite_HW, levels_HW, 0).astype(np.uint8)).convert("RGB")
    grey.info = image.info
    return grey
