"""The plan of a run: its images, grouped into shards, written to Parquet files and read again shard by shard.

`changes.compare` finds the images, and the reason of each.

The plan is streamed page by page into Parquet files below the run's folder; the driver holds the shards of one file at
a time. Each row group of a plan file is one shard.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.run_record import PlanFile, PlanSummary
from pipeline.inputs.listing import ListedImage
from pipeline.schema import PLAN
from pipeline.store.filesystem import put_object
from pipeline.store.objects import read_object

logger = logging.getLogger(__name__)

SHARDS_PER_PLAN_FILE = 64  # at 512 images per shard: 4 MB per file, and 3,000 files for 100 M images


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
        path = f"{folder}/{len(files):06d}.parquet"
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
    filesystem: fsspec.AbstractFileSystem, plan_file: PlanFile, shards: Iterable[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (shard, images of the shard without the column `shard`) for the wanted `shards` of one plan file."""
    file = pq.ParquetFile(pa.BufferReader(read_object(filesystem, plan_file.path)))
    for shard in shards:
        yield shard, file.read_row_group(shard - plan_file.first_shard).drop_columns(["shard"])


def spread_over(filesystem: fsspec.AbstractFileSystem, plan: PlanSummary, number: int) -> list[ListedImage]:
    """One image that can probably be read from each of at most `number` shards, spread evenly over the plan."""
    shards = sorted({place * plan.num_shards // number for place in range(number)}) if plan.num_shards else []
    images = []
    for file in plan.files:
        wanted = [shard for shard in shards if file.first_shard <= shard < file.first_shard + file.num_shards]
        for _, table in read_plan_file(filesystem, file, wanted) if wanted else ():
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
