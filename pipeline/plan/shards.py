"""The plan of a run: its images, grouped into shards, written to Parquet files and read again shard by shard.

`changes.compare` finds the images, and the reason of each. They come as tables of `PLANNED`, sorted by the place that
they are read from, so that images of one tar or Parquet file lie side by side.

The plan is streamed page by page into Parquet files below the run's folder; the driver holds the shards of one file at
a time. Each row group of a plan file is one shard.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.run_record import NO_PLAN, PlanSummary
from pipeline.layout import PLAN_FILE, numbered
from pipeline.plan.taper import ShardSize
from pipeline.schema import PLAN, PLANNED
from pipeline.store.filesystem import put_object

logger = logging.getLogger(__name__)

SHARDS_PER_PLAN_FILE = 64  # at 512 images per shard: 4 MB per file, and 3,000 files for 100 M images
PLANNED_IMAGES = pa.schema(PLANNED)
# A shard is the unit of commit and of work: it must not grow with the row groups that somebody has written.
_MOST_ROWS_TOGETHER = 2048
# An image of unknown size (a manifest need not say it) counts as a photograph of this many bytes.
_USUAL_BYTES = 200_000


def bytes_to_read(images: pa.Table) -> pa.ChunkedArray:
    """Encoded bytes of each image of a plan; 0 if the image is not read: it is removed, or has a fault."""
    is_read = pc.and_(pc.not_equal(images["reason"], "removed"), pc.is_null(images["fault"]))
    return pc.if_else(is_read, pc.fill_null(images["size_bytes"], _USUAL_BYTES), 0)


def num_bytes(images: pa.Table) -> int:
    """Encoded bytes to read for these images of a plan."""
    return int(pc.sum(bytes_to_read(images)).as_py() or 0)


def group_into_shards(tables: Iterable[pa.Table], size: ShardSize) -> Iterator[pa.Table]:
    """Group consecutive images into shards of this size. An image with more bytes is a shard alone.

    Rows of one row group of a Parquet file stay together, up to _MOST_ROWS_TOGETHER, if they have at most the bytes of
    a full shard: a row group is read as a whole, and two shards would read it twice.
    """
    rest, before = PLANNED_IMAGES.empty_table(), 0
    for table in tables:
        images = pa.concat_tables([rest, table]).combine_chunks()
        ends, start = _ends(images, before, size), 0
        for end in ends[:-1]:  # more images may follow the last
            yield images.slice(start, end - start)
            start = end
        rest = images.slice(start)
        before += start
    if rest.num_rows:
        start = 0
        for end in _ends(rest, before, size):
            yield rest.slice(start, end - start)
            start = end


def _ends(images: pa.Table, before: int, size: ShardSize) -> list[int]:
    """Where each shard ends; `before`: images of the plan before these. The last shard may go on in the next table."""
    sizes = np.cumsum(bytes_to_read(images).to_numpy())
    unit_starts, unit_ends = _units(images)
    ends, start = [], 0
    while start < images.num_rows:
        max_images, max_bytes = size.at(before + start)
        read = int(sizes[start - 1]) if start else 0
        fits = max(start + 1, int(np.searchsorted(sizes, read + max_bytes, "right")))
        end = min(fits, start + max_images)
        if end < images.num_rows and unit_starts[end] < end:  # inside of a row group
            whole = int(unit_ends[end])
            fits = max(start + 1, int(np.searchsorted(sizes, read + size.max_bytes, "right")))
            most = min(fits, start + max(max_images, _MOST_ROWS_TOGETHER))
            end = int(unit_starts[end]) if unit_starts[end] > start else min(whole, most)
        ends.append(end)
        start = end
    return ends


def _units(images: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """For each image, where the images that should stay in one shard with it begin and end."""
    rows = np.arange(images.num_rows)
    if images["row_group"].null_count == images.num_rows:
        return rows, rows + 1
    objects = images["object_uri"].combine_chunks().dictionary_encode()
    object_ids = pc.fill_null(objects.indices, -1).to_numpy(zero_copy_only=False)
    groups = pc.fill_null(images["row_group"], -1).to_numpy()
    begins = (np.diff(object_ids, prepend=-2) != 0) | (np.diff(groups, prepend=-2) != 0) | (groups < 0)
    firsts = np.flatnonzero(begins)
    unit = np.cumsum(begins) - 1
    return firsts[unit], np.append(firsts[1:], images.num_rows)[unit]


def write_plan(
    shards: Iterable[pa.Table],
    filesystem: fsspec.AbstractFileSystem,
    folder: str,
    *,
    before: PlanSummary = NO_PLAN,
    put: Callable[[fsspec.AbstractFileSystem, str, bytes], None] = put_object,
    tell: Callable[[PlanSummary], None] = lambda plan: None,
) -> PlanSummary:
    """Write plan files behind those of `before`. Returns the whole plan. Without shards, nothing is written.

    `put` writes a file, and `tell` is called with the plan so far after each.
    """
    plan = before
    pending: list[pa.Table] = []

    def flush() -> None:
        nonlocal plan
        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(buffer, PLAN, compression="zstd") as writer:
            for table in pending:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        path = f"{folder}/{numbered(PLAN_FILE, len(plan.files))}"
        put(filesystem, path, bytes(buffer.getvalue()))
        images = pa.concat_tables(pending)
        plan = plan.with_file(path, len(pending), images.num_rows, num_bytes(images))
        pending.clear()
        logger.info("planned %d images in %d shards so far", plan.num_images, plan.num_shards)
        tell(plan)

    for images in shards:
        numbers = pa.repeat(pa.scalar(plan.num_shards + len(pending), pa.int32()), images.num_rows)
        pending.append(pa.Table.from_arrays([numbers, *images.columns], schema=PLAN))
        if len(pending) == SHARDS_PER_PLAN_FILE:
            flush()
    if pending:
        flush()
    return plan
