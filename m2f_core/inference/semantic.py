"""From the decoder outputs of one image to one class for each pixel, in the frame of the original image.

The score of a class at a pixel is the sum over queries of class score x mask probability; the highest wins, among
equals the lowest class. There are three variants, which resize different values to the original size:

- mode "reference", resize "masks": mask logits are resized, then scores are computed. The original Mask2Former does
  this with its panoptic and instance checkpoints (all with PANOPTIC_ON or INSTANCE_ON in their configuration).
- mode "reference", resize "scores": scores are computed at the padded size, the padding is cut off, and the scores are
  resized. The original does this with its semantic checkpoints (ADE20K, Cityscapes, Mapillary Vistas).
- mode "hf": equal to transformers in every pixel: scores are computed at the family's grid (384 x 384 for
  Mask2Former) or at the masks' own size, and resized with the padding.

An image whose geometry has windows has one decoder output for each: scores are computed for each window, averaged where
windows overlap, and resized. Mode "reference" does that strip by strip, mode "hf" as transformers does.

No variant holds the scores of all classes at the original size.

Legend: n windows of an image; N of all images of a batch; Q queries; C classes; h, w mask logits; H, W original image;
n rows of a strip (beside W); m rows of the resized image that a strip depends on, u, v its height and width. Suffix 1
is "plus the no-object class". `_WH` is column-major.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
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
)
from m2f_core.inference.panoptic import SegmentInfo
from m2f_core.inference.resize_taps import Taps, axis_taps
from m2f_core.inference.semantic_kernel import ClassMap, find_classes
from m2f_core.inference.settings import FamilyRules, SemanticSettings, goes_as_reference
from m2f_core.masks.on_device import Arrays, Fetch, Parcel, fetch_at_once, start_runs
from m2f_core.masks.run_map import RunMap
from m2f_core.to_device import to_device

_STRIP_FLOATS = 2**23  # scores and probabilities in one strip of the plain version: 32 MiB
_STRIP_FLOATS_ON_DEVICE = 2**27
# Along an axis of at most this length, masks are enlarged by a product with a matrix that is nearly all zero: a GPU
# multiplies the zeros faster than it stores and reads what each tap gives. A side of 2048 pixels has 512 logits.
_MOST_IN_A_PRODUCT = 512
_RUNS_PER_COLUMN = 24  # as for panoptic segments
_PARTS = 2**32  # of a score of 1, in which a device adds up scores


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """The classes of one image.

    The map holds 1 + class id, and 0 for pixels of classes that are not wanted. There is one row for each class in the
    map, by ascending class id, and its segment id is the number in the map. Its score is the mean of the class's scores
    at its pixels; a score above 1 (several queries of one class on one pixel) counts as 1. It is accurate to 1e-5.
    """

    label_map: RunMap
    infos: tuple[SegmentInfo, ...]

    @property
    def label_map_HW(self) -> NDArray[np.unsignedinteger]:  # noqa: N802
        """The map as an array, column-major in memory: uint8, or uint16 for more than 255 classes."""
        return self.label_map.array


def semantic_segments(
    pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: SemanticSettings
) -> SemanticResult:
    """Semantic segmentation of one image from its decoder outputs, on the device of these outputs.

    An image with windows has outputs [n, Q, C + 1] and [n, Q, h, w].
    ValueError if the outputs disagree or are not finite.
    """
    if pred_masks_Qhw.device.type != "cpu":
        parcel = Parcel()
        outputs = (pred_logits_QC1, pred_masks_Qhw)
        logits_NQC1, masks_NQhw = outputs if geometry.windows else (output[None] for output in outputs)
        started = start_semantic(logits_NQC1, masks_NQhw, [geometry], settings, parcel)
        [result] = started.finish(parcel.send(fetch_at_once)())
        return result
    if geometry.windows:
        pairs = zip(pred_logits_QC1, pred_masks_Qhw, strict=True)
        scores_nQC = torch.stack([class_scores(*pair) for pair in pairs])
        masks_nQhw = finite_masks(pred_masks_Qhw)
        found = _class_map(*_of_windows(masks_nQhw, scores_nQC, geometry, settings), scores_nQC.shape[2])
        return _result(found, settings)
    scores_QC = class_scores(pred_logits_QC1, pred_masks_Qhw)
    masks_Qhw = finite_masks(pred_masks_Qhw)
    if not goes_as_reference(settings):
        found = _class_map(*find_classes_hf(masks_Qhw, scores_QC, geometry, settings.rules), scores_QC.shape[1])
    else:
        scores = np.ascontiguousarray(scores_QC.numpy())
        found = find_classes(masks_Qhw.numpy(), scores, geometry, settings.resize == "scores")
    return _result(found, settings)


def start_semantic(
    logits_NQC1: torch.Tensor,
    masks_NQhw: torch.Tensor,
    geometries: Sequence[ImageGeometry],
    settings: SemanticSettings,
    parcel: Parcel,
    fetch: Fetch = fetch_at_once,
) -> Started[SemanticResult]:
    """`semantic_segments` of a whole batch on its device: the host waits once, for the parcel.

    The outputs of an image with windows are as many entries of the batch, one after the other.
    """
    scores_NQC = logits_NQC1.float().softmax(-1)[..., :-1]
    masks_NQhw = masks_NQhw.float()
    at_checks = [parcel.add(x) for x in (scores_NQC.amax(-1), *extremes(masks_NQhw))]
    planes_WH, weights_WH = [], []
    of_images = [outputs.split([g.num_inputs for g in geometries]) for outputs in (masks_NQhw, scores_NQC)]
    for masks_nQhw, scores_nQC, geometry in zip(*of_images, geometries, strict=True):
        if geometry.windows:
            labels_HW, best_HW = _of_windows(masks_nQhw, scores_nQC, geometry, settings)
        elif not goes_as_reference(settings):
            labels_HW, best_HW = find_classes_hf_together(masks_nQhw[0], scores_nQC[0], geometry, settings.rules)
        else:
            by_scores, floats = settings.resize == "scores", _STRIP_FLOATS_ON_DEVICE
            labels_HW, best_HW = find_classes_torch(masks_nQhw[0], scores_nQC[0], geometry, by_scores, floats)
        planes_WH.append(labels_HW.T.contiguous())
        # Whole numbers add up to the same sum in any order.
        weights_WH.append(best_HW.clamp_(max=1).T.double().mul(_PARTS).round_().long().contiguous())
    runs = start_runs(planes_WH, parcel, fetch, _RUNS_PER_COLUMN, weights_WH)

    def finish(arrays: Arrays) -> list[SemanticResult]:
        check_finite(*(arrays[at] for at in at_checks))
        num_classes = scores_NQC.shape[2]
        results = []
        for found, geometry in zip(runs(arrays), geometries, strict=True):
            assert found.sums is not None
            labels = found.runs.values
            areas = np.bincount(labels, found.runs.lengths, num_classes + 1).astype(np.int64)
            sums = np.bincount(labels, found.sums / _PARTS, num_classes + 1).astype(np.float64)
            label_map = RunMap(found.runs, geometry.original_hw, num_classes)
            results.append(_result(ClassMap(label_map, areas[1:], sums[1:]), settings))
        return results

    return Started([[] for _ in geometries], finish)


def _result(found: ClassMap, settings: SemanticSettings) -> SemanticResult:
    labels, wanted = found.labels, settings.wanted_class_ids
    infos = tuple(
        SegmentInfo(int(c) + 1, int(c), float(found.score_sums_C[c] / found.areas_C[c]))
        for c in np.flatnonzero(found.areas_C)
        if wanted is None or int(c) in wanted
    )
    if wanted is not None:
        ids = np.zeros(len(found.areas_C) + 1, np.int64)
        ids[[info.segment_id for info in infos]] = [info.segment_id for info in infos]
        labels = labels.relabelled(ids)
    return SemanticResult(labels, infos)


def warm_up(settings: SemanticSettings) -> None:
    """Compile now what `semantic_segments` would compile on its first call, so that no image waits for it."""
    geometry = ImageGeometry(original_hw=(8, 8), resized_hw=(32, 32), padded_hw=(32, 32))
    semantic_segments(
        torch.tensor([[9.0, -9.0]]), torch.ones(1, 8, 8), geometry, replace(settings, wanted_class_ids=None)
    )


def to_hf(result: SemanticResult) -> torch.Tensor:
    """The result in the form that transformers' `post_process_semantic_segmentation` returns: class ids, int64."""
    return torch.from_numpy(result.label_map_HW.astype(np.int64, order="C")) - 1


