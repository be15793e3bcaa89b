"""What a run found in a sample of its images: how many segments, with which scores, which share of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval
from numpy.typing import NDArray
from pydantic import with_config

from pipeline.commit.receipt import PartRecord, Receipt
from pipeline.errors import BrokenRunError
from pipeline.layout import Output
from pipeline.store.filesystem import one_line
from pipeline.store.json_records import STRICT, Count

_MOST_SHARDS = 64  # of a run, of which parts are read
_Share = Annotated[float, Interval(ge=0.0, le=1.0)]
_IMAGES = ["image_key", "status", "height", "width"]
_SEGMENTS = ["image_key", "category_id", "category_name", "score", "area"]


@with_config(STRICT)
@dataclass(frozen=True)
class Figures:
    """The figures of each image of a sample, all with status `ok`."""

    num_segments: list[Count]  # by image
    scores: list[float | None]  # mean over the segments of the image; None: there are none
    shares: dict[str, dict[str, _Share]]  # class (id and name) -> number of the image -> share of its pixels

    @property
    def num_images(self) -> int:
        return len(self.num_segments)

    def matrix(self, classes: Sequence[str]) -> NDArray[np.float64]:
        """[images, 2 + classes]: number of segments, score (NaN for None), share of each class."""
        values = np.zeros((self.num_images, 2 + len(classes)))
        values[:, 0] = self.num_segments
        values[:, 1] = [np.nan if score is None else score for score in self.scores]
        for column, name in enumerate(classes, 2):
            for image, share in self.shares.get(name, {}).items():
                if image.isdecimal() and int(image) < self.num_images:
                    values[int(image), column] = share
        return values


def figures_of(output: Output, receipts: Sequence[Receipt], most_images: int) -> Figures | None:
    """The figures of at most `most_images` images, evenly from the shards of a run.

    None if a part is gone, as it may be once its rows were merged into another file.
    """
    number = min(len(receipts), _MOST_SHARDS)
    chosen = [receipts[place * len(receipts) // number] for place in range(number)]
    num_segments: list[int] = []
    scores: list[float | None] = []
    shares: dict[str, dict[str, float]] = {}
    for place, receipt in enumerate(chosen):
        tables = [_read(output, receipt.parts[name], columns) for name, columns in _COLUMNS.items()]
        if any(table is None for table in tables):
            return None
        images, segments = (table.to_pylist() for table in tables if table is not None)
        rows: dict[str, list[dict[str, float | str]]] = {}
        for row in segments:
            rows.setdefault(row["image_key"], []).append(row)
        room = (most_images - len(num_segments)) // (number - place)
        done = [image for image in images if image["status"] == "ok"]
        room = min(room, len(done))
        for image in (done[n * len(done) // room] for n in range(room)):
            found, pixels = rows.get(image["image_key"], []), image["height"] * image["width"]
            at = str(len(num_segments))
            num_segments.append(len(found))
            scores.append(round(float(np.mean([row["score"] for row in found])), 5) if found else None)
            for row in found:
                of_class = shares.setdefault(f"{row['category_id']} {row['category_name']}", {})
                of_class[at] = min(1.0, round(of_class.get(at, 0.0) + float(row["area"]) / pixels, 5))
    return Figures(num_segments, scores, shares)


_COLUMNS = {"images": _IMAGES, "segments": _SEGMENTS}


def _read(output: Output, part: PartRecord, columns: list[str]) -> pa.Table | None:
    data = output.read_or_none(output.at(part.path), part.size_bytes)
    try:
        return None if data is None else pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BrokenRunError(f"the part {part.path} cannot be read: {one_line(error)}") from error
