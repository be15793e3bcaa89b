"""From the decoder outputs of one image to instances, in the frame of the original image. Instances may overlap.

Every pair of a query and a class is a candidate with the class's score; the best `top_k` pairs are kept. So one query
may become several instances of different classes with one mask, which is computed once. `InstanceSettings.mode`
chooses the next steps:

- "reference": as in the original Mask2Former (the paper's numbers). The mask is where the query's logits, resized to
  the original image, are above 0; the score is class score x mean mask probability inside the mask. Instances are
  sorted by descending score. The original also keeps instances without a pixel, with score 0; here they are left out.
- "hf": as in transformers, with equal masks in the same order. Mask and score are computed at the family's grid
  (384 x 384 for Mask2Former) or at the mask's own size, with the padding, and the mask is enlarged by nearest
  neighbour. In a family with exclusive instances, a pixel belongs to the one with the highest class score x mask logit,
  and the score is the class score. With `FamilyRules.hf_unpads` each query is one candidate, of its best class; mask
  and score are those of "reference", and instances stay in the order of queries.

On the CPU masks are processed one at a time and returned as RLE, so memory is a few planes [H, W] whatever the number
of queries (in reference mode, less than one plane). A GPU enlarges as many as fit into 256 MiB at a time, and keeps a
byte for each pixel of each mask until the runs are found.

Legend: Q queries; C classes; K candidates (pairs of query and class); N instances; h, w mask logits; H, W original
image. Suffix 1 is "plus the no-object class".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.decoder_outputs import (
    Started,
    bilinear,
    check_finite,
    class_scores,
    extremes,
    finite_masks,
    on_hf_grid,
    places_of,
    read_table,
)
from m2f_core.inference.instance_kernel import find_mask
from m2f_core.inference.panoptic import find_winners_torch, start_winners, winning_segments
from m2f_core.inference.panoptic_kernel import Winners
from m2f_core.inference.resize_taps import axis_taps
from m2f_core.inference.settings import FamilyRules, InstanceSettings, PanopticSettings, goes_as_reference
from m2f_core.masks import rle
from m2f_core.masks.on_device import Arrays, Fetch, Parcel, fetch_at_once, start_runs

Pair = tuple[float, int, int]  # class score, query, class
Found = tuple[rle.Rle | None, np.float32]  # the mask of a query, if it has a pixel, and its mean probability

_FLOATS_AT_ONCE = 2**26  # of masks that a device enlarges together: 256 MiB
_RUNS_PER_COLUMN = 2  # of a mask: two in each column of the object, and none beside it
_EPSILON = 1e-6  # both sources add this to the number of a mask's pixels before the division


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
    if pred_masks_Qhw.device.type != "cpu":
        parcel = Parcel()
        started = start_instances(pred_logits_QC1[None], pred_masks_Qhw[None], [geometry], settings, parcel)
        [result] = started.finish(parcel.send(fetch_at_once)())
        return result
    scores_QC = class_scores(pred_logits_QC1, pred_masks_Qhw)
    ranked = _best_pairs(scores_QC.flatten(), len(scores_QC), settings)
    values, places = (row.numpy() for row in ranked)
    if settings.exclusive:
        [kept], [pairs] = _competing(values[None], places[None], scores_QC.shape[1], settings)
        if not pairs:
            return InstanceResult((), geometry.original_hw)
        masks_Khw = finite_masks(pred_masks_Qhw[[query for _, query, _ in pairs]])
        winners = find_winners_torch(masks_Khw, ranked[0][kept], geometry, _as_panoptic(settings), of_logits=True)
        return _exclusive_instances(winners, pairs, geometry, settings)
    find = _mask_finder(pred_masks_Qhw, geometry, settings)

    @cache
    def mask_of(query: int) -> Found:
        runs, mask_score = find(finite_masks(pred_masks_Qhw[query]))
        return next(iter(rle.encode_runs(runs, *geometry.original_hw)), None), mask_score

    return _result(_wanted(values, places, scores_QC.shape[1], settings), mask_of, geometry, settings)


def start_instances(
    logits_BQC1: torch.Tensor,
    masks_BQhw: torch.Tensor,
    geometries: Sequence[ImageGeometry],
    settings: InstanceSettings,
    parcel: Parcel,
    fetch: Fetch = fetch_at_once,
) -> Started[InstanceResult]:
    """`instance_segments` of a whole batch on its device: the host waits once for small tables, and for the parcel.

    ValueError if class logits, or the masks of candidates, are not finite.
    """
    num_queries, num_classes = masks_BQhw.shape[1], logits_BQC1.shape[2] - 1
    scores_BQC = logits_BQC1.float().softmax(-1)[..., :-1]
    masks_BQhw = masks_BQhw.float()
    ranked = _best_pairs(scores_BQC.flatten(1), num_queries, settings)
    values, places, lows, highs = read_table(fetch, [*ranked, *extremes(masks_BQhw)])
    if settings.exclusive:
        kept, pairs = _competing(values, places, num_classes, settings)
        of_pairs = [[query for _, query, _ in of_image] for of_image in pairs]
        _check_used(values, lows, highs, of_pairs)
        scores_N = ranked[0].flatten().index_select(0, places_of(kept, values.shape[1], masks_BQhw.device))
        panoptic = _as_panoptic(settings)
        winners = start_winners(masks_BQhw, of_pairs, scores_N, geometries, panoptic, parcel, fetch, of_logits=True)
        return Started(
            [list(dict.fromkeys(of_image)) for of_image in of_pairs],
            lambda arrays: [
                _exclusive_instances(found, of_image, geometry, settings)
                for found, of_image, geometry in zip(winners(arrays), pairs, geometries, strict=True)
            ],
        )
    wanted = [_wanted(*pair, num_classes, settings) for pair in zip(values, places, strict=True)]
    queries = [list(dict.fromkeys(query for _, query, _ in of_image)) for of_image in wanted]
    _check_used(values, lows, highs, queries)

    masks_Nhw = masks_BQhw.flatten(0, 1).index_select(0, places_of(queries, num_queries, masks_BQhw.device))
    planes_WH: list[torch.Tensor] = []
    score_places = []
    for masks_Khw, geometry in zip(masks_Nhw.split([len(q) for q in queries]), geometries, strict=True):
        for masks_khw in masks_Khw.split(_masks_at_once(geometry, settings)) if len(masks_Khw) else ():
            if not goes_as_reference(settings):
                masks_kWH, mask_scores_k = find_masks_hf(masks_khw, geometry, num_queries, settings.rules)
            else:
                masks_kWH, mask_scores_k = find_masks_torch(masks_khw, geometry, num_queries)
            planes_WH += masks_kWH.unbind()
            score_places.append(parcel.add(mask_scores_k))
    runs = start_runs(planes_WH, parcel, fetch, _RUNS_PER_COLUMN)

    def finish(arrays: Arrays) -> list[InstanceResult]:
        scores = (score for place in score_places for score in arrays[place])
        found = zip(runs(arrays), scores, strict=True)
        results = []
        for geometry, of_image, pairs in zip(geometries, queries, wanted, strict=True):
            masks: dict[int, Found] = {}
            for query in of_image:
                one, mask_score = next(found)
                masks[query] = next(iter(rle.encode_runs(one.runs, *geometry.original_hw)), None), mask_score
            results.append(_result(pairs, masks.__getitem__, geometry, settings))
        return results

    return Started(queries, finish)


def _check_used(
    values: NDArray[np.float32], lows: NDArray[np.float32], highs: NDArray[np.float32], queries: Sequence[Sequence[int]]
) -> None:
    """ValueError unless the scores, and the masks of these queries of each image, are finite."""
    is_used_BQ = np.zeros_like(lows, dtype=bool)
    for image, of_image in enumerate(queries):
        is_used_BQ[image, of_image] = True
    check_finite(values, lows[is_used_BQ], highs[is_used_BQ])


def _competing(
    values: NDArray[np.float32], places: NDArray[np.int64], num_classes: int, settings: InstanceSettings
) -> tuple[list[list[int]], list[list[Pair]]]:
    """For each image, which of its best pairs compete for pixels: those above the threshold, of every class.

    An image without a pair of a wanted class has none, because there is nothing to find.
    """
    kept = [np.flatnonzero(of_image > settings.score_threshold).tolist() for of_image in values]
    pairs = [
        [
            (score, place // num_classes, place % num_classes)
            for score, place in zip(scores[at].tolist(), at_places[at].tolist(), strict=True)
        ]
        for at, scores, at_places in zip(kept, values, places, strict=True)
    ]
    wanted = settings.wanted_class_ids
    if wanted is not None:
        pairs = [of_image if any(class_id in wanted for *_, class_id in of_image) else [] for of_image in pairs]
        kept = [at if of_image else [] for at, of_image in zip(kept, pairs, strict=True)]
    return kept, pairs


def _as_panoptic(settings: InstanceSettings) -> PanopticSettings:
    """How exclusive instances compete: as panoptic segments, of which none are fused."""
    return PanopticSettings(
        "hf", settings.score_threshold, 0.8, 0.5, wanted_class_ids=settings.wanted_class_ids, rules=settings.rules
    )


def _exclusive_instances(
    found: Winners | None, pairs: Sequence[Pair], geometry: ImageGeometry, settings: InstanceSettings
) -> InstanceResult:
    if found is None:
        return InstanceResult((), geometry.original_hw)
    scores, queries, class_ids = (list(column) for column in zip(*pairs, strict=True))
    result = winning_segments(found, scores, class_ids, queries, _as_panoptic(settings))
    masks = {mask.label: mask for mask in rle.encode_runs(result.label_map.runs, *geometry.original_hw)}
    instances = [
        Instance(info.class_id, info.score, info.query, replace(masks[info.segment_id], label=1))
        for info in result.infos
        if info.query is not None  # every segment has one
    ]
    return InstanceResult(tuple(instances), geometry.original_hw)


def _result(
    wanted: Sequence[Pair], mask_of: Callable[[int], Found], geometry: ImageGeometry, settings: InstanceSettings
) -> InstanceResult:
    instances = []
    for class_score, query, class_id in wanted:
        mask, mask_score = mask_of(query)
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
        torch.tensor([[9.0, -9.0]]), torch.ones(1, 8, 8), geometry, replace(settings, wanted_class_ids=None)
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


def _best_pairs(
    scores: torch.Tensor, num_queries: int, settings: InstanceSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and places of the best pairs, of an image or of each image of a batch; the last axis of `scores` is pairs.

    Among equal scores, the lower query comes first, then the lower class. The original leaves this order to torch.topk;
    so does hf mode, to get transformers' order.
    """
    if settings.mode == "hf" and settings.rules.hf_unpads:
        return _best_classes(scores.unflatten(-1, (num_queries, -1)), settings.top_k)
    num_pairs = min(settings.top_k or num_queries, scores.shape[-1])
    if settings.mode == "hf":
        return scores.topk(num_pairs, sorted=False)
    values, places = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :num_pairs], places[..., :num_pairs]


