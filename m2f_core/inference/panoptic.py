"""From the decoder outputs of one image to panoptic segments, in the frame of the original image.

`PanopticSettings.mode` chooses one of two ways:

- "reference": as in the original Mask2Former (the paper's numbers). Mask LOGITS are enlarged to the padded size, the
  padding is cut off, and the rest is resized to the original size. A pixel then belongs to the query with the highest
  class score x mask probability, or to no query if that query's probability is below the mask threshold.
- "hf": equal to transformers in every pixel and row, for users who come from transformers or compare with it. It
  passes through a fixed 384 x 384, resizes probabilities instead of logits, does not cut off padding, gives every pixel
  to a query, and may give one id to several classes (transformers issue 23461).

In both modes, queries are filtered by class score BEFORE any mask is enlarged, and masks are processed one at a time,
so memory is a few planes [H, W] whatever the number of queries.

Legend: Q queries, K kept queries; h, w mask logits (stride 4 of the padded input); H, W original image; suffix 1 is
"plus the no-object class", so pred_logits_QC1 has C + 1 columns, the last of which is "no object".
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from m2f_core.config.labels import LabelMap
from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.decoder_outputs import HF_GRID_HW, all_scores, bilinear, finite_masks
from m2f_core.inference.panoptic_kernel import Winners, find_winners
from m2f_core.masks.run_map import RunMap

PanopticMode = Literal["reference", "hf"]


@dataclass(frozen=True)
class PanopticSettings:
    """Thresholds; `PanopticSettings.defaults` gives each mode's own thresholds."""

    mode: PanopticMode
    score_threshold: float  # a query is kept if its class score is above this
    overlap_threshold: float  # a kept query is a segment if it wins at least (hf: more than) this share of its mask
    mask_threshold: float  # a pixel is inside a query's mask if its probability is at least this
    fuse_class_ids: frozenset[int] = frozenset()  # classes ("stuff") whose segments are merged into one per image

    def __post_init__(self) -> None:
        if self.mode not in ("reference", "hf"):
            raise ValueError(f"mode must be 'reference' or 'hf', got {self.mode!r}")
        for name in ("score_threshold", "overlap_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    @classmethod
    def defaults(cls, mode: PanopticMode, fuse_class_ids: frozenset[int] = frozenset()) -> "PanopticSettings":
        """The original's thresholds for COCO, or transformers' thresholds."""
        score_threshold = 0.5 if mode == "hf" else 0.8
        return cls(mode, score_threshold, overlap_threshold=0.8, mask_threshold=0.5, fuse_class_ids=fuse_class_ids)

    @classmethod
    def for_labels(cls, mode: PanopticMode, labels: LabelMap) -> "PanopticSettings":
        """The defaults for a checkpoint's classes: stuff is fused, and thresholds come from the original's configs.

        For Mapillary Vistas these keep every query (OBJECT_MASK_THRESHOLD in configs/mapillary-vistas/...).
        """
        settings = cls.defaults(mode, labels.stuff_class_ids)
        if mode == "reference" and labels.has_classes_of("mapillary-panoptic"):
            return replace(settings, score_threshold=0.0)
        return settings


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
    scores_Q, classes_Q = all_scores(pred_logits_QC1, pred_masks_Qhw).max(-1)
    no_object = pred_logits_QC1.shape[-1] - 1
    queries_K = ((classes_Q != no_object) & (scores_Q > settings.score_threshold)).nonzero()[:, 0]
    if queries_K.numel() == 0:
        return PanopticResult(RunMap.from_transposed(np.zeros(geometry.original_hw[::-1], np.uint8), 0), (), 0)

    scores_K, classes_K = scores_Q[queries_K], classes_Q[queries_K]
    masks_Khw = finite_masks(pred_masks_Qhw[queries_K])
    if settings.mode == "reference" and masks_Khw.device.type == "cpu":
        found = find_winners(masks_Khw.numpy(), scores_K.numpy(), geometry, settings.mask_threshold)
    else:
        found = find_winners_torch(masks_Khw, scores_K, geometry, settings)
    ids, infos = _number_segments(found, scores_K.tolist(), classes_K.tolist(), queries_K.tolist(), settings)
    return PanopticResult(found.winners.relabelled(ids), infos, int(queries_K.numel()))


def warm_up(settings: PanopticSettings) -> None:
    """Compile now what `panoptic_segments` would compile on its first call (7 s without a cache)."""
    geometry = ImageGeometry(original_hw=(8, 8), resized_hw=(32, 32), padded_hw=(32, 32))
    sure_of_class_0, mask_everywhere = torch.tensor([[9.0, -9.0]]), torch.ones(1, 8, 8)
    panoptic_segments(sure_of_class_0, mask_everywhere, geometry, settings)


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
    masks_Khw: torch.Tensor, scores_K: torch.Tensor, geometry: ImageGeometry, settings: PanopticSettings
) -> Winners:
    """The winner of each pixel, one mask at a time, on any device and in either mode.

    This is the plain version of `panoptic_kernel.find_winners`, which is faster for reference mode on the CPU.
    """
    hf = settings.mode == "hf"
    resize: Callable[[torch.Tensor, ImageGeometry], torch.Tensor] = (
        _hf_probabilities if hf else _reference_probabilities
    )
    num_kept = masks_Khw.shape[0]
    best_HW = masks_Khw.new_full(geometry.original_hw, -1.0)
    winner_HW = best_HW.new_zeros(best_HW.shape, dtype=torch.uint8 if num_kept < 256 else torch.int16)  # 1 + index
    inside_HW = best_HW.new_zeros(best_HW.shape, dtype=torch.bool)
    original_areas = []
    for k, mask_hw in enumerate(masks_Khw):
        prob_HW = resize(mask_hw, geometry)
        mine_HW = prob_HW >= settings.mask_threshold
        weighted_HW = prob_HW.mul_(scores_K[k])
        if hf:  # transformers weights the probabilities in place before it compares them with the threshold
            mine_HW = weighted_HW >= settings.mask_threshold
        original_areas.append(mine_HW.count_nonzero())
        better_HW = weighted_HW > best_HW  # strictly: among equals the first query wins, as with argmax
        torch.maximum(best_HW, weighted_HW, out=best_HW)
        # A later query has a higher number, so the maximum overwrites; torch.where is ten times slower on a CPU.
        torch.maximum(winner_HW, better_HW.to(winner_HW.dtype) * (k + 1), out=winner_HW)
        inside_HW = (better_HW & mine_HW) | (inside_HW & ~better_HW)
    mask_areas = winner_HW.flatten().bincount(minlength=num_kept + 1)[1:]
    if not hf:  # transformers gives every pixel to its winner, even outside the mask
        winner_HW *= inside_HW
    final_areas = winner_HW.flatten().bincount(minlength=num_kept + 1)[1:]
    areas_3K = torch.stack((mask_areas, torch.stack(original_areas), final_areas)).cpu().numpy()
    return Winners(RunMap.from_transposed(winner_HW.T.contiguous(), num_kept), *areas_3K)


def _reference_probabilities(mask_hw: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Probabilities [H, W]: resize logits to the padded size, cut off padding, resize to the image, sigmoid."""
    height, width = geometry.resized_hw
    padded = bilinear(mask_hw[None, None], geometry.padded_hw)
    return bilinear(padded[:, :, :height, :width], geometry.original_hw)[0, 0].sigmoid()


def _hf_probabilities(mask_hw: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Probabilities [H, W] as transformers computes them: sigmoid on its own grid, then resized with the padding."""
    return bilinear(bilinear(mask_hw[None, None], HF_GRID_HW).sigmoid(), geometry.original_hw)[0, 0]


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
        if not _is_segment(found, k, settings):
            continue
        is_fused = class_id in fused_ids
        if settings.mode == "hf":
            # The counter goes back to the fused id, so the next new segment may get an id that is in use.
            last_id = fused_ids[class_id] if is_fused else last_id + 1
            segment_id = last_id
        else:
            segment_id = fused_ids[class_id] if is_fused else (last_id := last_id + 1)
        ids[k + 1] = segment_id
        if class_id in settings.fuse_class_ids:
            fused_ids.setdefault(class_id, segment_id)
        if not is_fused or settings.mode == "hf":
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
