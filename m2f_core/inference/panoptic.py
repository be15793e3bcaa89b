"""From the decoder outputs of one image to panoptic segments, in the frame of the original image.

`PanopticSettings.mode` chooses one of two ways:

- "reference": as in the family's original code (the paper's numbers). Mask LOGITS are enlarged to the padded size, the
  padding is cut off, and the rest is resized to the original size. A pixel then belongs to the query with the highest
  class score x mask probability, or to no query if that query's probability is below the mask threshold. With
  `FamilyRules.winners_keep_all` it belongs to that query in any case.
- "hf": equal to transformers in every pixel and row, for users who come from transformers or compare with it. It
  passes through the family's grid, if it has one (384 x 384 for Mask2Former), resizes probabilities instead of logits,
  does not cut off padding, gives every pixel to a query, and may give one id to several classes (transformers issue
  23461). With `FamilyRules.hf_unpads` it goes the way of "reference", up to the last comparison of a query's areas.

In both modes, queries are filtered by class score BEFORE any mask is enlarged, and masks are processed one at a time,
so memory is a few planes [H, W] whatever the number of queries (on a GPU, as many as fit into 256 MiB at a time).

Legend: Q queries, K kept queries; h, w mask logits (stride 4 of the padded input); H, W original image; suffix 1 is
"plus the no-object class", so pred_logits_QC1 has C + 1 columns, the last of which is "no object".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.decoder_outputs import (
    Started,
    all_scores,
    bilinear,
    check_finite,
    extremes,
    finite_masks,
    on_hf_grid,
    places_of,
    read_table,
)
from m2f_core.inference.panoptic_kernel import Winners, find_winners
from m2f_core.inference.settings import FamilyRules, PanopticSettings, goes_as_reference
from m2f_core.masks.on_device import Arrays, Fetch, Parcel, fetch_at_once, start_runs
from m2f_core.masks.rle import LabelRuns, label_runs
from m2f_core.masks.run_map import RunMap

_FLOATS_AT_ONCE = 2**26  # of masks that a device enlarges together: 256 MiB
_RUNS_PER_COLUMN = 24  # of a map, with room for more than 15 to 28 segments have: 8 to 10


@dataclass(frozen=True)
class SegmentInfo:
    """One row for a segment of the map. Ids count from 1 in query order; the score is the query's class score.

    In reference mode a fused class has one row with the score of its first query. In hf mode every fused query has its
    own row, and ids may repeat, even among different classes.
    """

    segment_id: int
    class_id: int
    score: float
    # The (first) query that gave the segment; None in semantic segmentation, where all queries give each class.
    query: int | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Segments of one image. The map holds segment ids, and 0 for pixels without a segment."""

    label_map: RunMap
    infos: tuple[SegmentInfo, ...]
    num_kept_queries: int

    @property
    def label_map_HW(self) -> NDArray[np.unsignedinteger]:  # noqa: N802
        """The map as an array, column-major in memory: uint8, or uint16 if more than 255 queries were kept."""
        return self.label_map.array


def panoptic_segments(
    pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: PanopticSettings
) -> PanopticResult:
    """Panoptic segmentation of one image from its decoder outputs, on the device of these outputs.

    ValueError if the outputs are not finite: half precision can break a decoder, and thresholds would hide this.
    """
    if pred_masks_Qhw.device.type != "cpu":
        parcel = Parcel()
        started = start_panoptic(pred_logits_QC1[None], pred_masks_Qhw[None], [geometry], settings, parcel)
        [result] = started.finish(parcel.send(fetch_at_once)())
        return result
    scores_Q, classes_Q = all_scores(pred_logits_QC1, pred_masks_Qhw).max(-1)
    no_object = pred_logits_QC1.shape[-1] - 1
    queries_K = ((classes_Q != no_object) & (scores_Q > settings.score_threshold)).nonzero()[:, 0]
    scores_K, classes_K = scores_Q[queries_K], classes_Q[queries_K]
    if not _any_wanted(classes_K.tolist(), settings):
        return _nothing_kept(geometry)

    masks_Khw = finite_masks(pred_masks_Qhw[queries_K])
    if settings.mode == "reference":
        keep_all = settings.rules.winners_keep_all
        found = find_winners(masks_Khw.numpy(), scores_K.numpy(), geometry, settings.mask_threshold, keep_all)
    else:
        found = find_winners_torch(masks_Khw, scores_K, geometry, settings)
    return winning_segments(found, scores_K.tolist(), classes_K.tolist(), queries_K.tolist(), settings)


