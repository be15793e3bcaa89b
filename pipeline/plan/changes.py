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
import math
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.config import Settings
from pipeline.input_spec import InputSpec
from pipeline.inputs.selection import Selection
from pipeline.layout import Output
from pipeline.plan import reasons
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.plan.spool import Spool
from pipeline.schema import REASONS
from pipeline.tables.current_view import load_current
from pipeline.tables.spill_database import MEMORY_MIB, ScratchDatabase, out_of_room


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
    is_last: whether no other batch of the listing follows.
    """

    def __init__(self, scratch: ScratchDatabase, version: int | None, planned: tuple[str, ...], *, is_last: bool):
        self.version, self.planned, self.is_last = version, planned, is_last
        self.close: Callable[[], None] = lambda: None
        self._scratch = scratch
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
            reader = rows.to_arrow_reader(reasons.ROWS)
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(PLANNED_IMAGES)

    def __enter__(self) -> "Changes":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def describe(counts: dict[str, int]) -> str:
    """Text such as `1,204 unchanged, 3 removed`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items())) or "no images"


class Comparison:
    """The listing and the published table, compared in batches while the listing goes on.

    counts: numbers of images by reason, of all batches so far; see Changes.
    """

    def __init__(self, given: "_Given", scratch: ScratchDatabase, spool: Spool, loading: Future[int | None]):
        self.counts: Counter[str] = Counter()
        self._given, self._scratch, self._spool, self._loading = given, scratch, spool, loading

    def leave_out(self, planned: Iterable[pa.Table]) -> None:
        """Leave images of tables with the column `image_key` out of all batches. ValueError if an image comes twice."""
        with out_of_room():
            reasons.load_planned(self._scratch.connection, planned)

    def batches(self, *, at_once: bool = False) -> Iterator[Changes]:
        """The changes of each batch, to be used before the next. The last has the images that are removed.

        The first has what is listed when the current rows are there. Each further one has at least as many images as
        all before it, because each costs a look at all current rows. Of inputs that may name an image twice, with
        --limit, and with `at_once`, there is one batch.

        Raises RunError if the listing breaks off or names two images by one key, or if the published table cannot be
        read.
        """
        given, database = self._given, self._scratch.connection
        in_batches = given.lists_all and not given.may_overlap and not at_once
        files = self._spool.take(1 if in_batches else math.inf)
        with out_of_room():
            version = self._loading.result()
            reasons.load_fingerprints(database, given.output, given.fingerprint, given.weights_sha256)
            num_known = 0
            while True:
                files += self._spool.take(0)
                is_last = self._spool.has_ended
                self._make_views(files if in_batches else None, is_last=is_last)
                database.execute("SET preserve_insertion_order = false")
                num_known += reasons.join(database, given.settings.mode)
                if is_last and given.lists_all and num_known < reasons.num_current(database):
                    reasons.add_removed(database, given.selections)
                # Without this, DuckDB 1.5 returns the sorted rows in another order. Set any earlier, it costs memory.
                database.execute("SET preserve_insertion_order = true")
                changes = Changes(self._scratch, version, given.planned, is_last=is_last)
                self.counts.update(changes.counts)
                yield changes
                if is_last:
                    return
                files = self._spool.take(max(1, self._spool.num_taken))

    def close(self) -> None:
        """Give the disk back."""
        self._scratch.close()

    def interrupt(self) -> None:
        """End what another thread is waiting for: a query, or the listing."""
        self._spool.stop()
        with contextlib.suppress(duckdb.ConnectionException):  # closed meanwhile
            self._scratch.connection.interrupt()

    def _make_views(self, files: list[str] | None, *, is_last: bool) -> None:
        """The views `listing` and `batch`, which is of these files; None: of the whole listing at once.

        An image that may be a twin waits for the last batch.
        """
        database, everything = self._scratch.connection, self._spool.files()
        database.execute(f"CREATE OR REPLACE VIEW listing AS FROM {_read(everything)}")
        if files is None:
            if self._given.may_overlap or reasons.may_hold_twins(database):
                reasons.refuse_twins(database)
                reasons.keep_each_once(database)
            database.execute("CREATE OR REPLACE VIEW batch AS FROM listing")
            return
        parts = [f"SELECT * FROM {_read(files)} WHERE NOT {reasons.MAY_BE_TWIN}"] if files else []
        if is_last:
            if reasons.may_hold_twins(database):
                reasons.refuse_twins(database)
            parts.append(f"SELECT * FROM listing WHERE {reasons.MAY_BE_TWIN}")
        database.execute(f"CREATE OR REPLACE VIEW batch AS {' UNION ALL '.join(parts)}")


