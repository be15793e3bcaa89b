"""Rows that leave the tables: rows that a newer row has replaced for long, and images that are long gone.

A row of `images` leaves if the run of the next newer row of its image is old, or if it is the current row, says
`removed` and is old itself. So a roll-back of a run that is not old finds the rows from before, and the current view
stays as it is. A row of `segments` or `logits` leaves if no row of `images` stays with its image_key and run_id.

No row of an image leaves that has a row of an unfinished run: the next attempt at that run finds out from the tables
which of its shards are published.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import duckdb
import pyarrow as pa

from m2f_core.config.fields import excerpt
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.tables.current_view import reading
from pipeline.tables.spill_database import out_of_room, registered
from pipeline.tables.stream_table import columns_of, stream_files
from pipeline.tidy.versions import KeptVersions

_PLAIN = re.compile("[A-Za-z0-9._=/-]+")
_KEYS = ("image_key", "run_id")
_OF_IMAGES = (*_KEYS, "run_created", "status", "num_segments", "etag")
SUPERSEDED, REMOVED, LEFT_OVER = "replaced by a newer row", "of images that are gone from the input", "of no image"


@dataclass(frozen=True)
class FileWithOldRows:
    """A file of a table, and how many of its rows leave."""

    path: str
    size_bytes: int
    rows: int | None  # None: the log does not say
    leaving: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows leave."""
        return self.rows == self.leaving


@dataclass(frozen=True)
class OldRows:
    """The rows that leave one table. Their keys are in the table `dropped_<name>` of the database."""

    name: str
    by_reason: dict[str, int]
    files: tuple[FileWithOldRows, ...]


def find_old_rows(
    database: duckdb.DuckDBPyConnection,
    output: Output,
    versions: dict[str, KeptVersions | None],
    unfinished: Collection[str],
    cutoff: datetime,
) -> dict[str, OldRows]:
    """The rows of all tables that leave. `unfinished`: ids of runs whose rows stay.

    Makes `all_images` and, for each table, `dropped_<name>` in `database`. RunError if a table cannot be read.
    """
    images, segments = versions["images"], versions["segments"]
    with out_of_room():
        database.execute("SET VARIABLE unfinished = ?::VARCHAR[]", [sorted(unfinished)])
        database.execute("SET VARIABLE cutoff = ?::TIMESTAMPTZ", [cutoff])
        _load(database, output, "images", images, _OF_IMAGES, _LOAD_IMAGES)
        database.execute(_RANK)
        found = {"images": _old_rows(database, "images", images)}
        if segments is None or _all_join(database, segments):
            database.execute(f"CREATE OR REPLACE TABLE dropped_segments AS {_NONE}")
        else:
            _load(database, output, "segments", segments, _KEYS, _orphans("segments"))
        _load(database, output, "logits", versions["logits"], _KEYS, _orphans("logits"))
        # Rows of `logits` are too large to be written anew: a file leaves as a whole, or stays.
        whole = [file.path for file in _old_rows(database, "logits", versions["logits"]).files if file.is_whole]
        database.execute("DELETE FROM dropped_logits WHERE NOT list_contains(?::VARCHAR[], file)", [whole])
        return {**found, **{name: _old_rows(database, name, versions[name]) for name in ("segments", "logits")}}


