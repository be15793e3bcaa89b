"""From the decoder outputs of one image to instances, in the frame of the original image. Instances may overlap.

Every pair of a query and a class is a candidate with the class's score; the best `top_k` pairs are kept. So one query
may become several instances of different classes with one mask, which is computed once. `InstanceSettings.mode`
chooses the next steps:

- "reference": as in the original Mask2Former (the paper's numbers). The mask is where the query's logits, resized to
  the original image, are above 0; the score is class score x mean mask probability inside the mask. Instances are
  sorted by descending score. The original also keeps instances without a pixel, with score 0; here they are left out.
- "hf": as in transformers, with equal masks in the same order. Mask and score are computed at 384 x 384 with the
  padding, and the mask is enlarged by nearest neighbour.

Masks are processed one at a time and returned as RLE, so memory is a few planes [H, W] whatever the number of queries
(on the CPU in reference mode, less than one plane).

Legend: Q queries; C classes; K candidates (pairs of query and class); N instances; h, w mask logits; H, W original
image. Suffix 1 is "plus the no-object class".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.decoder_outputs import HF_GRID_HW, bilinear, class_scores, finite_masks
from m2f_core.inference.instance_kernel import find_mask
from m2f_core.inference.resize_taps import axis_taps
from m2f_core.masks import rle

InstanceMode = Literal["reference", "hf"]

_EPSILON = 1e-6  # both sources add this to the number of a mask's pixels before the division


@dataclass(frozen=True)
class InstanceSettings:
    """Which instances are kept; `InstanceSettings.defaults` gives each mode's own settings."""

    mode: InstanceMode
    score_threshold: float  # an instance is kept if its score is at least this
    top_k: int | None  # keep this number of best (query, class) pairs by class score; None: number of queries
    thing_class_ids: frozenset[int] | None = None  # drop pairs of other classes afterwards; None: drop none

    def __post_init__(self) -> None:
        if self.mode not in ("reference", "hf"):
            raise ValueError(f"mode must be 'reference' or 'hf', got {self.mode!r}")
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold must be from 0 to 1, got {self.score_threshold}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")

    @classmethod
    def defaults(cls, mode: InstanceMode, thing_class_ids: frozenset[int] | None = None) -> "InstanceSettings":
        """The original's settings for COCO, or those of transformers.

        The original drops stuff only for panoptic checkpoints, transformers never does.
        """
        if mode == "hf":
            return cls(mode, score_threshold=0.5, top_k=None, thing_class_ids=thing_class_ids)
        return cls(mode, score_threshold=0.0, top_k=100, thing_class_ids=thing_class_ids)


@dataclass(frozen=True)
class Instance:
    """One object. Instances of one query share their mask."""

    class_id: int
    score: float  # class score x mean probability of the mask's pixels
    query: int
    mask: rle.Rle  # at least one pixel; its label is 1


@dataclass(frozen=True)
class InstanceResult:
    """Instances of one image, by descending score (reference), or in transformers' order, which is not sorted."""

    instances: tuple[Instance, ...]
    original_hw: tuple[int, int]


def instance_segments(
    pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: InstanceSettings
) -> InstanceResult:
    """Instance segmentation of one image from its decoder outputs, on the device of these outputs.

    ValueError if the outputs disagree, or if class logits or a mask in use are not finite.
    """
    candidates = _best_pairs(class_scores(pred_logits_QC1, pred_masks_Qhw), settings)
    find = _mask_finder(pred_masks_Qhw, geometry, settings)
    masks: dict[int, tuple[rle.Rle | None, np.float32]] = {}
    instances = []
    for class_score, query, class_id in candidates:
        if query not in masks:
            runs, mask_score = find(finite_masks(pred_masks_Qhw[query]))
            masks[query] = next(iter(rle.encode_runs(runs, *geometry.original_hw)), None), mask_score
        mask, mask_score = masks[query]
        score = float(np.float32(class_score) * mask_score)
        if mask is not None and score >= settings.score_threshold:
            instances.append(Instance(class_id, score, query, mask))
    if settings.mode == "reference":
        instances.sort(key=lambda instance: -instance.score)
    return InstanceResult(tuple(instances), geometry.original_hw)


def warm_up(settings: InstanceSettings) -> None:
    """Compile now what `instance_segments` would compile on its first call, so that no image waits for it."""
    geometry = ImageGeometry(original_hw=(8, 8), resized_hw=(32, 32), padded_hw=(32, 32))
    instance_segments(
        torch.tensor([[9.0, -9.0]]), torch.ones(1, 8, 8), geometry, replace(settings, thing_class_ids=None)
    )


def to_hf(result: InstanceResult, return_binary_maps: bool = False) -> dict[str, Any]:
    """The result of hf mode in the form that transformers' `post_process_instance_segmentation` returns per image.

    The segmentation is float32: one map of ids from 0, with -1 for pixels without an instance, in which later instances
    cover earlier ones; or, with `return_binary_maps` and at least one instance, one map of 0 and 1 per instance.
    """
    height, width = result.original_hw
    masks = [torch.from_numpy(rle.decode(i.mask.counts, height, width)) for i in result.instances]
    segmentation = torch.full((height, width), -1.0)
    if return_binary_maps and masks:
        segmentation = torch.stack(masks).float().contiguous()
    else:
        for segment_id, mask_HW in enumerate(masks):
            segmentation[mask_HW] = segment_id
    rows = [
        {"id": segment_id, "label_id": instance.class_id, "was_fused": False, "score": round(instance.score, 6)}
        for segment_id, instance in enumerate(result.instances)
    ]
    return {"segmentation": segmentation, "segments_info": rows}


