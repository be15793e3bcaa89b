"""The documented post-processing: equal to transformers in every pixel and row, in less memory.

Results are on the CPU. B batch; H W pixels of a result: those of `target_sizes`, else 384 x 384.
"""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from m2f_core.hf.outputs import SemanticSegmentationOutput
from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance, panoptic, semantic
from m2f_core.inference.instance import instance_segments
from m2f_core.inference.panoptic import panoptic_segments
from m2f_core.inference.semantic import hf_scores, semantic_segments
from m2f_core.inference.settings import (
    MASK2FORMER_RULES,
    InstanceSettings,
    PanopticSettings,
    SemanticSettings,
)

logger = logging.getLogger(__name__)

Sizes = Sequence[tuple[int, int]] | Tensor | None


class PostProcessing:
    """From the output of `Mask2FormerForUniversalSegmentation` to segments, one result for each image.

    target_sizes: (height, width) of each result. ValueError if their number is not the batch's.
    """

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sizes = None, return_segmentation_scores: bool = False
    ) -> list[Tensor] | list[SemanticSegmentationOutput]:
        """Class ids [H, W], int64; with `return_segmentation_scores`, a result with the scores of all classes."""
        results: list[Any] = []
        for logits_QC1, masks_Qhw, geometry in _images(outputs, target_sizes):
            if return_segmentation_scores:
                scores_CHW = hf_scores(logits_QC1, masks_Qhw, geometry.original_hw, MASK2FORMER_RULES).cpu()
                results.append(SemanticSegmentationOutput(scores_CHW.argmax(0), scores_CHW))
            else:
                found = semantic_segments(logits_QC1, masks_Qhw, geometry, SemanticSettings.defaults("hf"))
                results.append(semantic.to_hf(found))
        return results

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sizes = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """`segmentation` and `segments_info` (id, label_id, was_fused, score).

        threshold: the least score of an instance. `segmentation` is float32 [H, W] with ids from 0, and -1 where no
        instance is; with `return_coco_annotation`, row-major run lengths (start, length, ...) of each of its values;
        with `return_binary_maps`, [N, H, W] of 0 and 1. `mask_threshold` and `overlap_mask_area_threshold` have no
        effect, as in transformers: a mask is where its logit is above 0.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps must not both be true")
        results = []
        for logits_QC1, masks_Qhw, geometry in _images(outputs, target_sizes):
            settings = InstanceSettings("hf", score_threshold=threshold, top_k=None)
            found = instance_segments(logits_QC1, masks_Qhw, geometry, settings)
            result = instance.to_hf(found, return_binary_maps)
            if return_coco_annotation:
                result["segmentation"] = _run_lengths(result["segmentation"])
            results.append(result)
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sizes = None,
    ) -> list[dict[str, Any]]:
        """`segmentation` and `segments_info` (id, label_id, was_fused, score).

        threshold: a query counts if its class score is above this. `segmentation` is int32 [H, W] with ids from 1, and
        0 where no segment is; where no query counts, float32 of -1. label_ids_to_fuse: classes whose segments get one
        id.
        """
        if label_ids_to_fuse is None:
            logger.warning("`label_ids_to_fuse` unset. No instance will be fused.")
        fused = frozenset(map(int, label_ids_to_fuse or ()))
        settings = PanopticSettings("hf", threshold, overlap_mask_area_threshold, mask_threshold, fused)
        return [
            panoptic.to_hf(panoptic_segments(logits_QC1, masks_Qhw, geometry, settings), settings)
            for logits_QC1, masks_Qhw, geometry in _images(outputs, target_sizes)
        ]


def _images(outputs: Any, target_sizes: Sizes) -> list[tuple[Tensor, Tensor, ImageGeometry]]:
    """Class logits, mask logits and geometry of each image."""
    logits_BQC1, masks_BQhw = outputs.class_queries_logits, outputs.masks_queries_logits
    sizes: Any = [MASK2FORMER_RULES.hf_grid_hw] * len(logits_BQC1) if target_sizes is None else target_sizes
    if len(sizes) != len(logits_BQC1):
        raise ValueError(f"there are {len(sizes)} target_sizes, but {len(logits_BQC1)} images in the batch")
    padded_hw = (4 * masks_BQhw.shape[2], 4 * masks_BQhw.shape[3])
    whole = [tuple(map(int, size)) for size in sizes]
    return [
        (logits_QC1, masks_Qhw, ImageGeometry((height, width), padded_hw, padded_hw))
        for logits_QC1, masks_Qhw, (height, width) in zip(logits_BQC1, masks_BQhw, whole, strict=True)
    ]


def _run_lengths(map_HW: Tensor) -> list[list[int]]:
    """For each value of the map in ascending order: start (from 1) and length of each run, row by row."""
    lengths = []
    for value in map_HW.unique():
        inside = torch.nn.functional.pad((map_HW == value).flatten().int(), (1, 1))
        bounds = (inside[1:] != inside[:-1]).nonzero()[:, 0] + 1
        bounds[1::2] -= bounds[::2].clone()
        lengths.append(bounds.tolist())
    return lengths
