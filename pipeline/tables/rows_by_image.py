"""The current rows of both tables, image by image in the order of image_key, for any number of images.

Readers that write one thing per image (an export, a report) need an image together with its segments, and the same
order and numbers each time. The tables have neither: parts follow shards, and merged files mix runs. So DuckDB sorts
the segments by the number of their image, on disk where memory does not suffice, and masks are put into the same order
beside it (`in_order/spilled_masks.py`). Python holds one batch at a time.

The order of image_key is the order of its UTF-8 bytes. Segments of an image come in the order of segment_id.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.store.filesystem import STORE_ERRORS
from pipeline.tables.current_view import load_current, open_segments, reading
from pipeline.tables.in_order.ascending_rows import MASK, NUMBER, AscendingRows
from pipeline.tables.in_order.spilled_masks import MissingMasksError, Ranked, in_order
from pipeline.tables.spill_database import MEMORY_MIB, ScratchDatabase, out_of_room, registered
from pipeline.tables.stream_table import check_files, columns_of, files_of_run, plain, stream_table

IMAGES_PER_BATCH = 256
# A batch ends before the image with which its masks would exceed this, so that images of huge scenes come alone.
BATCH_BYTES = 32 * 2**20
_STREAM_ROWS = 2048  # of DuckDB's own vectors; more would hold many masks of huge scenes
_UNPACKED = 2  # bytes of masks for each byte of a file
_POSITION = pa.field("position", pa.int64(), nullable=False)
_ORDER = ("segment_id", "category_id", "score")
_BY = ", ".join([NUMBER, *_ORDER, "position"])


@dataclass(frozen=True)
class ImageBatch:
    """Images with all of their segments.

    `images` has the wanted columns of schema.IMAGES, one row per image. `numbers` [N] are their places in the order of
    image_key among all current images, from 0. The segments of image n of the batch are the rows `offsets[n]` to
    `offsets[n + 1]` of `segments`, which has the wanted columns of schema.SEGMENTS. These are neither image_key nor
    run_id: a segment has both from its image.
    """

    images: pa.Table
    numbers: NDArray[np.int64]
    segments: pa.Table
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """Which current rows come, as SQL conditions that the caller has checked; numbers of images do not depend on them.

    `images` is over columns of schema.IMAGES; an image for which the condition does not hold does not come. `rows` is
    over columns of both tables and holds or not for each segment; an image without segments counts as one row whose
    columns of `segments` are null. An image comes if `rows` holds for one of its rows. Of its segments come those for
    which `rows` and `segments` hold, which is over columns of both tables. The other two fields name the columns that
    the conditions use.
    """

    images: str = "true"
    rows: str | None = None
    segments: str = "true"
    image_columns: tuple[str, ...] = ()
    segment_columns: tuple[str, ...] = ()


ALL_ROWS = Wanted()


class RowsByImage:
    """The current view of both tables at one moment, image by image. `close`, or the end of this object, removes files.

    `version` is a version of the table `images`, for the same view twice; the attribute `version` says which one this
    object reads. With `run_id`, the rows of this run take the place of the current rows. `num_current` is the number of
    images before any condition, `num_in_question` the number for which the condition `images` holds.

    Raises RunError if nothing is published or the tables cannot be read, and a duckdb.Error if a condition of `wanted`
    fails.
    """

    def __init__(
        self,
        output: Output,
        image_columns: Sequence[str],
        segment_columns: Sequence[str],
        *,
        wanted: Wanted = ALL_ROWS,
        run_id: str | None = None,
        version: int | None = None,
        memory_mib: int = MEMORY_MIB,
    ):
        self._output, self._wanted, self._run_id = output, wanted, run_id
        self._of_images = columns_of("images", image_columns)
        self._of_segments = columns_of("segments", segment_columns)
        self._scratch = ScratchDatabase(memory_mib)
        self.connection = self._scratch.connection
        """The database. Its table `numbered` has a row for each image that comes: image_number, image_key, run_id and
        the wanted columns; `found` a row for each segment that comes: image_number and the wanted columns without
        masks."""
        # A condition may come from a command line, and must not read files.
        self.connection.execute("SET enable_external_access = false")
        of_images = [*image_columns, *wanted.image_columns, "num_segments"]
        found = load_current(self.connection, output, of_images, version=version, run_id=run_id)
        if found is None:
            raise RunError(f"{output.name} has no published table images; give the --output of a run")
        self.version: int = found
        with out_of_room():
            self.num_current = self._count("current")
            self.connection.execute(
                f"""
                CREATE TABLE numbered AS
                SELECT * FROM (SELECT row_number() OVER (ORDER BY image_key) - 1 AS {NUMBER}, * FROM current)
                WHERE ({wanted.images});
                DROP TABLE current;
                """
            )
            self.num_in_question = self._count("numbered")
            self._segments = reading(output, "segments", self._find)
            if wanted.rows is not None:
                self._drop_images(wanted.rows)

    def num_images(self) -> int:
        """Images that come."""
        return self._count("numbered")

    def num_segments(self) -> int:
        """Segments that come."""
        return self._count("found")

    def add_column(self, column: pa.Field, query: str) -> None:
        """Give the images of `batches` one more column: `query` gives it by that name for each image_number."""
        with out_of_room():
            self.connection.execute(f"CREATE TABLE wider AS SELECT * FROM numbered JOIN ({query}) USING ({NUMBER})")
            self.connection.execute("DROP TABLE numbered; ALTER TABLE wider RENAME TO numbered")
        self._of_images = self._of_images.append(column)

    def batches(self, images_per_batch: int = IMAGES_PER_BATCH, batch_bytes: int = BATCH_BYTES) -> Iterator[ImageBatch]:
        """All images, each once and in order. The same rows are divided into the same batches each time.

        Raises RunError if the tables cannot be read or there is no room in TMPDIR.
        """
        with out_of_room():
            images, segments = AscendingRows(self._stream_images()), AscendingRows(self._stream_segments())
            while (ahead := images.ahead(images_per_batch)).size:
                last = segments.fitting(int(ahead[-1]), batch_bytes)
                numbers = ahead[: max(1, np.searchsorted(ahead, last, "right"))]
                of_images, _ = images.take(int(numbers[-1]))
                of_segments, of_image = segments.take(int(numbers[-1]))
                yield ImageBatch(
                    _with_schema(of_images, self._of_images),
                    numbers,
                    _with_schema(of_segments, self._of_segments),
                    np.append(np.searchsorted(of_image, numbers), len(of_image)),
                )

    def close(self) -> None:
        self._scratch.close()

    # --- which segments ---------------------------------------------------------------------------------------------

    def _find(self) -> DeltaTable | None:
        """Make the table `found`, of all wanted segments without their masks; the snapshot that they come from.

        `position` is the place of the row in the stream of the snapshot. `is_wanted` is false for rows that only decide
        which images come.
        """
        snapshot = open_segments(self._output, "segments", self.version)
        if snapshot is None and (missing := self._count("numbered WHERE num_segments > 0")):
            raise RunError(
                f"{self._output.name} has no published table segments, but {missing:,} of its images have segments: "
                "somebody has removed the table"
            )
        names = ["image_key", "run_id", *_light(self._of_segments.names, self._wanted.segment_columns, _ORDER)]
        schema = columns_of("segments", names)
        rows = iter(()) if snapshot is None else self._streamed(snapshot, names)
        kept = ", ".join(["position", *_light(self._of_segments.names, _ORDER)])
        with registered(self.connection, "published", schema.append(_POSITION), _with_positions(rows)):
            self.connection.execute(
                f"""
                CREATE OR REPLACE TABLE found AS SELECT {NUMBER}, {kept}, is_wanted FROM (
                    SELECT *, rows AND ({self._wanted.segments}) AS is_wanted
                    FROM (SELECT *, ({self._wanted.rows or "true"}) AS rows FROM ({self._joined("published", names)}))
                )
                WHERE {"rows" if self._wanted.rows else "is_wanted"}
                """
            )
        return snapshot

    def _streamed(self, snapshot: DeltaTable, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the table `segments`: the same rows in the same order each time."""
        return stream_table(self._output, "segments", snapshot, names, run_id=self._run_id)

    def _drop_images(self, rows: str) -> None:
        """Drop the images that have no row for which `rows` holds: see `Wanted`."""
        names = ["image_key", "run_id", *_light(self._wanted.segment_columns)]
        with registered(self.connection, "no_segment", columns_of("segments", names), iter(())):
            self.connection.execute(
                f"""
                CREATE TABLE kept AS SELECT * FROM numbered SEMI JOIN (
                    SELECT {NUMBER} FROM found UNION
                    SELECT {NUMBER} FROM ({self._joined("no_segment", names, "LEFT JOIN")})
                    WHERE num_segments = 0 AND ({rows})
                ) USING ({NUMBER});
                """
            )
        self.connection.execute("DROP TABLE numbered; ALTER TABLE kept RENAME TO numbered")
        self.connection.execute("DELETE FROM found WHERE is_wanted IS NOT TRUE")

    def _joined(self, segments: str, names: Sequence[str], join: str = "JOIN") -> str:
        """SQL: the rows of the table `segments`, which has the columns `names`, with the columns of their image."""
        of_images = [*self._wanted.image_columns, "num_segments"]
        columns = [f"n.{name}" for name in dict.fromkeys(of_images) if name not in names]
        of_rows = "p.* EXCLUDE (image_key, run_id)"
        return (
            f"SELECT n.{NUMBER}, image_key, run_id, {', '.join([of_rows, *columns])} "
            f"FROM numbered n {join} {segments} p USING (image_key, run_id)"
        )

    def _count(self, rows: str) -> int:
        [(count,)] = self.connection.execute(f"SELECT count(*) FROM {rows}").fetchall()
        return int(count)

    # --- in order ---------------------------------------------------------------------------------------------------

    def _stream_images(self) -> Iterator[pa.Table]:
        columns = ", ".join([NUMBER, *self._of_images.names])
        return self._query(f"SELECT {columns} FROM numbered ORDER BY {NUMBER}")

    def _stream_segments(self) -> Iterator[pa.Table]:
        columns = ", ".join([NUMBER, *_light(self._of_segments.names)])
        rows = self._query(f"SELECT {columns} FROM found ORDER BY {_BY}")
        if MASK not in self._of_segments.names:
            yield from rows
            return
        try:
            yield from _beside(rows, self._masks_in_order())
        except MissingMasksError:
            raise RunError(
                f"the table segments below {self._output.uri} has changed while it was read: there are other masks "
                "than rows; try again"
            ) from None

    def _masks_in_order(self) -> Iterator[pa.Array]:
        """The mask of each row of `found`, in order."""
        snapshot = self._segments
        if snapshot is None:
            return iter(())
        files = check_files(self._output, "segments", snapshot)
        among = None if self._run_id is None else files_of_run(self._output, "segments", snapshot, self._run_id)
        named = zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True)
        size = sum(num_bytes for path, num_bytes in named if among is None or path in among)
        folder = Path(tempfile.mkdtemp(dir=self._scratch.folder))
        return in_order(self._ranked_masks(snapshot), 0, self.num_segments(), _UNPACKED * size, folder)

    def _ranked_masks(self, snapshot: DeltaTable) -> Iterator[Ranked]:
        """All masks once more, as they lie in the tables, each with the place of its row in the order."""
        ranks = AscendingRows(
            self._query(
                f"""
                SELECT position AS {NUMBER}, rank FROM (
                    SELECT position, row_number() OVER (ORDER BY {_BY}) - 1 AS rank FROM found
                ) ORDER BY position
                """
            )
        )
        first = 0
        try:
            for batch in self._streamed(snapshot, [MASK]):
                wanted, positions = ranks.take(first + len(batch) - 1)
                if wanted is not None:
                    yield Ranked(wanted["rank"].to_numpy(), batch[MASK].take(pa.array(positions - first)))
                first += len(batch)
        except (*STORE_ERRORS, pa.ArrowException) as error:
            raise RunError(f"the table segments below {self._output.uri} cannot be read: {plain(error)}") from None

    def _query(self, query: str) -> Iterator[pa.Table]:
        """Several results are read at the same time, so each has a connection of its own."""
        cursor = self.connection.cursor()
        cursor.execute("SET TimeZone = 'UTC'")
        for batch in cursor.sql(query).to_arrow_reader(_STREAM_ROWS):
            yield pa.Table.from_batches([batch])


def _light(*names: Sequence[str]) -> list[str]:
    """The columns, each once, without masks and without those by which the tables are joined."""
    return [name for name in dict.fromkeys(itertools.chain(*names)) if name not in (MASK, "image_key", "run_id")]


def _with_positions(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in batches:
        yield batch.append_column(_POSITION, pa.array(np.arange(first, first + len(batch))))
        first += len(batch)


def _beside(rows: Iterator[pa.Table], masks: Iterator[pa.Array]) -> Iterator[pa.Table]:
    """The rows with their masks, which come in pieces of another size. MissingMasksError if there are fewer or more."""
    left: pa.Table | None = None
    for some in masks:
        while len(some):
            left = next(rows, None) if left is None else left
            if left is None:
                raise MissingMasksError
            count = min(len(left), len(some))
            yield left.slice(0, count).append_column(MASK, some.slice(0, count))
            left, some = left.slice(count) if count < len(left) else None, some.slice(count)
    if left is not None or any(map(len, rows)):
        raise MissingMasksError


def _with_schema(rows: pa.Table | None, schema: pa.Schema) -> pa.Table:
    return schema.empty_table() if rows is None else rows.select(schema.names).cast(schema)