def _best_classes(scores_QC: torch.Tensor, top_k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and places of the pairs of each query (last axis but one) and its best class, or of the `top_k` best."""
    num_queries, num_classes = scores_QC.shape[-2:]
    values, classes = scores_QC.max(-1)
    places = classes + num_classes * torch.arange(num_queries, device=classes.device)
    if top_k is None or top_k >= num_queries:
        return values, places
    kept = values.sort(dim=-1, descending=True, stable=True).indices[..., :top_k].sort(dim=-1).values
    return values.gather(-1, kept), places.gather(-1, kept)


def _wanted(
    values: NDArray[np.float32], places: NDArray[np.int64], num_classes: int, settings: InstanceSettings
) -> list[Pair]:
    """The pairs of an image without unwanted classes and scores."""
    # A mean probability is at most 1 (plus rounding), so the dropped pairs could not reach the threshold.
    least = settings.score_threshold * (1 - 1e-4)
    wanted = settings.wanted_class_ids
    return [
        (score, place // num_classes, place % num_classes)
        for score, place in zip(values.tolist(), places.tolist(), strict=True)
        if score >= least and (wanted is None or place % num_classes in wanted)
    ]


# ------------------------------------------------------------------------------- mask logits [h, w] -> runs, mask score

MaskFinder = Callable[[torch.Tensor], tuple[rle.LabelRuns, np.float32]]


def _mask_finder(masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: InstanceSettings) -> MaskFinder:
    """A function that gives runs and mean probability of one mask; values shared by all masks are computed here."""
    if not goes_as_reference(settings):
        return _torch_finder(masks_Qhw, geometry, partial(find_masks_hf, rules=settings.rules))
    if settings.mode == "hf":
        return _torch_finder(masks_Qhw, geometry, find_masks_torch)
    _, h, w = masks_Qhw.shape
    rows = axis_taps(h, geometry.padded_hw[0], geometry.resized_hw[0], geometry.original_hw[0])
    cols = axis_taps(w, geometry.padded_hw[1], geometry.resized_hw[1], geometry.original_hw[1])

    def find(mask_hw: torch.Tensor) -> tuple[rle.LabelRuns, np.float32]:
        runs, probability_sum = find_mask(mask_hw.numpy(), rows, cols)
        area = int(runs.lengths[runs.values == 1].sum(dtype=np.int64))
        return runs, np.float32(probability_sum / (area + _EPSILON))

    return find


def _masks_at_once(geometry: ImageGeometry, settings: InstanceSettings) -> int:
    """How many masks of an image a device enlarges together."""
    # A mask that is not enlarged first is smaller than both sizes.
    enlarged_hw = (settings.rules.hf_grid_hw if settings.mode == "hf" else None) or geometry.padded_hw
    return max(1, _FLOATS_AT_ONCE // max(height * width for height, width in (enlarged_hw, geometry.original_hw)))


def find_masks_torch(
    masks_khw: torch.Tensor, geometry: ImageGeometry, num_queries: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks, uint8 [k, W, H], and their mean probabilities [k], on any device: resize logits to the padded size, cut,
    resize again.

    This is the plain version of `instance_kernel.find_mask`, which is faster on the CPU.
    """
    height, width = geometry.resized_hw
    padded = bilinear(masks_khw[None], geometry.padded_hw)
    logits_kHW = bilinear(padded[:, :, :height, :width], geometry.original_hw)[0]
    masks_kHW = logits_kHW > 0
    mask_scores_k = _mean_inside(logits_kHW, masks_kHW, num_queries)
    return masks_kHW.transpose(1, 2).to(torch.uint8, memory_format=torch.contiguous_format), mask_scores_k


def find_masks_hf(
    masks_khw: torch.Tensor, geometry: ImageGeometry, num_queries: int, rules: FamilyRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as in transformers: mask and score on its own grid with the padding, then the mask enlarged by nearest
    neighbour.
    """
    logits = on_hf_grid(masks_khw, rules)
    rows_H, cols_W = (
        _nearest(num_grid, num_pixels, masks_khw.device)
        for num_grid, num_pixels in zip(logits.shape[1:], geometry.original_hw, strict=True)
    )
    masks = logits > 0
    mask_scores_k = _mean_inside(logits, masks, num_queries)
    return masks.to(torch.uint8).transpose(1, 2).index_select(1, cols_W).index_select(2, rows_H), mask_scores_k


def _mean_inside(logits_kHW: torch.Tensor, masks_kHW: torch.Tensor, num_queries: int) -> torch.Tensor:
    """The mean probability [k] inside of each mask, in transformers' order of operations."""
    inside = (logits_kHW.sigmoid() * masks_kHW).flatten(1)
    if len(inside) == 1:
        # With several threads, torch adds up a single row in another order than one of many rows, as in transformers.
        inside = inside.expand(min(2, num_queries), -1)
    return inside.sum(1)[: len(masks_kHW)] / (masks_kHW.sum((1, 2)).float() + _EPSILON)


def _torch_finder(
    masks_Qhw: torch.Tensor,
    geometry: ImageGeometry,
    find_masks: Callable[[torch.Tensor, ImageGeometry, int], tuple[torch.Tensor, torch.Tensor]],
) -> MaskFinder:
    def find(mask_hw: torch.Tensor) -> tuple[rle.LabelRuns, np.float32]:
        masks_kWH, mask_scores_k = find_masks(mask_hw[None], geometry, len(masks_Qhw))
        return rle.label_runs(masks_kWH[0].numpy().T), np.float32(mask_scores_k[0].item())

    return find


@lru_cache(maxsize=256)
def _nearest(num_in: int, num_out: int, device: torch.device) -> torch.Tensor:
    """Index [num_out] of the input that PyTorch's nearest-neighbour interpolation takes for each output."""
    indices = torch.arange(num_in, dtype=torch.float32, device=device)[None, None]
    return F.interpolate(indices, size=num_out, mode="nearest")[0, 0].long()
