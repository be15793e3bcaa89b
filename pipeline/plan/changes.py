"""Compare the listing with the published tables: what does the next run have to do, and why?

Both sides go through DuckDB on disk, so neither the listing nor the table is ever in Python's memory. The first of
these rules that holds gives an image its reason:

    the image has no current row, or its row says `removed`    new
    its ETag or its size differs                               changed
    its row was made with other weights                        model_changed
    ... or with other settings that change results             settings_changed
    its row says `failed`, for a reason that may pass          retry
    none of these                                              unchanged (mode overwrite: overwrite)
    the image has a current row but is not in the listing      removed

Mode retry-failed plans every listed image whose row says `failed`, whatever other rule holds, with the reason `retry`.
The mode leaves out all other images; those that another mode would plan count as `not_selected`.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import duckdb
import pyarrow as pa

from pipeline.commit.run_record import read_run_record
from pipeline.config import Settings
from pipeline.errors import TRANSIENT
from pipeline.inputs.listing import ListedImage
from pipeline.layout import Output
from pipeline.plan.shards import PlannedImage, below_input
from pipeline.schema import PLAN, REASONS
from pipeline.tables.current_view import load_current
from pipeline.tables.spill_database import MEMORY_MIB, ScratchDatabase, out_of_room

_ROWS = 20_000  # rows at a time between Python and DuckDB: a few MB

_LISTING = pa.schema([PLAN.field(name) for name in ("image_key", "etag", "size_bytes")])


class Changes:
    """The differences between the input and the published table, in a database on disk. A context manager.

    counts: numbers of images by reason. These include `unchanged`, `not_selected` (the mode leaves the image out) and
        `removed`, even if removed images are not planned; with --limit, removed images are unknown and not counted.
        Reasons without images are left out.
    size_bytes: encoded bytes by reason; a removed image counts with the size in its last row.
    planned: the reasons that put an image into the plan.
    num_planned: the number of images in the plan.
    version: of the table `images` that the listing was compared with; None if nothing is published.
    """

    def __init__(self, scratch: ScratchDatabase, version: int | None, planned: tuple[str, ...]):
        self.version = version
        self._scratch = scratch
        self.planned = planned
        totals = scratch.connection.execute(
            "SELECT reason, count(*), sum(size_bytes)::BIGINT FROM changes GROUP BY reason ORDER BY reason"
        ).fetchall()
        self.counts: dict[str, int] = {reason: images for reason, images, _ in totals}
        self.size_bytes: dict[str, int] = {reason: size for reason, _, size in totals}
        self.num_planned = sum(self.counts.get(reason, 0) for reason in planned)

    def images(self) -> Iterator[PlannedImage]:
        """The images to plan, sorted by key as an object store sorts keys (by the bytes of UTF-8)."""
        with out_of_room():
            rows = self._scratch.connection.cursor().sql(
                "SELECT image_key, etag, size_bytes, reason FROM changes "
                "WHERE list_contains(?, reason) ORDER BY image_key",
                params=[list(self.planned)],
            )
            reader = rows.to_arrow_reader(_ROWS)
        for batch in reader:
            columns = (column.to_pylist() for column in batch.columns)
            yield from map(PlannedImage, *columns)

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
    listing: Iterable[ListedImage],
    settings: Settings,
    output: Output,
    *,
    fingerprint: str,
    weights_sha256: str,
    memory_mib: int = MEMORY_MIB,
) -> Changes:
    """The changes that a run with these settings would have to process. `listing` is the whole of `settings.input`.

    Of the settings, only `input`, `mode`, `limit` and `tombstone_removed` matter. Only rows of keys below the input are
    compared, because several inputs may share an output. `memory_mib` limits the memory of DuckDB; the rest goes to
    TMPDIR, about as much as the keys of the listing and of all rows below the input take.

    Raises RunError if the listing breaks off or the published table cannot be read.
    """
    scratch = ScratchDatabase(memory_mib)
    try:
        with out_of_room():
            _load_listing(scratch.connection, islice(listing, settings.limit))
            columns = ("etag", "size_bytes", "status", "error_code", "fingerprint", "run_created")
            version = load_current(scratch.connection, output, columns, below=below_input(settings.input))
            _load_fingerprints(scratch.connection, output, fingerprint, weights_sha256)
            _join(scratch.connection, settings.mode, whole_listing=settings.limit is None)
            # Without this, DuckDB 1.5 returns the sorted rows in another order. Set any earlier, it costs memory.
            scratch.connection.execute("SET preserve_insertion_order = true")
            planned = tuple(name for name in REASONS if name != "removed" or settings.tombstone_removed)
            changes = Changes(scratch, version, planned)
    except BaseException:
        scratch.close()
        raise
    return changes


def _load_listing(database: duckdb.DuckDBPyConnection, listing: Iterable[ListedImage]) -> None:
    database.execute("CREATE TABLE listing (image_key VARCHAR, etag VARCHAR, size_bytes BIGINT)")
    images = iter(listing)
    # Each page is its own transaction: in a single transaction, DuckDB kept 170 bytes per image, whatever its limit.
    while page := list(islice(images, _ROWS)):
        database.from_arrow(_as_table(page)).insert_into("listing")


def _as_table(images: list[ListedImage]) -> pa.Table:
    keys = pa.array([image.image_key for image in images], pa.string())
    return pa.table(
        [keys, [image.etag for image in images], [image.size_bytes for image in images]],
        schema=_LISTING,
    )


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
    """Make the table `changes`: image_key, etag, size_bytes and reason of every image in `listing` or `current`."""
    transient = ", ".join(f"'{code.value}'" for code in TRANSIENT)
    database.execute(f"""
        CREATE TABLE changes AS
        WITH compared AS (
            SELECT coalesce(l.image_key, c.image_key) AS image_key,
                   coalesce(l.etag, c.etag) AS etag,
                   coalesce(l.size_bytes, c.size_bytes) AS size_bytes,
                   c.status = 'failed' AS failed,
                   CASE
                       WHEN l.image_key IS NULL THEN 'removed'
                       WHEN c.image_key IS NULL THEN 'new'
                       WHEN l.etag <> c.etag OR l.size_bytes <> c.size_bytes THEN 'changed'
                       WHEN f.reason IS NOT NULL THEN f.reason
                       WHEN c.status = 'failed' AND c.error_code IN ({transient}) THEN 'retry'
                       ELSE 'unchanged'
                   END AS reason
            FROM listing l {"FULL" if whole_listing else "LEFT"} JOIN current c ON l.image_key = c.image_key
            LEFT JOIN fingerprints f ON c.fingerprint = f.fingerprint
        )
        SELECT image_key, etag, size_bytes, {_IN_MODE[mode]} AS reason
        FROM compared
        -- An object named as the input, beside the folder of that name, is in no listing of the folder.
        WHERE reason <> 'removed' OR starts_with(image_key, getvariable('below'))
    """)
