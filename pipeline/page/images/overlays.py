"""Segments drawn over their images at full size: for files beside the page, and for notebooks."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from m2f_core.masks.colours import category_colour
from m2f_core.masks.overlay import draw_segments, with_legend
from m2f_core.masks.rle import decode
from pipeline.errors import RunError
from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.sample import SampledImage, matching
from pipeline.page.images.pictures import open_reader, segments_of
from pipeline.store.filesystem import open_filesystem, put_object, store_errors_as
from pipeline.tables.spill_database import ScratchDatabase

_AT_A_TIME = 64  # images whose masks are in memory
_QUALITY = 90


def write_overlays(
    scratch: ScratchDatabase, run: ShownRun, folder: str, where: str | None, sample: Sequence[SampledImage]
) -> dict[str, int]:
    """Draw the images of `sample`, or all for which `where` holds, as JPEGs below `folder`, a path or URI.

    Returns how many are `written`, and how many images are `unreadable`. A file is named by the image and by a hash of
    its key, so that no two images have one name. RunError if the folder cannot be written.
    """
    counts = {"written": 0, "unreadable": 0}
    filesystem, root = open_filesystem(folder)
    chunks = _chunks(sample) if where is None else matching(scratch, where, _AT_A_TIME)
    with store_errors_as(RunError, f"--overlays {folder} cannot be written", denied=f"no permission to write {folder}"):
        for images in chunks:
            reader = open_reader(run, images)
            if isinstance(reader, str):
                counts["unreadable"] += len(images)
                continue
            segments = segments_of(run, {image.image_key: image.shard for image in images})
            for image, data in zip(images, reader.read_each(images), strict=True):
                pixels = data if isinstance(data, str) else reader.pixels(data)
                if isinstance(pixels, str):
                    counts["unreadable"] += 1
                    continue
                buffer = io.BytesIO()
                draw(run, pixels, segments[image.image_key]).save(buffer, "JPEG", quality=_QUALITY)
                put_object(filesystem, f"{root.rstrip('/')}/{file_name(image.image_key)}", buffer.getvalue())
                counts["written"] += 1
    return counts


def draw(run: ShownRun, pixels: Image.Image, rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """The image with its segments in the colours of their categories, things outlined, and a legend below.

    `rows` are rows of `segments` with ascending score. RunError if a mask is damaged or is not one of this image.
    """
    places = {category["id"]: place for place, category in enumerate(run.record.model.categories)}
    things = {category["id"]: bool(category["isthing"]) for category in run.record.model.categories}
    names = {category["id"]: category["name"] for category in run.record.model.categories}
    ids = [row["category_id"] for row in rows]
    for category in ids:
        places.setdefault(category, len(places))
    pixels_HW3 = np.asarray(pixels)
    height, width = pixels_HW3.shape[:2]

    def masks() -> Iterator[Any]:
        for row in rows:
            try:
                if list(row["segmentation"]["size"]) != [height, width]:
                    raise ValueError(f"its mask is {row['segmentation']['size']}, the image is {[height, width]}")
                yield decode(row["segmentation"]["counts"].encode(), height, width)
            except (ValueError, TypeError) as error:
                raise RunError(f"segment {row['segment_id']} of {row['image_key']}: {error}") from None

    colours = [category_colour(places[category]) for category in ids]
    drawn = draw_segments(pixels_HW3, masks(), colours, [things.get(category, False) for category in ids])
    shown = sorted(set(ids), key=places.__getitem__)
    legend = [names.get(category, f"category {category}") for category in shown]
    return Image.fromarray(with_legend(drawn, legend, [category_colour(places[category]) for category in shown]))


def file_name(image_key: str) -> str:
    """`photo-0a1b2c3d4e5f.jpg`: the last part of the key, without characters that some disk refuses, and a hash."""
    stem = re.split("[/#]", image_key.rstrip("/"))[-1].rpartition(".")[0] or "image"
    plain = re.sub("[^A-Za-z0-9._-]+", "_", stem)[:80]
    return f"{plain}-{hashlib.sha256(image_key.encode(errors='surrogatepass')).hexdigest()[:12]}.jpg"


def _chunks(images: Sequence[SampledImage]) -> Iterator[Sequence[SampledImage]]:
    for start in range(0, len(images), _AT_A_TIME):
        yield images[start : start + _AT_A_TIME]
