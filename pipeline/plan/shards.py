"""Images that a run is to have -> plan: grouped into shards, written to Parquet, read again shard by shard.

`changes.compare` says which images those are, and why.

The plan is streamed page by page into Parquet files below the run's folder; the driver holds one file's shards at
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

SHARDS_PER_PLAN_FILE = 64  # 512 images a shard: 4 MB a file, and 100 M images are 3,000 files


@dataclass(frozen=True)
class PlannedImage(ListedImage):
    """An image that a run is to have; the fields are the columns of schema.PLAN, and mean what they mean there."""

    reason: str

    @property
    def bytes_to_read(self) -> int:
        """Encoded bytes; 0 where the image is gone and only its row is to be written."""
        return 0 if self.reason == "removed" else self.size_bytes


def group_into_shards(
    images: Iterable[PlannedImage], *, max_images: int, max_bytes: int
) -> Iterator[list[PlannedImage]]:
    """Consecutive images, at most `max_images` and `max_bytes` to read of them together; a larger one stands alone."""
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
    """Write the plan files; nothing is written where there are no shards. Shards are numbered from 0."""
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
    """(shard, its images without the column `shard`) for the wanted shards of one plan file."""
    file = pq.ParquetFile(pa.BufferReader(read_object(filesystem, plan_file.path)))
    for shard in shards:
        yield shard, file.read_row_group(shard - plan_file.first_shard).drop_columns(["shard"])


def spread_over(filesystem: fsspec.AbstractFileSystem, plan: PlanSummary, number: int) -> list[ListedImage]:
    """An image that can probably be read of each of at most `number` shards, which lie evenly over the plan."""
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
