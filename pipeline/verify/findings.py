"""Findings of a check: one for each kind of fault and field, with a count and the first example, however many rows."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any


class Kind(Enum):
    """What may be wrong. The value is the text after the count."""

    RECORD = "records of runs are damaged, missing or contradict each other"
    NO_RECEIPT = "shards have no receipt"
    NOT_PUBLISHED = "tables do not have all shards of their run"
    NO_ROW = "planned images have no row"
    NOT_PLANNED = "rows are of images that their run has not planned"
    NOT_AS_PLANNED = "rows differ from the plan of their run"
    SEVERAL_ROWS = "images have several rows of one run"
    COUNTS = "figures of report.json are not those of the rows"
    LOST = "files of the tables do not exist"
    BYTES = "files do not have the size or the SHA-256 that receipt and log say"
    UNREADABLE = "files of the tables cannot be read as Parquet"
    COLUMNS = "files do not have the columns of their table"
    NUM_ROWS = "files do not have the number of rows that receipt and log say"
    NO_PART = "files of the tables lie among the parts of a run, but no receipt names them"
    UNKNOWN_RUN = "rows are of a run that the output does not have, or of another run than their part"
    NO_VALUE = "rows have no value in a column that is never null"
    VALUE = "rows have a value that their column cannot have"
    OF_RUN = "rows contradict run.json or the receipt of their part"
    STATUS = "rows of images contradict their own status"
    NUM_SEGMENTS = "images do not have as many segments as num_segments says"
    NO_IMAGE = "segments have no image in their run"
    OF_NO_RESULT = "images that failed or are removed have segments"
    SEGMENT_IDS = "images have segment ids that occur twice or leave gaps"
    CATEGORY = "segments have a category that the label map of their run does not have, or that its --classes leave out"
    NO_RLE = "segments have a mask that is no COCO RLE of its size"
    NOT_MEASURED = "segments have an area or a box that is not the one of their mask"
    SIZE = "images have masks of another size"
    SHARED_PIXELS = "images have segments that share pixels"
    NOT_COVERED = "images of a semantic run are not covered by their segments"


@dataclass(frozen=True)
class Finding:
    """A kind of fault in a field. The other values are those of the first example; "" where they say nothing."""

    kind: Kind
    field: str
    count: int
    run_id: str
    file: str  # relative to the output
    image_key: str
    found: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.name.lower(), "what": self.kind.value}

    def __str__(self) -> str:
        places = (("run", self.run_id), ("file", self.file), ("image", self.image_key))
        example = ", ".join(f"{name} {place}" for name, place in places if place)
        return f"{self.count:,} {self.kind.value} ({self.field}); for example {example or 'here'}: {self.found}"


class Findings:
    """The findings so far, by kind and field. Can be sent from a process to another, and added up there."""

    def __init__(self) -> None:
        self._first: dict[tuple[Kind, str], Finding] = {}

    def add(
        self, kind: Kind, field: str, found: object, *, run_id: str = "", file: str = "", key: str = "", count: int = 1
    ) -> None:
        """Count one fault or `count` faults; `found` is said of the first."""
        if count:
            self.include([Finding(kind, field, count, run_id, file, key, str(found))])

    def include(self, others: "Findings | Iterable[Finding]") -> None:
        """Add the counts of others; examples from before stay."""
        for other in others:
            before = self._first.get((other.kind, other.field))
            total = other if before is None else replace(before, count=before.count + other.count)
            self._first[other.kind, other.field] = total

    def __iter__(self) -> Iterator[Finding]:
        """In the order of `Kind`, then by field."""
        order = list(Kind)
        return iter(sorted(self._first.values(), key=lambda one: (order.index(one.kind), one.field)))

    def __len__(self) -> int:
        return len(self._first)
