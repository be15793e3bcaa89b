"""Validate a model in training on annotated images: PQ, or AP if the ground truth has instances.

Inference is the same as in a run and metrics are the same as in `jobs/evaluate.py`, but without the tables in between.
Each worker takes every `num_workers`-th image; the workers' sums are added up at the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from m2f_core.config.labels import LabelMap
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.inference.instance import InstanceSettings
from m2f_core.inference.panoptic import PanopticSettings
from m2f_core.model.mask2former import Mask2Former
from pipeline.coco.ground_truth_png import panoptic_records, read_panoptic_png
from pipeline.evaluate.metrics import Record, instance_state, instance_summary, panoptic_summary, panoptic_sums
from pipeline.evaluate.score import Records
from pipeline.segment.postprocess import found_segments, infer
from pipeline.train.data import AnnotatedImages

# Gathers the values of all workers: every worker gets the same list with one entry per worker.
Gather = Callable[[Any], list[Any]]


def validate(
    model: Mask2Former,
    data: AnnotatedImages,
    labels: LabelMap,
    processor: ImageProcessor,
    share: range,
    gather: Gather,
) -> dict[str, float | None]:
    """PQ, PQ_things and PQ_stuff, or AP, as fractions; None if the ground truth has no segments for a metric.
    RunError if an image or its ground truth cannot be used.

    `share` holds the indices of this worker's images. The model is in training mode again afterwards.
    """
    records = Records()
    model.eval()
    with torch.inference_mode():
        for index in share:
            predicted = _predict(model, data, labels, processor, index)
            image = data.images[index]
            truth = panoptic_records(image, read_panoptic_png(image)) if data.panoptic else image.annotations
            records.add(image, truth, predicted)
    model.train()
    categories = data.categories
    if data.panoptic:
        own = panoptic_sums(records.images, records.truth, records.predicted, categories)
        sums = np.sum(gather(own), axis=0)
        summary = panoptic_summary(sums, categories)
        return {
            "PQ": summary["all"]["PQ"],
            "PQ_things": summary["things"]["PQ"],
            "PQ_stuff": summary["stuff"]["PQ"],
        }
    state = instance_state("segm", records.images, records.truth, records.predicted, categories, data.where)
    return {"AP": instance_summary(gather(state), categories)["AP"]}


def _predict(
    model: Mask2Former, data: AnnotatedImages, labels: LabelMap, processor: ImageProcessor, index: int
) -> list[Record]:
    image = data.image(index)
    geometry = processor.geometry(image.height, image.width)
    device = next(model.parameters()).device
    output = model(processor.to_batch([processor.resize(image)], geometry.padded_hw, device))
    settings = (
        PanopticSettings.for_labels("reference", labels) if data.panoptic else InstanceSettings.defaults("reference")
    )
    result = infer(output.class_queries_logits[0], output.masks_queries_logits[0], geometry, settings)
    size = [image.height, image.width]
    return [
        {
            "category_id": labels.categories[found.class_id].category_id,
            "score": found.score,
            "segmentation": {"size": size, "counts": found.mask.counts.decode("ascii")},
        }
        for found in found_segments(result)
    ]