def _best_pairs(scores_QC: torch.Tensor, settings: InstanceSettings) -> list[tuple[float, int, int]]:
    """Class score, query and class of the candidates: the best pairs, without unwanted classes and scores.

    Among equal scores, the lower query comes first, then the lower class. The original leaves this order to torch.topk;
    so does hf mode, to get transformers' order.
    """
    num_queries, num_classes = scores_QC.shape
    num_pairs = min(settings.top_k or num_queries, scores_QC.numel())
    if settings.mode == "hf":
        values, indices = scores_QC.flatten().topk(num_pairs, sorted=False)
    else:
        values, indices = scores_QC.flatten().sort(descending=True, stable=True)
    pairs = zip(values[:num_pairs].tolist(), indices[:num_pairs].tolist(), strict=True)
    # A mean probability is at most 1 (plus rounding), so the dropped pairs could not reach the threshold.
    least = settings.score_threshold * (1 - 1e-4)
    things = settings.thing_class_ids
    return [
        (score, index // num_classes, index % num_classes)
        for score, index in pairs
        if score >= least and (things is None or index % num_classes in things)
    ]


# ------------------------------------------------------------------------------- mask logits [h, w] -> runs, mask score

MaskFinder = Callable[[torch.Tensor], tuple[rle.LabelRuns, np.float32]]


def _mask_finder(masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: InstanceSettings) -> MaskFinder:
    """A function that gives runs and mean probability of one mask; values shared by all masks are computed here."""
    if settings.mode == "hf":
        return _hf_finder(masks_Qhw, geometry)
    if masks_Qhw.device.type != "cpu":
        return lambda mask_hw: find_mask_torch(mask_hw, geometry)
    _, h, w = masks_Qhw.shape
    rows = axis_taps(h, geometry.padded_hw[0], geometry.resized_hw[0], geometry.original_hw[0])
    cols = axis_taps(w, geometry.padded_hw[1], geometry.resized_hw[1], geometry.original_hw[1])

    def find(mask_hw: torch.Tensor) -> tuple[rle.LabelRuns, np.float32]:
        runs, probability_sum = find_mask(mask_hw.numpy(), rows, cols)
        area = int(runs.lengths[runs.values == 1].sum(dtype=np.int64))
        return runs, np.float32(probability_sum / (area + _EPSILON))

    return find


def find_mask_torch(mask_hw: torch.Tensor, geometry: ImageGeometry) -> tuple[rle.LabelRuns, np.float32]:
    """Runs and mean probability of one mask, on any device: resize logits to the padded size, cut, resize again.

    This is the plain version of `instance_kernel.find_mask`, which is faster on the CPU.
    """
    height, width = geometry.resized_hw
    padded = bilinear(mask_hw[None, None], geometry.padded_hw)
    logits_HW = bilinear(padded[:, :, :height, :width], geometry.original_hw)[0, 0]
    mask_HW = logits_HW > 0
    mask_score = (logits_HW.sigmoid() * mask_HW).sum() / (mask_HW.sum() + _EPSILON)
    return _runs_of(mask_HW.T), np.float32(mask_score.item())


def _hf_finder(masks_Qhw: torch.Tensor, geometry: ImageGeometry) -> MaskFinder:
    """As in transformers: mask and score on its own grid with the padding, then the mask by nearest neighbour."""
    rows_H, cols_W = (
        _nearest(num_grid, num_pixels, masks_Qhw.device)
        for num_grid, num_pixels in zip(HF_GRID_HW, geometry.original_hw, strict=True)
    )
    # With several threads, torch adds up a single row in another order than a row of many.
    num_rows = min(2, masks_Qhw.shape[0])

    def find(mask_hw: torch.Tensor) -> tuple[rle.LabelRuns, np.float32]:
        logits = bilinear(mask_hw[None, None], HF_GRID_HW)[0, 0]
        mask = logits > 0
        inside = (logits.sigmoid() * mask).flatten().expand(num_rows, -1).sum(1)[0]
        mask_score = inside / (mask.sum().float() + _EPSILON)
        return _runs_of(mask.T.index_select(0, cols_W).index_select(1, rows_H)), np.float32(mask_score.item())

    return find


def _nearest(num_in: int, num_out: int, device: torch.device) -> torch.Tensor:
    """Index [num_out] of the input that PyTorch's nearest-neighbour interpolation takes for each output."""
    indices = torch.arange(num_in, dtype=torch.float32, device=device)[None, None]
    return F.interpolate(indices, size=num_out, mode="nearest")[0, 0].long()


def _runs_of(mask_WH: torch.Tensor) -> rle.LabelRuns:
    """Copy one small plane from the device, in the order of RLE."""
    return rle.label_runs(mask_WH.to(torch.uint8).contiguous().cpu().numpy().T)
