"""Figures of a model in training on annotated images: PQ, or AP where the ground truth is of instances.

The model's inference and the metrics are those of a run and of `jobs/evaluate.py`; only the tables in between are left
out. Each worker takes every `num_workers`-th image; sums are added up afterwards.
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

# Puts together what every worker has: a list with one entry a worker, the same on all of them.
Gather = Callable[[Any], list[Any]]


def validate(
    model: Mask2Former,
    data: AnnotatedImages,
    labels: LabelMap,
    processor: ImageProcessor,
    share: range,
    gather: Gather,
) -> dict[str, float | None]:
    """PQ, PQ_things and PQ_stuff, or AP, as fractions; None where there is nothing to find.
    RunError where an image or its ground truth cannot be used.

    `share` are the indices of this worker's images. The model is in training mode again afterwards.
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
