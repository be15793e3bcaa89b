"""What a run found in a sample of its images: which failed, how many segments, scores, the share of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Interval
from numpy.typing import NDArray
from pydantic import with_config

from pipeline.commit.receipt import Receipt
from pipeline.layout import Output
from pipeline.store.json_records import STRICT, Count
from pipeline.tables.finished_run import part_rows

SEGMENTS, SCORE, FAILED, FIRST_CLASS = range(4)  # columns of `Figures.matrix`
_MOST_SHARDS = 64  # of a run, of which parts are read
_Share = Annotated[float, Interval(ge=0.0, le=1.0)]
_IMAGES = ["image_key", "status", "height", "width"]
_SEGMENTS = ["image_key", "category_id", "category_name", "score", "area"]


@with_config(STRICT)
@dataclass(frozen=True)
class Figures:
    """The figures of each image of a sample; of the images that are gone from the input, none is in the sample."""

    num_segments: list[Count | None]  # by image; None: the image failed
    scores: list[float | None]  # mean over the segments of the image; None: there are none
    shares: dict[str, dict[str, _Share]]  # class (id and name) -> number of the image -> share of its pixels

    @property
    def num_images(self) -> int:
        return len(self.num_segments)

    @property
    def num_ok(self) -> int:
        return self.num_images - self.num_segments.count(None)

    def matrix(self, classes: Sequence[str]) -> NDArray[np.float64]:
        """[images, 3 + classes]: number of segments, score (NaN for None), whether it failed, share of each class.

        An image that failed has NaN in all other columns.
        """
        values = np.zeros((self.num_images, FIRST_CLASS + len(classes)))
        values[:, SCORE] = [np.nan if score is None else score for score in self.scores]
        for column, name in enumerate(classes, FIRST_CLASS):
            for place, share in self.shares.get(name, {}).items():
                if place.isdecimal() and int(place) < self.num_images:
                    values[int(place), column] = share
        for image, number in enumerate(self.num_segments):
            if number is None:
                values[image] = np.nan
            else:
                values[image, SEGMENTS] = number
            values[image, FAILED] = number is None
        return values


def figures_of(output: Output, receipts: Sequence[Receipt], most_images: int) -> Figures:
    """The figures of at most `most_images` images, evenly from the shards of a run.

    RunError if a part is gone, as it may be once its rows were merged into another file, or is not as it was written.
    """
    number = min(len(receipts), _MOST_SHARDS)
    chosen = [receipts[place * len(receipts) // number] for place in range(number)]
    found = Figures([], [], {})
    for place, receipt in enumerate(chosen):
        images = part_rows(output, "images", receipt.parts["images"], _IMAGES)
        images = images.filter(pc.not_equal(images["status"], "removed"))
        room = min((most_images - found.num_images) // (number - place), len(images))
        images = images.take(pa.array(np.arange(room) * len(images) // max(room, 1)))
        segments = part_rows(output, "segments", receipt.parts["segments"], _SEGMENTS)
        _add(found, images, segments.filter(pc.is_in(segments["image_key"], images["image_key"].combine_chunks())))
    return found


def _add(found: Figures, images: pa.Table, segments: pa.Table) -> None:
    rows: dict[str, list[dict[str, float | str]]] = {}
    for row in segments.to_pylist():
        rows.setdefault(row["image_key"], []).append(row)
    for image in images.to_pylist():
        of_image, at = rows.get(image["image_key"], []), str(found.num_images)
        found.num_segments.append(len(of_image) if image["status"] == "ok" else None)
        found.scores.append(round(float(np.mean([row["score"] for row in of_image])), 5) if of_image else None)
        for row in of_image:
            of_class = found.shares.setdefault(f"{row['category_id']} {row['category_name']}", {})
            share = float(row["area"]) / (image["height"] * image["width"])
            of_class[at] = min(1.0, round(of_class.get(at, 0.0) + share, 5))
