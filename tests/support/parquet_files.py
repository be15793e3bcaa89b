"""Parquet files of images, and what reads them: the listing, and the stage that fetches."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageError
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.reads import ListedImage
from tests.support.listed import list_images

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # of Hugging Face


def hugging_face(images: Sequence[bytes | None], paths: Sequence[str | None] | None = None, **columns) -> pa.Table:
    """A table as `datasets` writes tables with images: struct<bytes, path>, and other columns."""
    paths = [f"{row:05}.png" for row in range(len(images))] if paths is None else paths
    structs = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    return pa.table({"image": pa.array(structs, IMAGE), **columns})


def write(path: Path, table: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def read_all(*uris: object, **fields) -> dict[str, bytes | ImageError]:
    """Each image of the inputs by the end of its key, after `#`, listed and read as a run does it."""
    uris = tuple(map(str, uris))
    listed = list(list_images(*uris, **fields))
    return read_listed(listed, InputSpec(InputSpec.of(*uris).sources, **fields))


def read_listed(listed: Sequence[ListedImage], spec: InputSpec) -> dict[str, bytes | ImageError]:
    read = FetchImages(spec).fetch_all(listed)
    names = [image.image_key.partition("#")[2] for image in listed]
    assert len(set(names)) == len(names)
    return {name: one if isinstance(one, ImageError) else one.data for name, one in zip(names, read, strict=True)}
