"""What a format is: a class that turns one image into files and lines, and says which documents the lines make up."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from pipeline.errors import RunError
from pipeline.export.settings import ExportSettings
from pipeline.input_spec import Access
from pipeline.tables.rows_by_image import IMAGES_PER_BATCH


class Segment(NamedTuple):
    """A row of `segments`. All numbers are Python's own, as JSON needs."""

    annotation_id: int  # from 1, unique in the export
    segment_id: int
    category_id: int
    category_name: str
    isthing: bool
    score: float
    area: int
    bbox: list[float]  # x, y, width, height
    counts: bytes


@dataclass(frozen=True)
class ExportImage:
    """An image and its exported segments, in the order of segment_id."""

    image_id: int  # from 1: the place of image_key among all images of the view, whatever is exported of them
    key: str
    name: str  # of its files, without an extension: see names.py
    height: int
    width: int
    etag: str
    size_bytes: int | None  # of the object
    run_id: str
    attributes: str | None
    segments: list[Segment]

    def damaged(self, segment: Segment, why: object) -> RunError:
        """What is said of a mask that this program cannot have written."""
        return RunError(f"--tables: segment {segment.segment_id} of {self.key} is damaged: {why}")


@dataclass
class Converted:
    """What one image gives."""

    files: dict[str, bytes] = field(default_factory=dict)  # by name below --to
    lines: dict[str, list[bytes]] = field(default_factory=dict)  # by stream; a stream is part of a document
    counts: Counter[str] = field(default_factory=Counter)  # added up over all images, for `summary`
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the batch's Parquet file: see `Format.row_file`


@dataclass(frozen=True)
class Stream:
    """The place in a document where the lines of a stream stand, in the order of the images."""

    name: str


@dataclass(frozen=True)
class Document:
    """A file that is written when all images are converted, from constant parts and streams."""

    name: str
    parts: Sequence[bytes | Stream]


@dataclass(frozen=True)
class Census:
    """What is to be exported, as far as it is known before any mask is read."""

    tasks: dict[str, str | None]  # of each run: panoptic, instance or semantic; None if the run has left no record
    exif: dict[str, bool]  # by run: whether images were turned upright by their EXIF orientation
    access: dict[str, Access]  # by run: how requests to its inputs were signed and paid
    disjoint: bool  # whether all runs promise that the segments of an image do not overlap
    categories: tuple[dict[str, Any], ...]  # id, name, isthing; by id, each once
    num_images: int
    num_segments: int


class Format(ABC):
    """A format. An object of it is made in each process that converts images."""

    # Whether a pixel can belong to one segment only. Overlaps are refused before anything is written.
    one_segment_per_pixel: ClassVar[bool] = False
    # What stands between two lines of each stream.
    streams: ClassVar[Mapping[str, bytes]] = {}
    # Images whose work is lost if the export is stopped, for each worker.
    images_per_batch: ClassVar[int] = IMAGES_PER_BATCH

    def __init__(self, settings: ExportSettings, census: Census):
        self.settings, self.census = settings, census

    def check(self) -> None:
        """Raise RunError that names what would be lost, if the format cannot hold what is to be exported."""
        return

    @abstractmethod
    def convert(self, image: ExportImage) -> Converted:
        """The files and lines of one image. RunError if a mask is damaged."""

    def row_file(self, number: int) -> tuple[str, pa.Schema] | None:
        """Name and schema of the Parquet file with the rows of a batch, if there is one; `number` is the batch's place.

        A batch without rows has no file.
        """
        return None

    @abstractmethod
    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        """The files beside the images' own."""

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        """Lines for people, such as what the format has lost."""
        return ()