def start_panoptic(
    logits_BQC1: torch.Tensor,
    masks_BQhw: torch.Tensor,
    geometries: Sequence[ImageGeometry],
    settings: PanopticSettings,
    parcel: Parcel,
    fetch: Fetch = fetch_at_once,
) -> Started[PanopticResult]:
    """`panoptic_segments` of a whole batch on its device: the host waits once for small tables, and for the parcel.

    ValueError if class logits, or the masks of kept queries, are not finite.
    """
    num_queries = masks_BQhw.shape[1]
    scores_BQ, classes_BQ = logits_BQC1.float().softmax(-1).max(-1)
    masks_BQhw = masks_BQhw.float()
    scores, classes, lows, highs = read_table(fetch, [scores_BQ, classes_BQ, *extremes(masks_BQhw)])
    is_kept_BQ = (classes != logits_BQC1.shape[-1] - 1) & (scores > settings.score_threshold)
    check_finite(scores, lows[is_kept_BQ], highs[is_kept_BQ])
    queries = [
        np.flatnonzero(is_kept_Q).tolist() if _any_wanted(classes_Q[is_kept_Q].tolist(), settings) else []
        for is_kept_Q, classes_Q in zip(is_kept_BQ, classes, strict=True)
    ]

    scores_N = scores_BQ.flatten().index_select(0, places_of(queries, num_queries, masks_BQhw.device))
    winners = start_winners(masks_BQhw, queries, scores_N, geometries, settings, parcel, fetch)

    def finish(arrays: Arrays) -> list[PanopticResult]:
        results = []
        for image, (found, kept) in enumerate(zip(winners(arrays), queries, strict=True)):
            kept_classes, kept_scores = classes[image, kept].tolist(), scores[image, kept].tolist()
            results.append(
                _nothing_kept(geometries[image])
                if found is None
                else winning_segments(found, kept_scores, kept_classes, kept, settings)
            )
        return results

    return Started(queries, finish)


def start_winners(
    masks_BQhw: torch.Tensor,
    queries: Sequence[Sequence[int]],
    scores_N: torch.Tensor,
    geometries: Sequence[ImageGeometry],
    settings: PanopticSettings,
    parcel: Parcel,
    fetch: Fetch,
    of_logits: bool = False,
) -> Callable[[Arrays], list[Winners | None]]:
    """Start to find the winners among these queries of each image, which have these scores, on their device.

    `of_logits` as in `find_winners_torch`. The function that is returned takes the arrays of the parcel; None for an
    image without queries.
    """
    masks_Nhw = masks_BQhw.flatten(0, 1).index_select(0, places_of(queries, masks_BQhw.shape[1], masks_BQhw.device))
    counts = [len(of_image) for of_image in queries]
    type_of_codes = _type_of_codes(max(counts))
    planes_WH, areas = [], []
    for masks_Khw, scores_K, geometry in zip(masks_Nhw.split(counts), scores_N.split(counts), geometries, strict=True):
        if len(masks_Khw):
            at_once = _masks_at_once(geometry)
            codes_HW, areas_K = _find_codes(masks_Khw, scores_K, geometry, settings, at_once, type_of_codes, of_logits)
            planes_WH.append(codes_HW.T.contiguous())
            areas.append(parcel.add(areas_K))
    runs = start_runs(planes_WH, parcel, fetch, _RUNS_PER_COLUMN)

    def finish(arrays: Arrays) -> list[Winners | None]:
        of_images = iter(zip(runs(arrays), areas, strict=True))
        results: list[Winners | None] = []
        for geometry, of_image in zip(geometries, queries, strict=True):
            if not of_image:
                results.append(None)
                continue
            found, at = next(of_images)
            results.append(_winners(found.runs, arrays[at], geometry.original_hw))
        return results

    return finish


def _any_wanted(class_ids: list[int], settings: PanopticSettings) -> bool:
    """Whether kept queries of these classes may give a segment that is a result."""
    wanted = settings.wanted_class_ids
    return bool(class_ids) if wanted is None else not wanted.isdisjoint(class_ids)


def _nothing_kept(geometry: ImageGeometry) -> PanopticResult:
    return PanopticResult(RunMap.from_transposed(np.zeros(geometry.original_hw[::-1], np.uint8), 0), (), 0)


