"""Sums for PQ, mIoU and AP, and the metrics from the sums. The sums of all parts add up to the sums of the whole run.

hotcoco computes panoptic matching and AP (tests check that it equals panopticapi and pycocotools). mIoU equals
detectron2's SemSegEvaluator, which the paper uses, extended to predictions that leave pixels empty: an empty pixel
counts as missed and as a hit of no class.

Legend: C categories of the ground truth, in its order; H, W pixels of an image.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hotcoco import StreamingEval
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray

from pipeline.coco.ground_truth_png import IGNORED
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

Category = dict[str, Any]  # in COCO's form: id, name and, if panoptic, isthing
Record = dict[str, Any]  # in COCO's form: image_id, category_id, segmentation, ...


def _every(category: Category) -> bool:
    return True


def _counted(
    sums_C4: NDArray[np.float64], categories: tuple[Category, ...], counts: Callable[[Category], bool]
) -> tuple[NDArray[np.float64], tuple[Category, ...]]:
    places = [place for place, category in enumerate(categories) if counts(category)]
    return sums_C4[places], tuple(categories[place] for place in places)


# --- panoptic quality (Kirillov et al. 2019, section 4) ---------------------------------------------------------------


def panoptic_sums(
    images: list[Record], truth: list[Record], predicted: list[Record], categories: tuple[Category, ...]
) -> NDArray[np.float64]:
    """[C, 4]: summed IoU of the matched segments, and the numbers of true positives, false positives, false negatives.

    A record is a segment: id, image_id, category_id, segmentation (RLE) and, in the ground truth, iscrowd. Pixels that
    are in no segment of the ground truth are void.
    """
    if not images:
        return np.zeros((len(categories), 4))
    common = {"images": images, "categories": list(categories)}
    evaluation = PanopticEval({**common, "annotations": truth}, {**common, "annotations": predicted})
    evaluation.evaluate()
    by_category = evaluation.results()["per_class"]
    rows = [[by_category[c["id"]][name] for name in ("iou", "tp", "fp", "fn")] for c in categories]
    return np.array(rows, np.float64)


def panoptic_summary(
    sums_C4: NDArray[np.float64], categories: tuple[Category, ...], counts: Callable[[Category], bool] = _every
) -> dict[str, Any]:
    """PQ, SQ and RQ of each category that `counts`, and their means over all, things and stuff, as fractions.

    Means are over the `n` categories that occur in the ground truth or as an unmatched prediction; None if n is 0.
    """
    sums_C4, categories = _counted(sums_C4, categories, counts)
    iou_C, tp_C, fp_C, fn_C = sums_C4.T
    denominator_C = tp_C + 0.5 * fp_C + 0.5 * fn_C
    scores_C3 = np.full((len(categories), 3), np.nan)
    occurs_C = denominator_C > 0
    scores_C3[occurs_C, 0] = iou_C[occurs_C] / denominator_C[occurs_C]
    scores_C3[occurs_C, 1] = iou_C[occurs_C] / np.maximum(tp_C[occurs_C], 1)
    scores_C3[occurs_C, 2] = tp_C[occurs_C] / denominator_C[occurs_C]
    things_C = np.array([bool(category["isthing"]) for category in categories])
    groups = {"all": np.full(len(categories), True), "things": things_C, "stuff": ~things_C}
    summary: dict[str, Any] = {}
    for name, group_C in groups.items():
        counted_C = group_C & occurs_C
        means = scores_C3[counted_C].mean(axis=0) if counted_C.any() else np.full(3, np.nan)
        summary[name] = {**_named(("PQ", "SQ", "RQ"), means), "n": int(counted_C.sum())}
    summary["per_class"] = [
        {
            **_of_category(category),
            **_named(("PQ", "SQ", "RQ"), scores),
            "iou_sum": float(sums[0]),
            **{key: int(value) for key, value in zip(("tp", "fp", "fn"), sums[1:], strict=True)},
        }
        for category, scores, sums in zip(categories, scores_C3, sums_C4, strict=True)
    ]
    return summary


# --- semantic: mean intersection over union ---------------------------------------------------------------------------


def confusion_matrix(
    truth_HW: NDArray[np.integer], predicted_HW: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """[C, C + 1] pixels by class of the ground truth (0 .. C - 1 or IGNORED) and of the prediction (C: no class)."""
    truth, predicted = truth_HW.ravel(order="F").astype(np.int64), predicted_HW.ravel(order="F")
    known = truth != IGNORED
    cells = truth[known] * (num_classes + 1) + predicted[known]
    return np.bincount(cells, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def semantic_summary(
    confusion: NDArray[np.int64], categories: tuple[Category, ...], counts: Callable[[Category], bool] = _every
) -> dict[str, Any]:
    """mIoU, fwIoU, mAcc and pAcc as fractions, and IoU and Acc of each class that `counts`; None for a class without
    pixels.

    Means are over these classes as far as they have pixels in the ground truth; a pixel predicted as any other
    class counts as a miss of its true class.
    """
    truth_C, predicted_C = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    hit_C = np.diagonal(confusion)
    named_C = np.array([counts(category) for category in categories], bool)
    present_C = (truth_C > 0) & named_C
    iou_C, acc_C = np.full(len(categories), np.nan), np.full(len(categories), np.nan)
    iou_C[present_C] = hit_C[present_C] / (truth_C + predicted_C - hit_C)[present_C]
    acc_C[present_C] = hit_C[present_C] / truth_C[present_C]
    num_pixels = truth_C[named_C].sum()
    means = np.full(4, np.nan)
    if num_pixels:
        frequency = truth_C[present_C] / num_pixels
        means[:] = (
            iou_C[present_C].mean(),
            (iou_C[present_C] * frequency).sum(),
            acc_C[present_C].mean(),
            hit_C[named_C].sum() / num_pixels,
        )
    per_class = [
        {**_of_category(category), **_named(("IoU", "Acc"), scores), "pixels": int(pixels)}
        for category, *scores, pixels in zip(categories, iou_C, acc_C, truth_C, strict=True)
        if counts(category)
    ]
    names = ("mIoU", "fwIoU", "mAcc", "pAcc")
    return {**_named(names, means), "n": int(present_C.sum()), "pixels": int(num_pixels), "per_class": per_class}


# --- instances: average precision -------------------------------------------------------------------------------------


def instance_state(
    kind: str,
    images: list[Record],
    truth: list[Record],
    predicted: list[Record],
    categories: tuple[Category, ...],
    where: str,
) -> bytes:
    """Match masks ("segm") or boxes ("bbox") for AP; returns bytes that `instance_summary` adds up.

    The bytes hold scores and matches, but no masks: about 1 KB per image. `images` hold id, height and width. RunError
    if an annotation of `truth` (read from `where`) has no usable mask or box; a run's masks were checked at writing.
    """
    matched = StreamingEval(list(categories), iou_type=kind)
    # Areas decide which objects are small or large: for masks the mask's area, for boxes the box's, as in detectron2.
    shape = "segmentation" if kind == "segm" else "bbox"
    names = ("image_id", "category_id", "score", shape)
    try:
        matched.update(images, truth, [{name: record[name] for name in names} for record in predicted])
    except ValueError as error:
        raise RunError(f"{where}: {_with_id(one_line(error), truth)}") from None
    return matched.to_bytes()


def _with_id(message: str, truth: list[Record]) -> str:
    """hotcoco's message, with the annotation's id in place of its index in the list."""
    place = re.match(r"gt_anns\[(\d+)\]: ", message)
    if place is None:
        return message
    return f"annotation {truth[int(place[1])]['id']!r} cannot be used: {message[place.end() :]}"


def instance_summary(states: Iterable[bytes], categories: tuple[Category, ...]) -> dict[str, Any]:
    """COCO's twelve metrics as fractions, and AP of each class; None if the ground truth has no such objects."""
    evaluation = _accumulated(states)
    with contextlib.redirect_stdout(io.StringIO()):  # hotcoco prints its table
        evaluation.summarize()
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])  # axes: IoU, recall, category by id, area, detections
    ids = sorted(category["id"] for category in categories)
    per_class = []
    for category in categories:
        of_class = precision[:, :, ids.index(category["id"]), 0, -1]  # all areas, 100 detections
        per_class.append({**_of_category(category), "AP": _or_none(of_class.mean())})  # all -1 if undefined
    figures = zip(evaluation.metric_keys(), evaluation.stats, strict=True)
    return {**{name: _or_none(value) for name, value in figures}, "per_class": per_class}


def instance_quality(state: bytes) -> float | None:
    """AP of one image, given by its `instance_state`: the mean over its true categories; None if it has no object."""
    evaluation = _accumulated([state])
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # all areas, 100 detections
    defined = precision[precision >= 0]
    return float(defined.mean()) if defined.size else None


def _accumulated(states: Iterable[bytes]) -> Any:
    evaluation = StreamingEval.merge(map(StreamingEval.from_bytes, states)).finalize()
    evaluation.accumulate()
    return evaluation


def _of_category(category: Category) -> dict[str, Any]:
    thing = {"isthing": bool(category["isthing"])} if "isthing" in category else {}
    return {"category_id": category["id"], "name": category["name"], **thing}


def _named(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    return {name: _or_none(value) for name, value in zip(names, values, strict=True)}


def _or_none(value: float) -> float | None:
    """A plain float; None for an undefined value, which is NaN here and -1 in the COCO API."""
    return float(value) if value >= 0 else None
