"""Convert batches of images in processes of their own: rows in, files and lines out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.export.format import Census, ExportImage, Format, Segment
from pipeline.export.parts.masks import first_overlap
from pipeline.export.registry import FORMATS
from pipeline.export.rows import FILE_NAME, SEGMENT_COLUMNS
from pipeline.export.settings import ExportSettings
from pipeline.export.state import BatchDone, State
from pipeline.export.target import Target
from pipeline.tables.rows_by_image import ImageBatch

MOST_WAITING_BYTES = 32 * 2**20  # of files or rows of a batch in memory, beside those of one image


@dataclass(frozen=True)
class BatchTask:
    """A batch on its way to another process."""

    number: int
    images: bytes  # Arrow streams; a pickled slice of a table would carry the whole table
    segments: bytes
    numbers: list[int]
    offsets: list[int]
    first_annotation: int

    @classmethod
    def of(cls, number: int, batch: ImageBatch, first_annotation: int) -> "BatchTask":
        images, segments = _packed(batch.images), _packed(batch.segments)
        return cls(number, images, segments, batch.numbers.tolist(), batch.offsets.tolist(), first_annotation)

    @property
    def num_bytes(self) -> int:
        return len(self.images) + len(self.segments)


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Converter:
    """What a process needs to convert batches."""

    def __init__(self, settings: ExportSettings, census: Census):
        self.format: Format = FORMATS[settings.format](settings, census)
        self.state = State(Target.open(settings.to))

    def convert(self, task: BatchTask) -> BatchDone:
        """Write the files and lines of a batch. RunError if that is not possible."""
        lines: dict[str, list[bytes]] = {}
        counts: Counter[str] = Counter()
        files = _Files(self.state.target)
        with _RowFile(self.state.target, self.format.row_file(task.number)) as rows:
            for image in images_of(task):
                made = self.format.convert(image)
                files.add(made.files)
                rows.add(made.rows)
                for stream, some in made.lines.items():
                    lines.setdefault(stream, []).extend(some)
                counts.update(made.counts)
        # A stream without a line is no file: between two files stands a separator.
        joined = {stream: self.format.streams[stream].join(some) for stream, some in lines.items() if some}
        return self.state.write_batch(task.number, files.waiting, joined, counts)


class _Files:
    """Files of a batch: those that do not wait are written."""

    def __init__(self, target: Target):
        self._target, self.waiting, self._num_bytes = target, dict[str, bytes](), 0

    def add(self, files: Mapping[str, bytes]) -> None:
        self.waiting.update(files)
        self._num_bytes += sum(map(len, files.values()))
        if self._num_bytes > MOST_WAITING_BYTES:
            self._target.put_all(self.waiting)
            self.waiting, self._num_bytes = {}, 0


class _RowFile:
    """The Parquet file of a batch, written in row groups while rows are added.

    The file appears when the context ends, and not if its body raises.
    """

    def __init__(self, target: Target, file: tuple[str, pa.Schema] | None):
        self._target = target
        self._name: str
        self._schema: pa.Schema | None
        self._name, self._schema = file or ("", None)
        self._waiting: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None
        self._open = ExitStack()

    def __enter__(self) -> "_RowFile":
        return self

    def __exit__(self, *error: Any) -> None:
        with self._target.errors(), self._open:
            if error[0] is None:
                self._write()
            else:
                self._open.__exit__(*error)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self._waiting += [pa.RecordBatch.from_pylist([row], self._schema) for row in rows]
        if sum(one.nbytes for one in self._waiting) > MOST_WAITING_BYTES:
            with self._target.errors():
                self._write()

    def _write(self) -> None:
        if self._waiting and self._writer is None:
            file = self._open.enter_context(self._target.writing(self._name))
            self._writer = self._open.enter_context(pq.ParquetWriter(file, self._schema, compression="zstd"))
        if self._writer is not None and self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
            self._waiting = []


def images_of(task: BatchTask) -> Iterator[ExportImage]:
    """The images of a batch, with Python's own numbers. RunError if a mask does not fit its image."""
    with pa.ipc.open_stream(task.images) as stream:
        images = stream.read_all().to_pylist()
    with pa.ipc.open_stream(task.segments) as stream:
        columns = [stream_column.to_pylist() for stream_column in stream.read_all().select(SEGMENT_COLUMNS).columns]
    rows = list(zip(*columns, strict=True))
    for n, (number, row) in enumerate(zip(task.numbers, images, strict=True)):
        start, stop = task.offsets[n], task.offsets[n + 1]
        image = _image(number, row)
        for place, (*values, mask) in enumerate(rows[start:stop], task.first_annotation + start):
            segment = Segment._make([place, *values, (mask["counts"] or "").encode()])
            if mask["size"] != [image.height, image.width]:
                why = f"its mask is of {mask['size']}, but its image has {image.height} x {image.width} pixels"
                raise image.damaged(segment, why)
            image.segments.append(segment)
        yield image


def _image(number: int, row: dict[str, Any]) -> ExportImage:
    if not row["height"] or not row["width"]:
        raise RunError(f"--tables: {row['image_key']} has a result, but no size: the table is damaged")
    return ExportImage(
        number + 1,
        row["image_key"],
        row[FILE_NAME.name],
        row["height"],
        row["width"],
        row["etag"],
        row["size_bytes"],
        row["run_id"],
        row["attributes"],
        [],
    )


def find_overlap(task: BatchTask) -> str | None:
    """Say which segments of the batch overlap first; None if none do. RunError if a mask is damaged."""
    for image in images_of(task):
        if (overlap := first_overlap(image)) is not None:
            segment, taken = overlap
            return f"{image.key}: segment {segment.segment_id} shares {taken} pixels with segments before it"
    return None
