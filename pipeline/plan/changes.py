"""Compare the listing with the published tables: what does the next run have to do, and why?

Both sides go through DuckDB on disk, so neither the listing nor the table is ever in Python's memory. The first of
these rules that holds gives an image its reason:

    the image has no current row, or its row says `removed`    new
    its ETag or its size differs                               changed
    its row was made with other weights                        model_changed
    ... or with other settings that change results             settings_changed
    its row says `failed`, for a reason that may pass          retry
    none of these                                              unchanged (mode overwrite: overwrite)
    the image has a current row but is not in the listing      removed, unless it may lie in a tar that cannot be read

Mode retry-failed plans every listed image whose row says `failed`, whatever other rule holds, with the reason `retry`.
The mode leaves out all other images; those that another mode would plan count as `not_selected`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.run_record import read_run_record
from pipeline.config import Settings
from pipeline.errors import TRANSIENT, RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.selection import Selection
from pipeline.layout import Output
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.schema import LISTED, REASONS
from pipeline.shown_text import shown
from pipeline.tables.current_view import load_current
from pipeline.tables.spill_database import MEMORY_MIB, ScratchDatabase, out_of_room

_ROWS = 20_000  # rows at a time between Python and DuckDB: a few MB
_ROWS_A_FILE = 100_000  # of the listing, 2 to 10 MB


class Changes:
    """The differences between the input and the published table, in a database on disk. A context manager.

    counts: numbers of images by reason. These include `unchanged`, `not_selected` (the mode leaves the image out) and
        `removed`, even if removed images are not planned; with --limit, removed images are unknown and not counted.
        Reasons without images are left out.
    size_bytes: encoded bytes by reason, of images whose size the input says; a removed image counts with the size in
        its last row.
    planned: the reasons that put an image into the plan.
    num_planned: the number of images in the plan.
    version: of the table `images` that the listing was compared with; None if nothing is published.
    """

    def __init__(self, scratch: ScratchDatabase, version: int | None, planned: tuple[str, ...]):
        self.version = version
        self._scratch = scratch
        self.planned = planned
        totals = scratch.connection.execute(
            "SELECT reason, count(*), coalesce(sum(size_bytes), 0)::BIGINT FROM changes GROUP BY reason ORDER BY reason"
        ).fetchall()
        self.counts: dict[str, int] = {reason: images for reason, images, _ in totals}
        self.size_bytes: dict[str, int] = {reason: size for reason, _, size in totals}
        self.num_planned = sum(self.counts.get(reason, 0) for reason in planned)

    def images(self) -> Iterator[pa.Table]:
        """The images to plan, as tables of PLANNED_IMAGES, sorted as object stores sort keys (by the bytes of UTF-8).

        Images of one tar or Parquet file come in the order in which they lie there.
        """
        with out_of_room():
            rows = self._scratch.connection.cursor().sql(
                f"SELECT {', '.join(PLANNED_IMAGES.names)} FROM changes WHERE list_contains(?, reason) "
                "ORDER BY coalesce(object_uri, image_key), position, image_key",
                params=[list(self.planned)],
            )
            reader = rows.to_arrow_reader(_ROWS)
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(PLANNED_IMAGES)

    def close(self) -> None:
        self._scratch.close()

    def __enter__(self) -> "Changes":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def describe(counts: dict[str, int]) -> str:
    """Text such as `1,204 unchanged, 3 removed`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items())) or "no images"


def compare(
    listing: Iterable[pa.Table],
    spec: InputSpec,
    settings: Settings,
    output: Output,
    *,
    fingerprint: str,
    weights_sha256: str,
    memory_mib: int = MEMORY_MIB,
) -> Changes:
    """The changes that a run with these settings would have to process. `listing` is the whole listing of `spec`.

    Of the settings, only `mode`, `limit` and `tombstone_removed` matter. Only rows of keys below the inputs are
    compared, because several inputs may share an output. If the inputs name their images one by one, no image counts as
    removed: such a list does not say of which images it is the whole. `memory_mib` limits the memory of DuckDB; the
    rest goes to TMPDIR, about as much as the keys of the listing and of all rows below the inputs take.

    Raises RunError if the listing breaks off or names two images by one key, or if the published table cannot be read.
    """
    selections = [] if spec.names_its_images else [Selection(spec, source) for source in spec.sources]
    scratch = ScratchDatabase(memory_mib)
    try:
        with out_of_room():
            columns = ("etag", "size_bytes", "status", "error_code", "fingerprint", "run_created")
            below = tuple(selection.below for selection in selections)
            with _beside(load_current, scratch.connection.cursor(), output, columns, below) as loading:
                _spool(_first(listing, settings.limit), scratch.folder)
                version = loading.result()
            scratch.connection.execute(f"CREATE VIEW listing AS FROM read_parquet('{scratch.folder}/*.parquet')")
            if spec.names_its_images or len(spec.sources) > 1 or _may_hold_twins(scratch.connection):
                _drop_twins(scratch.connection)
            _load_fingerprints(scratch.connection, output, fingerprint, weights_sha256)
            _join(scratch.connection, settings.mode, whole_listing=settings.limit is None and bool(selections))
            _keep_removed_in_scope(scratch.connection, selections)
            _keep_removed_of_read_containers(scratch.connection)
            # Without this, DuckDB 1.5 returns the sorted rows in another order. Set any earlier, it costs memory.
            scratch.connection.execute("SET preserve_insertion_order = true")
            planned = tuple(name for name in REASONS if name != "removed" or settings.tombstone_removed)
            changes = Changes(scratch, version, planned)
    except BaseException:
        scratch.close()
        raise
    return changes