# ------------------------------------------------------------------------------------------------ reference, any device


def find_classes_torch(
    masks_Qhw: torch.Tensor,
    scores_QC: torch.Tensor,
    geometry: ImageGeometry,
    resize_scores: bool,
    strip_floats: int = _STRIP_FLOATS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + the best class of each pixel and its score, [H, W] each, on any device, in strips of rows: resize masks,
    compute and resize scores.

    This is the plain version of `semantic_kernel.find_classes`, which is faster on the CPU.
    """
    (num_queries, h, w), num_classes = masks_Qhw.shape, scores_QC.shape[1]
    first_rows, last_rows = _two_steps(h, 0, geometry, resize_scores)
    first_cols, last_cols = _two_steps(w, 1, geometry, resize_scores)
    height, width = geometry.original_hw
    # Rows of scores per strip row; a few more are needed if the image was enlarged for the network.
    widest = max(width, geometry.resized_hw[1]) * -(-len(first_rows.indices) // height)
    num_rows = max(1, strip_floats // ((num_queries + num_classes) * widest))
    best_HW = masks_Qhw.new_empty(geometry.original_hw)
    labels_HW = best_HW.new_empty(geometry.original_hw, dtype=_label_type(num_classes))
    for y0 in range(0, height, num_rows):
        y1 = min(y0 + num_rows, height)
        last = Taps(last_rows.indices[y0:y1], last_rows.weights[y0:y1])
        r0, r1 = last.indices.min(), last.indices.max() + 1
        is_whole = (r0, r1) == (0, len(first_rows.indices))
        first = first_rows if is_whole else Taps(first_rows.indices[r0:r1], first_rows.weights[r0:r1])
        enlarged_Qmv = _resize(_resize(masks_Qhw, first, 1), first_cols, 2)
        probs_Qmv = enlarged_Qmv.sigmoid() if enlarged_Qmv is masks_Qhw else enlarged_Qmv.sigmoid_()
        scores_Cmv = torch.einsum("qc,qmv->cmv", scores_QC, probs_Qmv)
        scores_CnW = _resize(_resize(scores_Cmv, Taps(last.indices - r0, last.weights), 1), last_cols, 2)
        best_HW[y0:y1], classes_nW = scores_CnW.max(0)  # the first among equals
        labels_HW[y0:y1] = classes_nW + 1
    return labels_HW, best_HW


def _of_windows(
    masks_nQhw: torch.Tensor, scores_nQC: torch.Tensor, geometry: ImageGeometry, settings: SemanticSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + the best class of each pixel of an image with windows, and its score, on any device."""
    on_host = masks_nQhw.device.type == "cpu"
    if settings.mode == "reference":
        floats = _STRIP_FLOATS if on_host else _STRIP_FLOATS_ON_DEVICE
        return find_classes_in_windows(masks_nQhw, scores_nQC, geometry, floats)
    find = best_classes_hf if on_host else best_classes_hf_together
    return find(hf_window_scores(masks_nQhw, scores_nQC, geometry), geometry.original_hw)


def find_classes_in_windows(
    masks_nQhw: torch.Tensor, scores_nQC: torch.Tensor, geometry: ImageGeometry, strip_floats: int = _STRIP_FLOATS
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + the best class of each pixel of an image with windows, and its score, in strips of rows as above."""
    (_, num_queries, h, w), num_classes = masks_nQhw.shape, scores_nQC.shape[2]
    (padded_h, padded_w), (u, v), (height, width) = geometry.padded_hw, geometry.resized_hw, geometry.original_hw
    rows, cols = axis_taps(h, padded_h, padded_h, padded_h), axis_taps(w, padded_w, padded_w, padded_w)
    last_rows, last_cols = axis_taps(u, u, u, height), axis_taps(v, v, v, width)
    floats_of_row = (num_queries * padded_w + 2 * num_classes * max(v, width)) * -(-u // height)
    num_rows = max(1, strip_floats // floats_of_row)
    best_HW = masks_nQhw.new_empty(geometry.original_hw)
    labels_HW = best_HW.new_empty(geometry.original_hw, dtype=_label_type(num_classes))
    for y0 in range(0, height, num_rows):
        y1 = min(y0 + num_rows, height)
        last = Taps(last_rows.indices[y0:y1], last_rows.weights[y0:y1])
        r0, r1 = int(last.indices.min()), int(last.indices.max()) + 1
        sums_Cmv = masks_nQhw.new_zeros((num_classes, r1 - r0, v))
        counts_mv = masks_nQhw.new_zeros((r1 - r0, v))
        for masks_Qhw, scores_QC, (top, left) in zip(masks_nQhw, scores_nQC, geometry.windows, strict=True):
            a, b = max(r0, top), min(r1, top + padded_h)  # rows of the resized image in both
            if a >= b:
                continue
            in_window = Taps(rows.indices[a - top : b - top], rows.weights[a - top : b - top])
            probs_Qmw = _resize(_resize(masks_Qhw, in_window, 1), cols, 2).sigmoid()
            of_window = slice(a - r0, b - r0), slice(left, left + padded_w)
            sums_Cmv[:, *of_window] += torch.einsum("qc,qmw->cmw", scores_QC, probs_Qmw)
            counts_mv[of_window] += 1
        means_Cmv = sums_Cmv.div_(counts_mv)
        scores_CnW = _resize(_resize(means_Cmv, Taps(last.indices - r0, last.weights), 1), last_cols, 2)
        best_HW[y0:y1], classes_nW = scores_CnW.max(0)  # the first among equals
        labels_HW[y0:y1] = classes_nW + 1
    return labels_HW, best_HW


def _two_steps(num_low: int, axis: int, geometry: ImageGeometry, resize_scores: bool) -> tuple[Taps, Taps]:
    """Taps of the resizings before and after the scores; one of them does all the work, or each does a part."""
    padded, resized, original = geometry.padded_hw[axis], geometry.resized_hw[axis], geometry.original_hw[axis]
    between = resized if resize_scores else original
    # Resizing to the same size changes nothing.
    return axis_taps(num_low, padded, resized, between), axis_taps(between, between, between, original)


def _resize(planes_Cnm: torch.Tensor, taps: Taps, axis: int) -> torch.Tensor:
    """The weighted sums of the taps along one axis (1 or 2); the same tensor if they change nothing."""
    num_in = planes_Cnm.shape[axis]
    if _change_nothing(taps, num_in):
        return planes_Cnm
    if num_in <= _MOST_IN_A_PRODUCT:
        matrix = _matrix_on(taps, num_in, planes_Cnm.device)
        return torch.matmul(matrix, planes_Cnm) if axis == 1 else torch.matmul(planes_Cnm, matrix.T)
    shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
    total: torch.Tensor | None = None
    for indices, weights in zip(taps.indices.T.copy(), taps.weights.T.copy(), strict=True):
        if not weights.any():
            continue
        indices_n, weights_n = (to_device(a, planes_Cnm.device) for a in (indices, weights))
        part = planes_Cnm.index_select(axis, indices_n).mul_(weights_n.view(shape))
        total = part if total is None else total.add_(part)
    assert total is not None, "weights add up to 1"
    return total


def _change_nothing(taps: Taps, num_in: int) -> bool:
    weights = taps.weights
    return len(weights) == num_in and bool(
        (taps.indices[:, 0] == np.arange(num_in)).all() and (weights[:, 0] == 1).all() and not weights[:, 1:].any()
    )


@lru_cache(maxsize=32)  # up to 2 MB each, 0.4 MB for an image of 480x640
def _matrix_on(taps: Taps, num_in: int, device: torch.device) -> torch.Tensor:
    """The taps as a matrix [n, num_in], most of which is zero."""
    matrix = np.zeros((len(taps.indices), num_in), np.float32)
    np.add.at(matrix, (np.arange(len(matrix))[:, None], taps.indices), taps.weights)
    return to_device(matrix, device)


# ------------------------------------------------------------------------------------------------------------------ hf


def find_classes_hf(
    masks_Qhw: torch.Tensor, scores_QC: torch.Tensor, geometry: ImageGeometry, rules: FamilyRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + the best class of each pixel and its score, as in transformers, but enlarging one class at a time."""
    return best_classes_hf(_hf_grid_scores(masks_Qhw, scores_QC, rules), geometry.original_hw)


def best_classes_hf(scores: torch.Tensor, original_hw: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + the best class of each pixel and its score, from the scores [1, C, u, v] of the resized image."""
    best_HW = scores.new_full(original_hw, -1.0)
    labels_HW = best_HW.new_zeros(original_hw, dtype=_label_type(scores.shape[1]))
    for c in _possible_classes(scores[0]):
        scores_HW = bilinear(scores[:, c : c + 1], original_hw)[0, 0]
        better_HW = scores_HW > best_HW  # strictly: among equals the first class wins, as with argmax
        torch.maximum(best_HW, scores_HW, out=best_HW)
        # A later class has a higher number, so the maximum overwrites; torch.where is ten times slower on a CPU.
        torch.maximum(labels_HW, better_HW.to(labels_HW.dtype) * (c + 1), out=labels_HW)
    return labels_HW, best_HW


def find_classes_hf_together(
    masks_Qhw: torch.Tensor, scores_QC: torch.Tensor, geometry: ImageGeometry, rules: FamilyRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """`find_classes_hf` for a device."""
    return best_classes_hf_together(_hf_grid_scores(masks_Qhw, scores_QC, rules), geometry.original_hw)


def best_classes_hf_together(scores: torch.Tensor, original_hw: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """`best_classes_hf` for a device: many classes at a time, and no look at the scores, for which it would wait."""
    dtype = _label_type(scores.shape[1])
    at_once = max(1, _STRIP_FLOATS_ON_DEVICE // math.prod(original_hw))
    best_HW, labels_HW = None, None
    for first in range(0, scores.shape[1], at_once):
        top_HW, index_HW = bilinear(scores[:, first : first + at_once], original_hw)[0].max(0)
        labels_of_top_HW = index_HW.add_(first + 1).to(dtype)
        if best_HW is None or labels_HW is None:
            best_HW, labels_HW = top_HW, labels_of_top_HW
            continue
        labels_of_top_HW.mul_(top_HW > best_HW)
        torch.maximum(best_HW, top_HW, out=best_HW)
        torch.maximum(labels_HW, labels_of_top_HW, out=labels_HW)
    assert best_HW is not None and labels_HW is not None, "there is a class"
    return labels_HW, best_HW


def hf_scores(
    pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor, size_hw: tuple[int, int], rules: FamilyRules
) -> torch.Tensor:
    """The scores of all classes [C, H, W] as in transformers: 4 C H W bytes, unlike the functions above."""
    scores_QC = class_scores(pred_logits_QC1, pred_masks_Qhw)
    scores = _hf_grid_scores(finite_masks(pred_masks_Qhw), scores_QC, rules)
    return bilinear(scores, size_hw)[0]


def _hf_grid_scores(masks_Qhw: torch.Tensor, scores_QC: torch.Tensor, rules: FamilyRules) -> torch.Tensor:
    """Scores of all classes [1, C, h, w], at the family's grid if it has one."""
    probs = on_hf_grid(masks_Qhw, rules).sigmoid()[None]
    # The same einsum as in transformers, even with a batch of one, because others might add up in another order.
    return torch.einsum("bqc, bqhw -> bchw", scores_QC[None], probs)


def hf_window_scores(masks_nQhw: torch.Tensor, scores_nQC: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Scores of all classes [1, C, u, v] of the resized image, the mean of the windows that see a pixel.

    A pixel that no window sees (transformers leaves out the last line of some sizes) has 0 for all classes.
    """
    height, width = geometry.padded_hw
    sums = masks_nQhw.new_zeros((1, scores_nQC.shape[2], *geometry.resized_hw))
    counts_uv = masks_nQhw.new_zeros(geometry.resized_hw)
    for masks_Qhw, scores_QC, (top, left) in zip(masks_nQhw, scores_nQC, geometry.windows, strict=True):
        probs = bilinear(masks_Qhw[None], geometry.padded_hw).sigmoid_()
        of_window = slice(top, top + height), slice(left, left + width)
        sums[:, :, *of_window] += torch.einsum("bqc, bqhw -> bchw", scores_QC[None], probs)
        counts_uv[of_window] += 1
    return sums.div_(counts_uv.clamp_(min=1))


def _possible_classes(scores_Chw: torch.Tensor) -> list[int]:
    """Classes that may be the best at some pixel, once the scores are enlarged.

    A pixel's score is a weighted mean of four scores, one of which has a weight of at least 1/4. So the best class at a
    pixel has at least a quarter of that score there, and a class that has less everywhere is the best nowhere.
    """
    least = scores_Chw.amax(0).min() * 0.2499  # a little less than 1/4, to allow for rounding
    return (scores_Chw.amax((1, 2)) >= least).nonzero()[:, 0].tolist()


# ------------------------------------------------------------------------------------------------------------ both


def _label_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes < 256 else torch.int32


def _class_map(labels_HW: torch.Tensor, best_HW: torch.Tensor, num_classes: int) -> ClassMap:
    """Areas and score sums of labels (1 + class) in host memory."""
    labels = labels_HW.flatten()
    areas = labels.bincount(minlength=num_classes + 1)[1:]
    sums = labels.bincount(weights=best_HW.clamp_(max=1).flatten().double(), minlength=num_classes + 1)[1:]
    return ClassMap(RunMap.from_transposed(labels_HW.T.numpy(), num_classes), areas.numpy(), sums.numpy())
