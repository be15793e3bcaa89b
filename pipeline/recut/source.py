"""What a recut reads: the current rows of an output, and where the logits of each image are."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.errors import RunError
from pipeline.inputs.container import with_all_columns
from pipeline.layout import Output
from pipeline.shown_text import shown
from pipeline.store.filesystem import full_uri
from pipeline.tables.current_view import load_current, open_table, reading
from pipeline.tables.spill_database import ScratchDatabase, out_of_room, registered
from pipeline.tables.stream_table import columns_of, stream_files

_COLUMNS = ("status", "etag", "size_bytes", "error_code", "error_message", "attributes", "fingerprint")
_KEYS = ("image_key", "run_id")
_BATCH_ROWS = 16_384
_FAULT = "coalesce(error_code || ': ' || coalesce(error_message, ''), '')"


@dataclass(frozen=True)
class Source:
    """The rows to recut, checked: all of one fingerprint, and with logits wherever there is a result."""

    output: Output
    run_id: str | None  # None: the current rows
    version: int  # of the table `images`
    records: tuple[RunRecord, ...]  # of the runs that wrote the rows, the newest first

    @property
    def record(self) -> RunRecord:
        """The newest; model and settings that change results are the same in all."""
        return self.records[0]

    @property
    def floor(self) -> float:
        """The highest of what the runs asked of a query to keep it."""
        return max(float(record.settings["keep_logits"]) for record in self.records)

    def images(self) -> Iterator[pa.Table]:
        """The images as tables of LISTED: `object_uri` is the file with the logits, `position` the row in it.

        An image that failed has its error as `fault`, and the code behind its ETag: once the image has a result, the
        next recut takes it for changed, though the object is the same. RunError if a table cannot be read.
        """
        with _database(self.output, self.run_id, self.version) as database, out_of_room():
            root = full_uri(self.output.uri).rstrip("/")
            reader = database.sql(
                f"""
                SELECT image_key, size_bytes, attributes, position,
                       CASE WHEN status = 'ok' THEN etag ELSE etag || ' (' || error_code || ')' END AS etag,
                       CASE WHEN status = 'ok' THEN ? || path END AS object_uri,
                       CASE WHEN status <> 'ok' THEN {_FAULT} END AS fault
                FROM current LEFT JOIN kept USING (image_key, run_id)
                """,
                params=[f"{root}/logits/"],
            ).to_arrow_reader(_BATCH_ROWS)
            for batch in reader:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield with_all_columns(columns, batch.num_rows)


def find_source(tables: str, run_id: str | None) -> Source:
    """The rows of `tables`, or of one run there. RunError if they cannot be recut, with what to do."""
    output = Output.open(tables, "--tables")
    snapshot = open_table(output, "images")
    if snapshot is None:
        raise RunError(f"{output.name} has no published table images; give the --output of a run")
    with _database(output, run_id, snapshot.version()) as database:
        fingerprints = _rows(database, "SELECT fingerprint, count(*) FROM current GROUP BY ALL ORDER BY 2 DESC, 1")
        [(number,)] = _rows(database, "SELECT count(*) FROM current")
        runs = [run for (run,) in _rows(database, "SELECT DISTINCT run_id FROM current WHERE status = 'ok'")]
        [(without, example)] = _rows(
            database,
            """SELECT count(*), min(image_key) FROM current ANTI JOIN kept USING (image_key, run_id)
            WHERE status = 'ok'""",
        )
    if not runs:
        what = "no image with a result" if number else "no image" if run_id is None else f"no row of run {run_id}"
        raise RunError(f"{output.name} has {what}: nothing to recut")
    if without:
        raise RunError(
            f"{output.name} holds no logits of {without:,} images, for example {shown(example)}; run "
            "jobs/segment_bucket.py with --keep-logits and --mode overwrite, or give a run that kept them as --of-run"
        )
    if len(fingerprints) > 1:
        said = ", ".join(f"{fingerprint} ({number:,} images)" for fingerprint, number in fingerprints[:4])
        raise RunError(
            f"{output.name} has rows of several models or settings, fingerprints {said}; give one run as --of-run"
        )
    return Source(output, run_id, snapshot.version(), _records(output, runs))


def _records(output: Output, runs: list[str]) -> tuple[RunRecord, ...]:
    records = []
    for run_id in runs:
        with output.errors():
            record = read_run_record(output, output.run(run_id))
        if record is None:
            raise RunError(f"{output.name} has rows of run {run_id}, but no run.json of it: its model is not known")
        if not isinstance(record.settings.get("keep_logits"), float | int):
            raise RunError(f"{output.name}: run.json of run {run_id} does not say which logits it kept")
        records.append(record)
    return tuple(sorted(records, key=lambda record: record.created, reverse=True))


@contextmanager
def _database(output: Output, run_id: str | None, version: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the tables `current` (see load_current) and `kept`: image_key, run_id, path, position."""
    with closing(ScratchDatabase()) as scratch:
        database = scratch.connection
        load_current(database, output, _COLUMNS, version=version, run_id=run_id)
        reading(output, "logits", lambda: _load_kept(database, output))
        yield database


def _load_kept(database: duckdb.DuckDBPyConnection, output: Output) -> None:
    snapshot = open_table(output, "logits")
    places = pa.schema([("path", pa.string()), ("position", pa.int64())])
    schema = pa.schema([*columns_of("logits", _KEYS), *places])
    batches = iter(()) if snapshot is None else stream_files(output, "logits", snapshot, _KEYS)
    with out_of_room(), registered(database, "streamed", schema, _with_places(batches, schema)):
        database.execute("CREATE OR REPLACE TABLE kept AS SELECT * FROM streamed")


def _with_places(batches: Iterator[tuple[str, pa.RecordBatch]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a file follow each other, in the order of its rows."""
    numbers: dict[str, Any] = {}
    for path, batch in batches:
        if path not in numbers:
            numbers = {path: count()}
        places = pa.array([next(numbers[path]) for _ in range(batch.num_rows)], pa.int64())
        paths = pa.repeat(pa.scalar(path), batch.num_rows)
        yield pa.RecordBatch.from_arrays([*batch.columns, paths, places], schema=schema)


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    with out_of_room():
        return database.execute(query).fetchall()
