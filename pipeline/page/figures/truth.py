"""The run against ground truth: PQ by class, which classes are mistaken for which, and the score of each image."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.evaluate.evaluate import evaluate_images
from pipeline.evaluate.score import ImageScore
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.page.figures.runs import ShownRun
from pipeline.page.settings import ReportSettings
from pipeline.tables.spill_database import ScratchDatabase, out_of_room

_MOST_CLASSES = 16  # of the matrix: those with the most pixels in the ground truth
NO_SEGMENT = -1  # in place of a category_id
_KEPT = ("category_id", "name", "PQ", "SQ", "RQ", "tp", "fp", "fn")


@dataclass(frozen=True)
class Truth:
    """The figures of the section, and the scores of all images, by image_key."""

    figures: dict[str, Any] | None = None
    images: dict[str, ImageScore] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()  # by class of the ground truth, and NO_SEGMENT

    def of(self, image_key: str) -> dict[str, Any]:
        """The score of an image: `pq`, and `mistaken` as [true category_id, predicted, pixels]."""
        score = self.images.get(image_key)
        if score is None:
            return {"pq": None, "mistaken": []}
        cells = [[self.category_ids[true], self.category_ids[found], n] for true, found, n in score.mistaken]
        return {"pq": score.pq, "mistaken": cells}


def read_truth(settings: ReportSettings, run: ShownRun) -> Truth:
    """Score the run, if the settings name ground truth. RunError as of `evaluate`."""
    if settings.panoptic_gt is None:
        return Truth()
    report, sums = evaluate_images(
        EvaluationSettings(
            settings.tables, run_id=run.run_id, panoptic_gt=settings.panoptic_gt, panoptic_pngs=settings.panoptic_pngs
        )
    )
    semantic = report["semantic"]
    ids = tuple(one["category_id"] for one in semantic["per_class"])
    names = [one["name"] for one in semantic["per_class"]]
    largest = [int(c) for c in sums.confusion.sum(axis=1).argsort()[::-1][:_MOST_CLASSES] if sums.confusion[c].sum()]
    matrix = [
        {
            "true": names[true],
            "true_id": ids[true],
            "found": names[found] if found < len(names) else "no segment",
            "found_id": ids[found] if found < len(ids) else NO_SEGMENT,
            "pixels": int(sums.confusion[true, found]),
            "share": float(sums.confusion[true, found] / sums.confusion[true].sum()),
        }
        for true in largest
        for found in (*largest, len(names))
    ]
    figures: dict[str, Any] = {
        "place": settings.panoptic_gt,
        "images": report["ground_truth"]["panoptic"]["images"],
        "warning": report["ground_truth"]["panoptic"]["warning"],
        "mIoU": semantic["mIoU"],
        "matrix": matrix,
    }
    if "panoptic" in report:
        figures["all"] = report["panoptic"]["all"]
        occurring = [one for one in report["panoptic"]["per_class"] if one["PQ"] is not None]
        figures["classes"] = [{name: one[name] for name in _KEPT} for one in sorted(occurring, key=lambda c: c["PQ"])]
    return Truth(figures, sums.images, (*ids, NO_SEGMENT))


def load_scores(scratch: ScratchDatabase, truth: Truth) -> None:
    """Make the table `scores`: image_key and pq."""
    scored = [(key, score.pq) for key, score in truth.images.items() if score.pq is not None]
    keys, values = zip(*scored, strict=True) if scored else ((), ())
    table = pa.table({"image_key": pa.array(keys, pa.string()), "pq": pa.array(values, pa.float64())})
    scratch.connection.register("given_scores", table)
    with out_of_room():
        scratch.connection.execute("CREATE OR REPLACE TABLE scores AS SELECT * FROM given_scores")
    scratch.connection.unregister("given_scores")