def _read(files: list[str]) -> str:
    paths = ", ".join("'{}'".format(path.replace("'", "''")) for path in files)
    return f"read_parquet([{paths}])"


@dataclass(frozen=True)
class _Given:
    """With whose rows a listing is compared, and how."""

    spec: InputSpec
    settings: Settings
    output: Output
    fingerprint: str
    weights_sha256: str

    @property
    def selections(self) -> list[Selection]:
        return [] if self.spec.names_its_images else [Selection(self.spec, source) for source in self.spec.sources]

    @property
    def lists_all(self) -> bool:
        """Whether an image that is not listed is removed."""
        return self.settings.limit is None and not self.spec.names_its_images

    @property
    def may_overlap(self) -> bool:
        """Whether the inputs may name an image twice."""
        below = [selection.below for selection in self.selections]
        return self.spec.names_its_images or any(a.startswith(b) for a, b in permutations(below, 2))

    @property
    def planned(self) -> tuple[str, ...]:
        """The reasons that put an image into the plan."""
        return tuple(name for name in REASONS if name != "removed" or self.settings.tombstone_removed)


@contextlib.contextmanager
def comparing(
    listing: Iterable[pa.Table],
    spec: InputSpec,
    settings: Settings,
    output: Output,
    *,
    fingerprint: str,
    weights_sha256: str,
    stopped: threading.Event | None = None,
    memory_mib: int = MEMORY_MIB,
) -> Iterator[Comparison]:
    """Compare `listing`, the whole listing of `spec`, with the published table. Threads list and read in the body.

    Of the settings, only `mode`, `limit` and `tombstone_removed` matter. Only rows of keys below the inputs are
    compared, because several inputs may share an output. If the inputs name their images one by one, no image counts as
    removed: such a list does not say of which images it is the whole. `stopped` is set when the body ends, so that the
    listing may end early. `memory_mib` limits the memory of DuckDB; the rest goes to TMPDIR, about as much as the keys
    of the listing and of all rows below the inputs take.
    """
    given = _Given(spec, settings, output, fingerprint, weights_sha256)
    columns = ("etag", "size_bytes", "status", "error_code", "fingerprint", "run_created")
    below = tuple(selection.below for selection in given.selections)
    scratch = ScratchDatabase(memory_mib)
    try:
        with (
            out_of_room(),
            _beside(load_current, scratch.connection.cursor(), output, columns, below) as loading,
            Spool(_first(listing, settings.limit), scratch.folder, stopped or threading.Event()) as spool,
        ):
            reasons.make_planned(scratch.connection)
            yield Comparison(given, scratch, spool, loading)
    finally:
        scratch.close()


def changes_at_once(comparing: contextlib.AbstractContextManager[Comparison]) -> Changes:
    """The changes of the whole listing. Their end is the end of `comparing`. Raises what `batches` raises."""
    with contextlib.ExitStack() as stack:
        [changes] = stack.enter_context(comparing).batches(at_once=True)
        changes.close = stack.pop_all().close
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


def _first(listing: Iterable[pa.Table], number: int | None) -> Generator[pa.Table]:
    """The first `number` images of the listing; None: all."""
    left = number
    for table in listing:
        yield table if left is None else table.slice(0, left)
        if left is not None and (left := left - table.num_rows) <= 0:
            return
