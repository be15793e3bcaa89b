"""`show(row, tables)`: an image with its segments, for notebooks."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from pipeline.errors import RunError
from pipeline.page.figures.runs import find_run
from pipeline.page.figures.sample import SampledImage
from pipeline.page.images.overlays import draw
from pipeline.page.images.pictures import SampleReader, segments_of


def show(row: Mapping[str, Any], tables: str) -> Image.Image:
    """The image of a row of `images` with all its segments, or of a row of `segments` with this segment alone.

    `row` is a dict or pandas Series with the columns image_key, run_id and shard and, of a segment, all columns.
    `tables` is the --output of the run, a path or URI. The image is read again from the input of the run.

    Raises RunError if the run or the image cannot be read, or if the image has changed since.
    """
    values = dict(row)
    if lacking := {"image_key", "run_id", "shard"} - values.keys():
        raise RunError(f"the row has no column {', '.join(sorted(lacking))}; give a row of images or segments")
    run = find_run(tables, str(values["run_id"]))
    key, shard = str(values["image_key"]), int(values["shard"])
    image = SampledImage(key, shard, 0, 0, str(values.get("etag", "")), 0, 0, None, None, None)
    reader = SampleReader(run, [image])
    data = reader.read(image)
    pixels = data if isinstance(data, str) else reader.pixels(data)
    if isinstance(pixels, str):
        raise RunError(f"{key} cannot be shown: {pixels}")
    rows = [values] if "segmentation" in values else segments_of(run, {key: shard})[key]
    return draw(run, pixels, rows)