@contextlib.contextmanager
def _beside(
    load: Callable[..., int | None], cursor: duckdb.DuckDBPyConnection, *arguments: Any
) -> Iterator[Future[int | None]]:
    """Call `load(cursor, *arguments)` in a thread. If the body raises, the thread's query ends at once: Ctrl-C waits
    for no table.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="current rows") as threads:
        loading = threads.submit(load, cursor, *arguments)
        try:
            yield loading
        except BaseException:
            while not loading.done():  # an interrupt before the query begins is lost
                cursor.interrupt()
                wait([loading], timeout=0.1)
            raise


def _first(listing: Iterable[pa.Table], number: int | None) -> Iterator[pa.Table]:
    """The first `number` images of the listing; None: all."""
    left = number
    for table in listing:
        yield table if left is None else table.slice(0, left)
        if left is not None and (left := left - table.num_rows) <= 0:
            return


def _spool(listing: Iterable[pa.Table], folder: str) -> None:
    """Write the listing to Parquet files in `folder`: DuckDB would take ten times as long to insert the rows."""
    number = 0
    pending: list[pa.Table] = []

    def write() -> None:
        nonlocal number
        rows = pa.concat_tables(pending or [LISTED.empty_table()])
        pq.write_table(rows, f"{folder}/{number:06d}.parquet", compression="snappy", use_dictionary=False)
        number += 1
        pending.clear()

    num_rows = 0
    for table in listing:
        pending.append(table)
        num_rows += table.num_rows
        if num_rows >= _ROWS_A_FILE:
            write()
            num_rows = 0
    if pending or not number:
        write()


def _may_hold_twins(database: duckdb.DuckDBPyConnection) -> bool:
    """Whether an object may have the key of an image in a tar: `t.tar#a.jpg` is a good name for an object, too."""
    [(containers, hashes)] = database.execute(
        "SELECT count(object_uri), count(*) FILTER (contains(coalesce(object_uri, image_key), '#')) FROM listing"
    ).fetchall()
    return bool(containers and hashes)


def _drop_twins(database: duckdb.DuckDBPyConnection) -> None:
    """Keep one row of an image that is listed several times, by overlapping inputs or by lines of a manifest.

    RunError if one key stands for two objects, or for two places in an object.
    """
    place = "coalesce(object_uri, image_key), position, row_group"
    twins = database.execute(
        f"SELECT image_key, count(*) FROM listing GROUP BY image_key HAVING count(*) > 1 AND "
        f"(count(DISTINCT row({place})) > 1 OR count(DISTINCT etag) > 1) LIMIT 1"
    ).fetchone()
    if twins is not None:
        raise RunError(
            f"--input: {twins[1]} images have the key {shown(twins[0])} and lie in different places, or have different "
            "ETags; give each image a key of its own"
        )
    database.execute(
        "CREATE TABLE each_once AS SELECT * FROM listing QUALIFY row_number() OVER (PARTITION BY image_key) = 1"
    )
    database.execute("CREATE OR REPLACE VIEW listing AS FROM each_once")


def _load_fingerprints(
    database: duckdb.DuckDBPyConnection, output: Output, fingerprint: str, weights_sha256: str
) -> None:
    """Make the table `fingerprints`: each other fingerprint of current rows, and the reason that it gives an image."""
    database.execute("CREATE TABLE fingerprints (fingerprint VARCHAR, reason VARCHAR)")
    others = database.execute(
        "SELECT fingerprint, arg_max(run_id, (run_created, run_id)) FROM current WHERE fingerprint <> ? GROUP BY ALL",
        [fingerprint],
    ).fetchall()
    for other, run_id in others:
        same_weights = _weights_of(output, run_id) == weights_sha256
        reason = "settings_changed" if same_weights else "model_changed"
        database.execute("INSERT INTO fingerprints VALUES (?, ?)", [other, reason])


def _weights_of(output: Output, run_id: str) -> str | None:
    """The hash of the weights of a run. None if its run.json is gone: then nothing shows that the model is the same."""
    record = read_run_record(output, output.run(run_id))
    return None if record is None else record.model.weights_sha256


_IN_MODE = {
    "incremental": "reason",
    "overwrite": "CASE reason WHEN 'unchanged' THEN 'overwrite' ELSE reason END",
    "retry-failed": """
        CASE WHEN reason = 'removed' THEN reason WHEN failed THEN 'retry'
             WHEN reason = 'unchanged' THEN reason ELSE 'not_selected' END""",
}


def _join(database: duckdb.DuckDBPyConnection, mode: str, *, whole_listing: bool) -> None:
    """Make the table `changes`: PLANNED_IMAGES of every image in `listing` or `current`.

    A size of a row of a Parquet file is an estimate, and null or "" is a fact that nobody knows: neither is compared.
    """
    transient = ", ".join(f"'{code.value}'" for code in TRANSIENT)
    places = ", ".join(f"l.{name}" for name in LISTED.names[3:])
    database.execute(f"""
        CREATE TABLE changes AS
        WITH compared AS (
            SELECT coalesce(l.image_key, c.image_key) AS image_key,
                   coalesce(l.etag, c.etag) AS etag,
                   CASE WHEN l.image_key IS NULL THEN c.size_bytes ELSE l.size_bytes END AS size_bytes,
                   {places},
                   c.status = 'failed' AS failed,
                   CASE
                       WHEN l.image_key IS NULL THEN 'removed'
                       WHEN c.image_key IS NULL THEN 'new'
                       WHEN l.etag <> '' AND l.etag <> c.etag THEN 'changed'
                       WHEN l.row_group IS NULL AND l.size_bytes <> c.size_bytes THEN 'changed'
                       WHEN f.reason IS NOT NULL THEN f.reason
                       WHEN c.status = 'failed' AND c.error_code IN ({transient}) THEN 'retry'
                       ELSE 'unchanged'
                   END AS reason
            FROM listing l {"FULL" if whole_listing else "LEFT"} JOIN current c ON l.image_key = c.image_key
            LEFT JOIN fingerprints f ON c.fingerprint = f.fingerprint
        )
        SELECT * EXCLUDE (failed) REPLACE ({_IN_MODE[mode]} AS reason) FROM compared
    """)


def _keep_removed_in_scope(database: duckdb.DuckDBPyConnection, selections: list[Selection]) -> None:
    """Drop removed images that the listing could not hold: patterns leave them out, or they lie beside the input."""
    reader = database.cursor().sql("SELECT image_key FROM changes WHERE reason = 'removed'").to_arrow_reader(_ROWS)
    database.execute("CREATE TABLE beside (image_key VARCHAR)")
    for batch in reader:
        keys = pa.chunked_array([batch["image_key"]])
        in_scope = pa.chunked_array([pa.repeat(pa.scalar(False), len(keys))])
        for selection in selections:
            in_scope = pc.or_(in_scope, selection.in_scope(keys))
        beside = keys.filter(pc.invert(in_scope))
        if len(beside):
            database.from_arrow(pa.table({"image_key": beside})).insert_into("beside")
    database.execute("DELETE FROM changes WHERE reason = 'removed' AND image_key IN (SELECT image_key FROM beside)")


def _keep_removed_of_read_containers(database: duckdb.DuckDBPyConnection) -> None:
    """Drop removed images of containers that could not be read, or not to their end: the images may still be there.

    The fault of such a container stands in a row that has its URI as key; the keys of its images are `<URI>#<name>`.
    """
    database.execute("""
        DELETE FROM changes WHERE reason = 'removed' AND image_key IN (
            SELECT image_key
            FROM (
                SELECT image_key, string_split(image_key, '#') AS parts
                FROM changes WHERE reason = 'removed' AND contains(image_key, '#')
            ), unnest(range(1, len(parts))) AS numbers(number)
            WHERE array_to_string(parts[1:number], '#') IN (
                SELECT image_key FROM listing WHERE fault IS NOT NULL AND object_uri IS NULL
            )
        )
    """)