def rows_left(database: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The number of rows of `images` that stay, by run."""
    query = "SELECT run_id, count(*) FROM all_images ANTI JOIN dropped_images USING (image_key, run_id) GROUP BY run_id"
    return dict(database.execute(query).fetchall())


_NONE = "SELECT '' AS file, '' AS image_key, '' AS run_id, 0::BIGINT AS rows, '' AS reason WHERE false"

_LOAD_IMAGES = "CREATE OR REPLACE TABLE all_images AS SELECT * FROM streamed"

# `replaced`: when the run of the next newer row was planned. A pair of which any row stays, stays as a whole.
_RANK = f"""
    CREATE OR REPLACE TABLE dropped_images AS
    WITH ranked AS (
        SELECT *, lag(run_created) OVER newest_first AS replaced,
               first_value(status = 'removed' AND run_created < getvariable('cutoff')) OVER newest_first AS is_gone,
               bool_or(list_contains(getvariable('unfinished'), run_id)) OVER (PARTITION BY image_key) AS stays
        FROM all_images WINDOW newest_first AS (PARTITION BY image_key ORDER BY run_created DESC, run_id DESC)
    ), judged AS (
        SELECT *, NOT stays AND (is_gone OR coalesce(replaced < getvariable('cutoff'), false)) AS leaves FROM ranked
    ), whole AS (
        SELECT *, bool_and(leaves) OVER (PARTITION BY image_key, run_id) AS all_leave FROM judged
    )
    SELECT file, image_key, run_id, count(*) AS rows,
           CASE WHEN is_gone THEN '{REMOVED}' ELSE '{SUPERSEDED}' END AS reason
    FROM whole WHERE all_leave GROUP BY ALL
"""


def _orphans(name: str) -> str:
    """Rows of a table without a row of `images` that stays."""
    return f"""
    CREATE OR REPLACE TABLE dropped_{name} AS
    WITH kept AS (SELECT DISTINCT image_key, run_id FROM all_images ANTI JOIN dropped_images USING (image_key, run_id)),
    reasons AS (SELECT DISTINCT image_key, run_id, reason FROM dropped_images),
    orphans AS (
        SELECT file, image_key, run_id, count(*) AS rows FROM streamed ANTI JOIN kept USING (image_key, run_id)
        WHERE NOT list_contains(getvariable('unfinished'), run_id) GROUP BY ALL
    )
    SELECT orphans.*, coalesce(reason, '{LEFT_OVER}') AS reason FROM orphans LEFT JOIN reasons USING (image_key, run_id)
"""


def _load(
    database: duckdb.DuckDBPyConnection,
    output: Output,
    name: str,
    kept: KeptVersions | None,
    columns: tuple[str, ...],
    query: str,
) -> None:
    """Run `query` over the stream `streamed`: `columns` of the newest version of a table, and the path of each file."""
    schema = columns_of(name, columns).append(pa.field("file", pa.string()))

    def load() -> None:
        batches = iter(()) if kept is None else stream_files(output, name, kept.snapshot, columns)
        with registered(database, "streamed", schema, (_with_file(batch, path, schema) for path, batch in batches)):
            database.execute(query)

    reading(output, name, load)


def _with_file(batch: pa.RecordBatch, path: str, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([*batch.columns, pa.repeat(path, batch.num_rows)], schema=schema)


def _all_join(database: duckdb.DuckDBPyConnection, segments: KeptVersions) -> bool:
    """Whether every row of `segments` belongs to a row of `images` that stays, as the numbers of rows say.

    Then the keys of `segments`, most of the bytes to read, need not be read.
    """
    query = "SELECT (SELECT count(*) FROM dropped_images), (SELECT coalesce(sum(num_segments), 0) FROM all_images)"
    [(leaving, expected)] = database.execute(query).fetchall()
    there = segments.files["num_records"].to_pylist() if "num_records" in segments.files.column_names else [None]
    return not leaving and None not in there and sum(there) == expected


def _old_rows(database: duckdb.DuckDBPyConnection, name: str, kept: KeptVersions | None) -> OldRows:
    by_reason = database.execute(f"SELECT reason, sum(rows)::BIGINT FROM dropped_{name} GROUP BY ALL ORDER BY ALL")
    counts = dict(by_reason.fetchall())
    by_file = database.execute(f"SELECT file, sum(rows)::BIGINT FROM dropped_{name} GROUP BY ALL ORDER BY ALL")
    leaving = dict(by_file.fetchall())
    if kept is None or not leaving:
        return OldRows(name, counts, ())
    columns = (kept.files[column].to_pylist() for column in ("path", "size_bytes", "num_records"))
    there = zip(*columns, strict=True)
    files = tuple(FileWithOldRows(path, size, rows, leaving[path]) for path, size, rows in there if path in leaving)
    for file in files:
        if not _PLAIN.fullmatch(file.path):  # how a log spells other names depends on the writer
            raise RunError(
                f"the table {name} has rows to remove in {excerpt(file.path)}, a name that this program does not "
                "write; merge the files of the table first (optimize.compact of deltalake)"
            )
    return OldRows(name, counts, files)
