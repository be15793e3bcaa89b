"""Validate a model in training on annotated images: PQ, AP if the ground truth has instances, mIoU if it is semantic.

Inference is the same as in a run and metrics are the same as in `jobs/evaluate.py`, but without the tables in between.
Each worker takes every `num_workers`-th image; the workers' sums are added up at the end.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from m2f_core.config.labels import LabelMap
from m2f_core.families.registry import family_of
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.model.contract import SegmentationModel, joined
from pipeline.coco.ground_truth import GtImage
from pipeline.coco.ground_truth_png import instance_map_records, panoptic_records, read_panoptic_png
from pipeline.evaluate.metrics import (
    Record,
    confusion_matrix,
    instance_state,
    instance_summary,
    panoptic_summary,
    panoptic_sums,
    semantic_summary,
)
from pipeline.evaluate.score import Records
from pipeline.segment.postprocess import found_segments, infer
from pipeline.train.annotated_images import AnnotatedImages

# Gathers the values of all workers: every worker gets the same list with one entry per worker.
Gather = Callable[[Any], list[Any]]


def validate(
    model: SegmentationModel,
    data: AnnotatedImages,
    labels: LabelMap,
    processor: ImageProcessor,
    share: range,
    gather: Gather,
) -> dict[str, float | None]:
    """PQ, PQ_things and PQ_stuff, or AP, or mIoU and pAcc, as fractions; None without segments for a metric.

    RunError if an image or its ground truth cannot be used.

    `share` holds the indices of this worker's images. The model is in training mode again afterwards.
    """
    model.eval()
    try:
        with torch.inference_mode():
            if data.kind == "semantic":
                return _semantic_figures(model, data, processor, share, gather)
            return _segment_figures(model, data, labels, processor, share, gather)
    finally:
        model.train()


def _segment_figures(
    model: SegmentationModel,
    data: AnnotatedImages,
    labels: LabelMap,
    processor: ImageProcessor,
    share: range,
    gather: Gather,
) -> dict[str, float | None]:
    records = Records()
    for index in share:
        predicted = _predict(model, data, labels, processor, index)
        image = replace(data.images[index], size=data.size(index))
        records.add(image, _truth(data, image, index), predicted)
    categories = data.categories
    if data.kind == "panoptic":
        own = panoptic_sums(records.images, records.truth, records.predicted, categories)
        summary = panoptic_summary(np.sum(gather(own), axis=0), categories)
        return {
            "PQ": summary["all"]["PQ"],
            "PQ_things": summary["things"]["PQ"],
            "PQ_stuff": summary["stuff"]["PQ"],
        }
    state = instance_state("segm", records.images, records.truth, records.predicted, categories, data.where)
    return {"AP": instance_summary(gather(state), categories)["AP"]}


def _truth(data: AnnotatedImages, image: GtImage, index: int) -> Iterable[Record]:
    if data.kind == "panoptic":
        return panoptic_records(image, read_panoptic_png(image))
    if data.kind == "instances":
        return image.annotations
    ids_HW, class_ids, _ = data.map(index, {})
    assert class_ids is not None
    # Objects of all images must have different ids.
    records = instance_map_records(ids_HW, class_ids, data.categories)
    return [{**record, "id": index * 65_536 + number} for number, record in enumerate(records, 1)]


def _semantic_figures(
    model: SegmentationModel, data: AnnotatedImages, processor: ImageProcessor, share: range, gather: Gather
) -> dict[str, float | None]:
    num_classes = len(data.categories)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    settings = SemanticSettings.defaults("reference", "scores")  # as in the originals' semantic checkpoints
    for index in share:
        truth_HW, _, _ = data.map(index, {})
        logits_QC1, masks_Qhw, geometry = _outputs(model, data, processor, index)
        found = semantic_segments(logits_QC1, masks_Qhw, geometry, settings)
        confusion += confusion_matrix(truth_HW, found.label_map_HW.astype(np.int64) - 1, num_classes)
    summary = semantic_summary(np.sum(gather(confusion), axis=0), data.categories)
    return {"mIoU": summary["mIoU"], "pAcc": summary["pAcc"]}


def _predict(
    model: SegmentationModel, data: AnnotatedImages, labels: LabelMap, processor: ImageProcessor, index: int
) -> list[Record]:
    logits_QC1, masks_Qhw, geometry = _outputs(model, data, processor, index)
    is_panoptic = data.kind == "panoptic"
    rules = family_of(model.config.to_dict()).rules
    settings = (
        PanopticSettings.for_labels("reference", labels, rules)
        if is_panoptic
        else InstanceSettings.defaults("reference", rules=rules)
    )
    result = infer(logits_QC1, masks_Qhw, geometry, settings)
    size = list(geometry.original_hw)
    return [
        {
            "category_id": labels.categories[found.class_id].category_id,
            "score": found.score,
            "segmentation": {"size": size, "counts": found.mask.counts.decode("ascii")},
        }
        for found in found_segments(result)
    ]


def _outputs(
    model: SegmentationModel, data: AnnotatedImages, processor: ImageProcessor, index: int
) -> tuple[torch.Tensor, torch.Tensor, ImageGeometry]:
    """Class logits, mask logits and geometry of an image. An image with windows has outputs of each, stacked."""
    inputs, geometry = processor.inputs_of(data.image(index), next(model.parameters()).device)
    output = joined([model(one[None]) for one in inputs])
    classes, masks = output.class_queries_logits, output.masks_queries_logits
    return (classes, masks, geometry) if geometry.windows else (classes[0], masks[0], geometry)
