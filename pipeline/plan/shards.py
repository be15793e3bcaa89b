"""The plan of a run: its images, grouped into shards, written to Parquet files and read again shard by shard.

`changes.compare` finds the images, and the reason of each.

The plan is streamed page by page into Parquet files below the run's folder; the driver holds the shards of one file at
a time. Each row group of a plan file is one shard.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import islice

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2f_core.config.fields import excerpt
from pipeline.commit.run_record import PlanFile, PlanSummary
from pipeline.inputs.listing import ListedImage
from pipeline.layout import PLAN_FILE, Output, numbered
from pipeline.schema import PLAN, REASONS
from pipeline.store.filesystem import canonical, full_uri, one_line, put_object

logger = logging.getLogger(__name__)

SHARDS_PER_PLAN_FILE = 64  # at 512 images per shard: 4 MB per file, and 3,000 files for 100 M images
_MOST_FILE_BYTES = 2**30


@dataclass(frozen=True)
class PlannedImage(ListedImage):
    """An image of the plan of a run. The fields are columns of schema.PLAN and have the same meaning."""

    reason: str

    @property
    def bytes_to_read(self) -> int:
        """Encoded bytes; 0 if the image is removed, because only its row is written."""
        return 0 if self.reason == "removed" else self.size_bytes


def group_into_shards(
    images: Iterable[PlannedImage], *, max_images: int, max_bytes: int
) -> Iterator[list[PlannedImage]]:
    """Group consecutive images: at most `max_images`, with at most `max_bytes` to read. A larger image is a shard
    alone.
    """
    shard: list[PlannedImage] = []
    shard_bytes = 0
    for image in images:
        if shard and (len(shard) == max_images or shard_bytes + image.bytes_to_read > max_bytes):
            yield shard
            shard, shard_bytes = [], 0
        shard.append(image)
        shard_bytes += image.bytes_to_read
    if shard:
        yield shard


def write_plan(shards: Iterable[list[PlannedImage]], filesystem: fsspec.AbstractFileSystem, folder: str) -> PlanSummary:
    """Write the plan files, numbering shards from 0. Without shards, nothing is written."""
    files: list[PlanFile] = []
    num_images = num_shards = size_bytes = 0
    pending: list[pa.Table] = []

    def flush() -> None:
        buffer = BytesIO()
        with pq.ParquetWriter(buffer, PLAN, compression="zstd") as writer:
            for table in pending:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        path = f"{folder}/{numbered(PLAN_FILE, len(files))}"
        put_object(filesystem, path, buffer.getvalue())
        files.append(PlanFile(path, num_shards - len(pending), len(pending)))
        pending.clear()
        logger.info("planned %d images in %d shards so far", num_images, num_shards)

    for shard in shards:
        pending.append(_shard_table(num_shards, shard))
        num_shards += 1
        num_images += len(shard)
        size_bytes += sum(image.bytes_to_read for image in shard)
        if len(pending) == SHARDS_PER_PLAN_FILE:
            flush()
    if pending:
        flush()
    return PlanSummary(tuple(files), num_images, num_shards, size_bytes)


def read_plan_file(
    output: Output, source: str, plan_file: PlanFile, shards: Iterable[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (shard, images of the shard without the column `shard`) for the wanted `shards` of one plan file.

    `source` is the input of the run. RunError if the file is not the one that run.json names, or if it names an object
    outside of the input: whoever can write to the output could otherwise have any object read.
    """
    below = below_input(source)
    seen: set[str] = set()
    data = output.read(plan_file.path, _MOST_FILE_BYTES)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if file.num_row_groups != plan_file.num_shards:
            raise ValueError(f"it has {file.num_row_groups} shards, but run.json says {plan_file.num_shards}")
        for shard in shards:
            images = file.read_row_group(shard - plan_file.first_shard)
            _check_images(images, shard, below, seen)
            yield shard, images.drop_columns(["shard"])
    except (pa.ArrowException, ValueError, OSError) as error:
        raise output.damaged(plan_file.path, one_line(error)) from None


def _check_images(images: pa.Table, shard: int, below: str, seen: set[str]) -> None:
    """ValueError if these are not the images of a shard, or if one of their keys is in `seen`; adds the keys to it."""
    if not images.schema.equals(PLAN):
        raise ValueError("its columns are not those of a plan")
    if not images.num_rows or any(column.null_count for column in images.columns):
        raise ValueError(f"shard {shard} has no images, or null as a value")
    if images["shard"].unique().to_pylist() != [shard]:
        raise ValueError(f"the column shard holds {excerpt(images['shard'].unique().to_pylist())}, not {shard}")
    if pc.min(images["size_bytes"]).as_py() < 0 or not set(images["reason"].unique().to_pylist()) <= set(REASONS):
        raise ValueError(f"shard {shard} has a size below 0, or a reason that there is not")
    for key in images["image_key"].to_pylist():
        if not is_below(key, below):
            raise ValueError(f"shard {shard} names {excerpt(key)}, which does not lie below the input")
        if key in seen:
            raise ValueError(f"shard {shard} names {excerpt(key)} a second time")
        seen.add(key)


def below_input(source: str) -> str:
    """The prefix of all keys of the input: the folder with its slash, spelled as `list_images` spells keys."""
    uri = full_uri(source)
    return uri if uri.endswith("/") else f"{uri}/"


def is_below(image_key: str, below: str) -> bool:
    """Whether the key lies below the input with this prefix. An input may also be one object.

    In a local key, `..` would lead out again; a bucket has no folders, and its keys are as they are. A local input may
    be spelled with and without links: the folder of the image must lie in the input, as the listing follows no links to
    folders.
    """
    if image_key == below.rstrip("/"):
        return True
    if not below.startswith("file://"):
        return image_key.startswith(below)
    if ".." in image_key.split("/") or not image_key.startswith("file://"):
        return False
    return image_key.startswith(below) or f"{_real(image_key.rpartition('/')[0])}/".startswith(f"{_real(below)}/")


@lru_cache
def _real(folder: str) -> str:
    return canonical(folder)


def spread_over(output: Output, source: str, plan: PlanSummary, number: int) -> list[ListedImage]:
    """One image that can probably be read from each of at most `number` shards, spread evenly over the plan."""
    shards = sorted({place * plan.num_shards // number for place in range(number)}) if plan.num_shards else []
    images = []
    for file in plan.files:
        wanted = [shard for shard in shards if file.first_shard <= shard < file.first_shard + file.num_shards]
        for _, table in read_plan_file(output, source, file, wanted) if wanted else ():
            there = (row for row in table.to_pylist() if row["reason"] not in ("removed", "retry"))
            images += [ListedImage(row["image_key"], row["etag"], row["size_bytes"]) for row in islice(there, 1)]
    return images


def _shard_table(shard: int, images: list[PlannedImage]) -> pa.Table:
    return pa.table(
        {
            "shard": pa.array([shard] * len(images), pa.int32()),
            "image_key": [image.image_key for image in images],
            "etag": [image.etag for image in images],
            "size_bytes": [image.size_bytes for image in images],
            "reason": [image.reason for image in images],
        },
        schema=PLAN,
    )