def winning_segments(
    found: Winners, scores: list[float], classes: list[int], queries: list[int], settings: PanopticSettings
) -> PanopticResult:
    """The segments of the winners among kept queries with these scores and classes."""
    ids, infos = _number_segments(found, scores, classes, queries, settings)
    return PanopticResult(found.winners.relabelled(ids), infos, len(queries))


def warm_up(settings: PanopticSettings) -> None:
    """Compile now what `panoptic_segments` would compile on its first call (7 s without a cache)."""
    geometry = ImageGeometry(original_hw=(8, 8), resized_hw=(32, 32), padded_hw=(32, 32))
    sure_of_class_0, mask_everywhere = torch.tensor([[9.0, -9.0]]), torch.ones(1, 8, 8)
    panoptic_segments(sure_of_class_0, mask_everywhere, geometry, replace(settings, wanted_class_ids=None))


def to_hf(result: PanopticResult, settings: PanopticSettings) -> dict[str, Any]:
    """The result of hf mode in the form that transformers' `post_process_panoptic_segmentation` returns per image."""
    if result.num_kept_queries == 0:
        return {"segmentation": torch.full(result.label_map_HW.shape, -1.0), "segments_info": []}
    rows = [
        {
            "id": info.segment_id,
            "label_id": info.class_id,
            "was_fused": info.class_id in settings.fuse_class_ids,
            "score": round(info.score, 6),
        }
        for info in result.infos
    ]
    return {"segmentation": torch.from_numpy(result.label_map_HW.astype(np.int32, order="C")), "segments_info": rows}


# ----------------------------------------------------------------------------------------------- winners, plain PyTorch


def find_winners_torch(
    masks_Khw: torch.Tensor,
    scores_K: torch.Tensor,
    geometry: ImageGeometry,
    settings: PanopticSettings,
    of_logits: bool = False,
) -> Winners:
    """The winner of each pixel, one mask at a time, in host memory and in either mode.

    `of_logits`: in hf mode, score x mask logit decides, not score x mask probability. This is the plain version of
    `panoptic_kernel.find_winners`, which is faster for reference mode.
    """
    dtype = _type_of_codes(len(masks_Khw))
    codes_HW, areas_K = _find_codes(masks_Khw, scores_K, geometry, settings, 1, dtype, of_logits)
    return _winners(label_runs(codes_HW.numpy()), areas_K.numpy(), geometry.original_hw)


