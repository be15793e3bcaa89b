"""The rows of one run in the published tables, streamed, for readers that show a run and not the current view."""

import re
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError
from pipeline.layout import Output, parts_folder
from pipeline.tables.current_view import open_table
from pipeline.tables.stream_table import check_files, columns_of, stream_files

_SHARD = re.compile(r"shard-(\d+)-")


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
    snapshot = open_table(output, table)
    if snapshot is None:
        raise RunError(f"{output.name} has no published table {table}; give the --output of a run")
    folder = parts_folder(table, run_id).removeprefix(f"{table}/")
    # Files that jobs/tidy.py or a compaction has merged lie beside the folders of runs, and may hold rows of any run.
    files = {
        path
        for path in check_files(output, table, snapshot)["path"].to_pylist()
        if (_of_shard(path, shards) if path.startswith(f"{folder}/") else not path.startswith("run="))
    }
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


def _of_shard(path: str, shards: Collection[int] | None) -> bool:
    """Whether a file in the folder of the run may hold rows of one of the shards."""
    match = _SHARD.match(path.rpartition("/")[2])
    return shards is None or match is None or int(match[1]) in shards
