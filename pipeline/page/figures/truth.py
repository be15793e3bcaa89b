"""The run against ground truth: PQ or AP by class, mistaken classes, and the score of each image."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.evaluate.evaluate import evaluate_images
from pipeline.evaluate.score import ImageScore, Sums
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.page.figures.runs import ShownRun
from pipeline.page.settings import ReportSettings
from pipeline.tables.spill_database import ScratchDatabase, out_of_room

_MOST_CLASSES = 16  # of the matrix: those with the most pixels in the ground truth
NO_SEGMENT = -1  # in place of a category_id
_KEPT = ("category_id", "name", "PQ", "SQ", "RQ", "tp", "fp", "fn")
_OF_INSTANCES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class Truth:
    """The figures of the section, and the scores of all images, by image_key."""

    figures: dict[str, Any] | None = None
    images: dict[str, ImageScore] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()  # by class of a panoptic ground truth, and NO_SEGMENT

    def of(self, image_key: str) -> dict[str, Any]:
        """The score of an image: `pq`, `ap`, and `mistaken` as [true category_id, predicted, pixels]."""
        score = self.images.get(image_key, ImageScore())
        cells = [[self.category_ids[true], self.category_ids[found], n] for true, found, n in score.mistaken]
        return {"pq": score.pq, "ap": score.ap, "mistaken": cells}


def read_truth(settings: ReportSettings, run: ShownRun) -> Truth:
    """Score the run, if the settings name ground truth. RunError as of `evaluate`."""
    if settings.panoptic_gt is None and settings.instances_gt is None:
        return Truth()
    report, sums = evaluate_images(
        EvaluationSettings(
            settings.tables,
            run_id=run.run_id,
            panoptic_gt=settings.panoptic_gt,
            panoptic_pngs=settings.panoptic_pngs,
            instances_gt=settings.instances_gt,
        )
    )
    panoptic = _panoptic(report, sums) if settings.panoptic_gt is not None else None
    instances = _instances(report) if settings.instances_gt is not None else None
    ids = [one["category_id"] for one in report["semantic"]["per_class"]] if panoptic is not None else []
    return Truth({"panoptic": panoptic, "instances": instances}, sums.images, (*ids, NO_SEGMENT))


def _panoptic(report: dict[str, Any], sums: Sums) -> dict[str, Any]:
    semantic = report["semantic"]
    ids = [one["category_id"] for one in semantic["per_class"]]
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
    figures = {**_about(report, "panoptic"), "mIoU": semantic["mIoU"], "matrix": matrix, "all": None, "classes": []}
    if "panoptic" in report:  # not of a semantic run
        figures["all"] = report["panoptic"]["all"]
        occurring = [one for one in report["panoptic"]["per_class"] if one["PQ"] is not None]
        figures["classes"] = [{name: one[name] for name in _KEPT} for one in sorted(occurring, key=lambda c: c["PQ"])]
    return figures


def _instances(report: dict[str, Any]) -> dict[str, Any]:
    boxes = {one["category_id"]: one["AP"] for one in report["bbox"]["per_class"]}
    occurring = [one for one in report["segm"]["per_class"] if one["AP"] is not None]
    return {
        **_about(report, "instances"),
        "masks": {name: report["segm"][name] for name in _OF_INSTANCES},
        "boxes": {name: report["bbox"][name] for name in _OF_INSTANCES},
        "classes": [
            {
                "category_id": one["category_id"],
                "name": one["name"],
                "AP": one["AP"],
                "box_AP": boxes[one["category_id"]],
            }
            for one in sorted(occurring, key=lambda one: one["AP"])
        ],
    }


def _about(report: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: report["ground_truth"][kind][name] for name in ("place", "images", "warning")}


def load_scores(scratch: ScratchDatabase, truth: Truth) -> None:
    """Make the table `scores`: image_key, pq and ap."""
    keys, scores = list(truth.images), list(truth.images.values())
    values = {name: pa.array([getattr(score, name) for score in scores], pa.float64()) for name in ("pq", "ap")}
    table = pa.table({"image_key": pa.array(keys, pa.string()), **values})
    scratch.connection.register("given_scores", table)
    with out_of_room():
        scratch.connection.execute("CREATE OR REPLACE TABLE scores AS SELECT * FROM given_scores")
    scratch.connection.unregister("given_scores")