def _find_codes(
    masks_Khw: torch.Tensor,
    scores_K: torch.Tensor,
    geometry: ImageGeometry,
    settings: PanopticSettings,
    at_once: int,
    dtype: torch.dtype,
    of_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The code of each pixel [H, W], and how many pixels each mask has [K], on the device of the masks.

    The code of a pixel that query k wins is 2 * (k + 1), plus 1 where the pixel is inside of the mask of query k. The
    host computes all other areas from the runs of the codes. `at_once` masks are enlarged together.
    """
    hf = not goes_as_reference(settings)
    # transformers gives every pixel to its winner, even outside of the mask, and so do the authors of some families.
    keep_all = hf or settings.rules.winners_keep_all
    best_HW, codes_HW, areas = None, None, []
    for first in range(0, len(masks_Khw), at_once):
        masks_khw = masks_Khw[first : first + at_once]
        if hf:
            probs_kHW = _hf_values(masks_khw, geometry, settings.rules, of_logits)
        else:
            probs_kHW = _reference(masks_khw, geometry)
        inside_kHW = probs_kHW >= settings.mask_threshold
        weighted_kHW = probs_kHW.mul_(scores_K[first : first + at_once, None, None])
        if hf:  # transformers weights the probabilities in place before it compares them with the threshold
            inside_kHW = weighted_kHW >= settings.mask_threshold
        areas.append(inside_kHW.sum((1, 2)))
        if len(weighted_kHW) == 1:
            top_HW, codes_of_top_HW = weighted_kHW[0], inside_kHW[0].to(dtype).add_(2 * (first + 1))
        else:
            top_HW, index_HW = weighted_kHW.max(0)  # among equals the first
            inside_HW = inside_kHW.gather(0, index_HW[None])[0]
            codes_of_top_HW = index_HW.add_(first + 1).mul_(2).to(dtype).add_(inside_HW)
        if keep_all:
            codes_of_top_HW = codes_of_top_HW.bitwise_or_(1)
        if best_HW is None or codes_HW is None:
            best_HW, codes_HW = top_HW, codes_of_top_HW
            continue
        better_HW = top_HW > best_HW  # strictly: among equals the first query wins, as with argmax
        torch.maximum(best_HW, top_HW, out=best_HW)
        # A later query has a higher code, so the maximum overwrites; torch.where is ten times slower on a CPU.
        torch.maximum(codes_HW, codes_of_top_HW.mul_(better_HW), out=codes_HW)
    assert codes_HW is not None, "there is a mask"
    return codes_HW, torch.cat(areas)


def _type_of_codes(num_kept: int) -> torch.dtype:
    return torch.uint8 if 2 * num_kept + 1 < 256 else torch.int16


def _masks_at_once(geometry: ImageGeometry) -> int:
    """How many masks of an image a device enlarges together."""
    pixels = max(height * width for height, width in (geometry.padded_hw, geometry.original_hw))
    return max(1, _FLOATS_AT_ONCE // pixels)


def _winners(codes: LabelRuns, original_areas_K: NDArray[np.int64], size_hw: tuple[int, int]) -> Winners:
    """The winners of the codes' runs."""
    num_kept = len(original_areas_K)
    every_code = np.arange(2 * (num_kept + 1))
    winner, is_inside = every_code >> 1, every_code & 1
    areas = np.bincount(codes.values, weights=codes.lengths, minlength=len(every_code)).astype(np.int64).reshape(-1, 2)
    winners = RunMap(codes, size_hw, num_kept).relabelled(winner * is_inside)
    return Winners(winners, areas.sum(1)[1:], original_areas_K, areas[1:, 1])


def _reference(masks_khw: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Probabilities [k, H, W]: resize logits to the padded size, cut off padding, resize to the image, sigmoid."""
    height, width = geometry.resized_hw
    padded = bilinear(masks_khw[None], geometry.padded_hw)
    return bilinear(padded[:, :, :height, :width], geometry.original_hw)[0].sigmoid()


def _hf_values(masks_khw: torch.Tensor, geometry: ImageGeometry, rules: FamilyRules, of_logits: bool) -> torch.Tensor:
    """Probabilities (or logits) [k, H, W] as transformers computes them: on its own grid, if it has one, then resized
    with the padding.
    """
    on_grid = on_hf_grid(masks_khw, rules)
    values = on_grid if of_logits else on_grid.sigmoid()
    return F.interpolate(
        values[None], geometry.original_hw, mode="bilinear", align_corners=False, antialias=rules.hf_antialias
    )[0]


# ------------------------------------------------------------------------------------------------------- segment rows


def _number_segments(
    found: Winners, scores: list[float], class_ids: list[int], queries: list[int], settings: PanopticSettings
) -> tuple[NDArray[np.int64], tuple[SegmentInfo, ...]]:
    """Number the segments: ids of kept queries [1 + K] (0: no segment; entry 0: pixels without winner), and rows."""
    ids = np.zeros(len(scores) + 1, np.int64)
    infos: list[SegmentInfo] = []
    fused_ids: dict[int, int] = {}  # class -> id of its first segment
    last_id = 0
    for k, (score, class_id) in enumerate(zip(scores, class_ids, strict=True)):
        if not _any_wanted([class_id], settings) or not _is_segment(found, k, settings):
            continue
        is_fused = class_id in fused_ids
        if not goes_as_reference(settings):
            # The counter goes back to the fused id, so the next new segment may get an id that is in use.
            last_id = fused_ids[class_id] if is_fused else last_id + 1
            segment_id = last_id
        else:
            segment_id = fused_ids[class_id] if is_fused else (last_id := last_id + 1)
        ids[k + 1] = segment_id
        if class_id in settings.fuse_class_ids:
            fused_ids.setdefault(class_id, segment_id)
        if not is_fused or not goes_as_reference(settings):
            infos.append(SegmentInfo(segment_id, class_id, score, queries[k]))
    return ids, tuple(infos)


def _is_segment(found: Winners, k: int, settings: PanopticSettings) -> bool:
    """Whether query k wins enough of its own mask; equality and the ratio's precision are as in each mode's source."""
    mask_area, original_area = found.mask_areas[k], found.original_areas[k]
    if mask_area == 0 or original_area == 0 or found.final_areas[k] == 0:
        return False
    if settings.mode == "hf":
        return float(np.float32(mask_area) / np.float32(original_area)) > settings.overlap_threshold
    return bool(mask_area / original_area >= settings.overlap_threshold)
