"""The rows of one run in the published tables, streamed, for readers that show a run and not the current view."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.errors import RunError
from pipeline.layout import Output, parts_folder
from pipeline.tables.current_view import open_table
from pipeline.tables.stream_table import check_files, columns_of, files_of_run, stream_files

_SHARD = re.compile(r"shard-(\d+)-")


@dataclass(frozen=True)
class Part:
    """The images of one shard in the table `images`. Keys are None if nobody knows them without reading the rows."""

    shard: int
    num_images: int
    first_key: str | None
    last_key: str | None


def stream_run(
    output: Output,
    table: str,
    run_id: str,
    columns: Sequence[str],
    shards: Collection[int] | None = None,
    keys: Collection[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The columns of the run's rows, file by file; a run of which tidying has removed rows gives those that are left.

    `shards`, `keys`: only rows of these shards and images. Raises RunError if nothing is published or the table
    requires what this reader lacks, and an error of STORE_ERRORS or an ArrowException if a file cannot be read.
    """
    snapshot = _snapshot(output, table)
    files = files_of_run(output, table, snapshot, run_id)
    if shards is not None:
        files = {path for path in files if _of_shard(path, shards)}
    wanted = list(dict.fromkeys([*columns, "run_id", "shard", "image_key"]))
    schema = columns_of(table, columns)
    chosen = {name: pa.array(sorted(of)) for name, of in (("shard", shards), ("image_key", keys)) if of is not None}
    for _, batch in stream_files(output, table, snapshot, wanted, among=files):
        mask = pc.equal(batch["run_id"], run_id)
        for name, values in chosen.items():
            mask = pc.and_(mask, pc.is_in(batch[name], value_set=values.cast(batch[name].type)))
        rows = batch.filter(mask)
        if rows.num_rows:
            yield pa.RecordBatch.from_arrays([rows[name] for name in columns], schema=schema)


def parts_of_run(output: Output, run_id: str, num_shards: int, num_images: int) -> list[Part]:
    """The parts of the run in the table `images` by shard, as the log of the table describes them.

    A shard whose part has been merged with others is taken to have as many images as the run has in a shard. RunError
    if nothing is published.
    """
    usual = max(1, round(num_images / max(1, num_shards)))
    parts = {shard: Part(shard, usual, None, None) for shard in range(num_shards)}
    files = check_files(output, "images", _snapshot(output, "images"))
    lacking = pa.nulls(files.num_rows)
    names = ("path", "num_records", "min.image_key", "max.image_key")
    values = [files[name] if name in files.column_names else lacking for name in names]
    for path, images, first, last in zip(*(column.to_pylist() for column in values), strict=True):
        match = _SHARD.match(path.rpartition("/")[2]) if path.startswith(f"{_folder('images', run_id)}/") else None
        if match is not None:
            parts[int(match[1])] = Part(int(match[1]), usual if images is None else images, first, last)
    return [parts[shard] for shard in sorted(parts)]


def _snapshot(output: Output, table: str) -> DeltaTable:
    snapshot = open_table(output, table)
    if snapshot is None:
        raise RunError(f"{output.name} has no published table {table}; give the --output of a run")
    return snapshot


def _folder(table: str, run_id: str) -> str:
    """The folder of the run's parts, below the folder of the table."""
    return parts_folder(table, run_id).removeprefix(f"{table}/")


def _of_shard(path: str, shards: Collection[int]) -> bool:
    """Whether a file of the run may hold rows of one of the shards; merged files may hold those of any."""
    match = _SHARD.match(path.rpartition("/")[2]) if "/" in path else None
    return match is None or int(match[1]) in shards
