"""PQ, mIoU and AP the plain way: from their definitions, mask by mask, or by pycocotools.

Legend: H, W pixels; C classes.
"""

import contextlib
import copy
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.support.evaluation_runs import MadeImage, Segment

COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def found_in(image: MadeImage) -> Sequence[Segment]:
    """What counts as the run's answer: nothing where it failed or had not the image."""
    return () if image.missing or image.found is None else image.found


def panoptic_counts(images: Iterable[MadeImage]) -> dict[int, dict[str, float]]:
    """category_id -> summed IoU and tp, fp, fn. Kirillov et al. 2019 section 4, with the rules of section 4.2:

    - IoU leaves out what of the prediction is void in the ground truth; a match is IoU > 0.5 in the same category;
    - crowds match nothing and are not missed;
    - an unmatched prediction of which more than half is void, or crowd of its category, is no false positive.
    """
    counts: dict[int, dict[str, float]] = {}

    def count(category_id: int, name: str, value: float = 1) -> None:
        entry = counts.setdefault(category_id, {"iou_sum": 0.0, "tp": 0, "fp": 0, "fn": 0})
        entry[name] += value

    for image in images:
        void = ~np.logical_or.reduce([np.zeros(image.size, bool), *(segment.mask for segment in image.truth)])
        matched = set()
        for segment in image.truth:
            hit = False
            for index, found in enumerate(found_in(image)):
                both, either = segment.mask & found.mask, segment.mask | (found.mask & ~void)
                same = found.category_id == segment.category_id and not segment.iscrowd
                if same and both.sum() / either.sum() > 0.5:
                    hit = True
                    matched.add(index)
                    count(segment.category_id, "tp")
                    count(segment.category_id, "iou_sum", both.sum() / either.sum())
            if not hit and not segment.iscrowd:
                count(segment.category_id, "fn")
        for index, found in enumerate(found_in(image)):
            crowds = [s.mask for s in image.truth if s.iscrowd and s.category_id == found.category_id]
            excused = np.logical_or.reduce([void, *crowds])
            if index not in matched and (found.mask & excused).sum() / found.area <= 0.5:
                count(found.category_id, "fp")
    return counts


def panoptic_quality(counts: dict[int, dict[str, float]], category_ids: Iterable[int]) -> dict[str, float | None]:
    """PQ, SQ, RQ averaged over those of the categories that occur."""
    scores = []
    for category_id in category_ids:
        c = counts.get(category_id)
        if c is not None and c["tp"] + c["fp"] + c["fn"]:
            sq = c["iou_sum"] / c["tp"] if c["tp"] else 0.0
            rq = c["tp"] / (c["tp"] + c["fp"] / 2 + c["fn"] / 2)
            scores.append((sq * rq, sq, rq))
    means = np.mean(scores, axis=0).tolist() if scores else [None] * 3
    return {**dict(zip(("PQ", "SQ", "RQ"), means, strict=True)), "n": len(scores)}


def semantic_scores(images: Iterable[MadeImage], category_ids: Sequence[int]) -> dict[str, Any]:
    """mIoU, fwIoU, mAcc, pAcc and the IoU by category, pixel sets compared class by class."""
    hit, truth, predicted = (dict.fromkeys(category_ids, 0) for _ in range(3))
    for image in images:
        known = np.zeros(image.size, bool)
        for segment in image.truth:
            known |= segment.mask
        for c in category_ids:
            is_c, said_c = (
                np.logical_or.reduce([np.zeros_like(known), *(s.mask for s in segments if s.category_id == c)])
                for segments in (image.truth, found_in(image))
            )
            hit[c] += int((is_c & said_c).sum())
            truth[c] += int(is_c.sum())
            predicted[c] += int((said_c & known).sum())
    present = [c for c in category_ids if truth[c]]
    if not present:
        return {"mIoU": None, "fwIoU": None, "mAcc": None, "pAcc": None, "IoU": {}}
    iou = {c: hit[c] / (truth[c] + predicted[c] - hit[c]) for c in present}
    total = sum(truth.values())
    return {
        "mIoU": float(np.mean(list(iou.values()))),
        "fwIoU": sum(iou[c] * truth[c] for c in present) / total,
        "mAcc": float(np.mean([hit[c] / truth[c] for c in present])),
        "pAcc": sum(hit.values()) / total,
        "IoU": iou,
    }


def coco_api(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """The twelve figures of pycocotools, and AP by category id under "per_class"; None where it says -1."""
    other = "bbox" if kind == "segm" else "segmentation"
    results = [{name: value for name, value in result.items() if name != other} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]
    per_class = {c: _or_none(precision[:, :, k, 0, -1].mean()) for k, c in enumerate(evaluation.params.catIds)}
    stats = dict(zip(COCO_FIGURES, map(_or_none, evaluation.stats), strict=True))
    return {**stats, "per_class": per_class}


def coco_results(images: Sequence[MadeImage], category_ids: Iterable[int]) -> list[dict[str, Any]]:
    """What a run found of these categories, as results for the COCO API; images are numbered from 1."""
    wanted = set(category_ids)
    return [
        {
            "image_id": number,
            "category_id": segment.category_id,
            "score": float(np.float32(segment.score)),
            "segmentation": segment.rle,
            "bbox": segment.bbox,
        }
        for number, image in enumerate(images, 1)
        for segment in found_in(image)
        if segment.category_id in wanted
    ]


def _or_none(value: float) -> float | None:
    return None if value < 0 else float(value)
