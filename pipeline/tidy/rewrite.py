"""Take rows out of a table: one Delta transaction drops the files that hold them, and adds files with the other rows.

Neither `delete` of deltalake, which takes a condition in SQL, nor its `merge`, which holds all keys in memory, can name
a hundred million rows. Here DuckDB joins on disk; files without such rows are neither read nor written.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import PostCommitHookProperties
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction
from tenacity import retry_if_exception_type

from pipeline.errors import BrokenRunError
from pipeline.guard.kill_points import reached
from pipeline.layout import Output
from pipeline.schema import TABLES
from pipeline.store.filesystem import put_object, store_errors_as
from pipeline.store.retries import TABLE_COMMIT
from pipeline.tables.current_view import open_table, reading
from pipeline.tables.publish import TARGET_FILE_BYTES, add_file
from pipeline.tables.removals import removal_properties
from pipeline.tables.spill_database import out_of_room, registered
from pipeline.tables.stream_table import plain, stream_files
from pipeline.tidy.rows import FileWithOldRows, OldRows
from pipeline.tidy.versions import KeptVersions

_BATCH_ROWS = 16_384
_ROW_GROUP_ROWS = 65_536
_BOUNDED = ["image_key", "run_id", "shard"]


def remove_rows(
    database: duckdb.DuckDBPyConnection,
    output: Output,
    kept: KeptVersions,
    old: OldRows,
    may_change: Callable[[], None],
) -> None:
    """Remove the rows `old` from a table, whose newest version is `kept.snapshot`.

    `may_change` raises if this driver must not commit. Raises BrokenRunError if the commit fails, or if another program
    has changed the table since; RunError if a file cannot be read.
    """
    partly = [file for file in old.files if not file.is_whole]
    added = reading(output, kept.name, lambda: _write_others(database, output, kept, partly)) if partly else []
    reached("rows written anew")
    now = int(time.time() * 1000)
    removed = [RemoveAction(file.path, True, now, file.size_bytes) for file in old.files]
    try:
        _commit(output, kept, [*removed, *added], {file.path for file in old.files}, may_change)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise BrokenRunError(f"the table {kept.name} cannot be changed: {plain(error)}") from error


def _commit(
    output: Output,
    kept: KeptVersions,
    actions: list[AddAction | RemoveAction],
    leaving: set[str],
    may_change: Callable[[], None],
) -> None:
    # An error may mean that the answer to our own commit was lost, so each attempt looks at the table.
    for attempt in TABLE_COMMIT.retrying(retry_if_exception_type((DeltaError, OSError))):
        with attempt:
            table = open_table(output, kept.name)
            assert table is not None, "the table is there"
            if table.version() != kept.newest:
                if leaving.isdisjoint(pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()):
                    return
                raise BrokenRunError(f"another program has changed the table {kept.name} meanwhile")
            properties = removal_properties(kept.name, open_table(output, "segments"))
            properties.max_commit_retries = 0
            may_change()
            table.create_write_transaction(
                actions,
                mode="append",
                schema=table.schema(),
                commit_properties=properties,
                # The library would remove versions that --keep-versions keeps.
                post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
            )


def _write_others(
    database: duckdb.DuckDBPyConnection, output: Output, kept: KeptVersions, partly: list[FileWithOldRows]
) -> list[AddAction]:
    """Write the rows of these files that stay to new files. Returns the actions that add the new files."""
    name, schema = kept.name, TABLES[kept.name]
    batches = stream_files(output, name, kept.snapshot, schema.names, among={file.path for file in partly})
    query = f"SELECT {', '.join(schema.names)} FROM streamed ANTI JOIN dropped_{name} USING (image_key, run_id)"
    added, written = [], 0
    with out_of_room(), registered(database, "streamed", schema, (batch for _, batch in batches)):
        reader = database.sql(query).to_arrow_reader(_BATCH_ROWS)
        for new in _new_files(reader, schema):
            written += new.num_rows
            added.append(_write(output, name, new))
    expected = sum(file.rows - file.leaving for file in partly if file.rows is not None)
    if written != expected and all(file.rows is not None for file in partly):
        raise BrokenRunError(f"{expected:,} rows of these files of the table {name} stay, but {written:,} were read")
    return added


@dataclass(frozen=True)
class _NewFile:
    data: bytes
    num_rows: int
    least: dict[str, Any]
    most: dict[str, Any]


def _new_files(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[_NewFile]:
    """Parquet files of the usual size with all `rows`; one file at a time is in memory."""
    groups: list[pa.Table] = []
    sink = pa.BufferOutputStream()
    writer = None
    for group in _row_groups(rows, schema):
        if writer is None:
            sink = pa.BufferOutputStream()
            # Pages carry checksums, as in parts.
            writer = pq.ParquetWriter(sink, schema, compression="zstd", store_schema=True, write_page_checksum=True)
        writer.write_table(group, row_group_size=group.num_rows)
        groups.append(group.select(_BOUNDED))
        if sink.tell() >= TARGET_FILE_BYTES:
            yield _closed(sink, writer, groups)
            groups, writer = [], None
    if writer is not None:
        yield _closed(sink, writer, groups)


def _closed(sink: pa.BufferOutputStream, writer: pq.ParquetWriter, groups: list[pa.Table]) -> _NewFile:
    writer.close()
    keys = pa.concat_tables(groups)
    bounds = {name: pc.min_max(keys[name]).as_py() for name in _BOUNDED}
    least, most = ({name: bound[end] for name, bound in bounds.items()} for end in ("min", "max"))
    return _NewFile(bytes(sink.getvalue()), keys.num_rows, least, most)


def _row_groups(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    batches: list[pa.RecordBatch] = []
    for batch in rows:
        batches.append(pa.RecordBatch.from_arrays(batch.cast(schema).columns, schema=schema))
        if sum(map(len, batches)) >= _ROW_GROUP_ROWS:
            yield pa.Table.from_batches(batches, schema)
            batches = []
    if any(map(len, batches)):
        yield pa.Table.from_batches(batches, schema)


def _write(output: Output, name: str, new: _NewFile) -> AddAction:
    path = f"kept-{hashlib.sha256(new.data).hexdigest()[:16]}.parquet"
    with store_errors_as(BrokenRunError, f"{output.name} cannot be written: {name}/{path}"):
        put_object(output.filesystem, output.inside(output.at(f"{name}/{path}")), new.data)
    return add_file(path, len(new.data), new.num_rows, new.least, new.most)
