"""Convert batches of images in processes of their own: rows in, files and lines out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import RunError
from pipeline.export.format import Census, ExportImage, Format, Segment
from pipeline.export.parts.masks import paint
from pipeline.export.registry import FORMATS
from pipeline.export.rows import FILE_NAME, SEGMENT_COLUMNS
from pipeline.export.settings import ExportSettings
from pipeline.export.state import BatchDone, State
from pipeline.export.target import Target
from pipeline.tables.rows_by_image import ImageBatch


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
        files: dict[str, bytes] = {}
        lines: dict[str, list[bytes]] = {}
        counts: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        for image in images_of(task):
            made = self.format.convert(image)
            files.update(made.files)
            rows.extend(made.rows)
            for stream, some in made.lines.items():
                lines.setdefault(stream, []).extend(some)
            counts.update(made.counts)
        files.update(self.format.pack(task.number, rows))
        # A stream without a line is no file: between two files stands a separator.
        joined = {stream: self.format.streams[stream].join(some) for stream, some in lines.items() if some}
        return self.state.write_batch(task.number, files, joined, counts)


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
        row["run_id"],
        row["attributes"],
        [],
    )


def find_overlap(task: BatchTask) -> str | None:
    """Say which segments of the batch overlap first; None if none do. RunError if a mask is damaged."""
    for image in images_of(task):
        map_WH = np.zeros((image.width, image.height), np.uint8)
        for segment in image.segments:
            if taken := paint(image, segment, map_WH, 1):
                return f"{image.key}: segment {segment.segment_id} shares {taken} pixels with segments before it"
    return None
