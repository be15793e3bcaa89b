"""Which class has the highest score at each pixel of one image, on the CPU, without a full-size map per query or class.

The score of class c is the sum over queries q of class score x mask probability, P[q, c] p[q]. As in `panoptic_kernel`
the resizings have non-negative weights that add up to one, so inside a tile of the output p[q] stays in a range
m[q] - d[q] .. m[q] + d[q], which follows from the logits that the tile reads. The lead of class c over class b is then

    sum over q of (P[q, c] - P[q, b]) p[q]  <=  sum over q of (P[q, c] - P[q, b]) m[q] + |P[q, c] - P[q, b]| d[q].

Let b be the best class in the middle of the ranges: then every class for which the right side is below 0 is impossible
in the whole tile. Mostly only b remains, and the tile is filled. Otherwise the scores of the remaining classes are
added up pixel by pixel over all queries. The results differ from the plain version (`semantic.find_classes_torch`) only
where rounding decides; the tests check that this happens only where the best two scores differ by less than 1e-5.

Legend: Q queries; C classes; h, w mask logits; H, W original image; T = 4 taps; `_WH` is column-major.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.panoptic_kernel import (
    _TILE,
    _range_of_columns,
    _range_of_rows,
    _sigmoids,
    _tile_logits,
    _tile_ranges,
)
from m2f_core.inference.resize_taps import NUM_TAPS, axis_taps
from m2f_core.jit import compiled
from m2f_core.masks.run_map import RunMap

_POINTS = 2 * _TILE  # pixels of the resized image along one axis; an output pixel lies between two of them
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
# The error of a float32 sum of Q terms is at most Q / 2**24 of the sum of their sizes, which for a lead is at most 4
# times the best score; the error of a probability is 3e-6 of itself. The slack is
# this share of the best score for each query, with a factor of 20 to spare.
_SLACK = np.float32(3e-7)
# If the class is certain, queries whose ranges together move its score by no more than this count with the middle of
# their range.
_SCORE_ERROR = np.float32(1e-5)


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The best class of each pixel, and for each class the number of its pixels and the sum of their scores."""

    labels: RunMap  # 1 + class
    areas_C: NDArray[np.int64]  # noqa: N815
    score_sums_C: NDArray[np.float64]  # noqa: N815 - sum of the class's scores at its pixels, each at most 1


class _Axis(NamedTuple):
    """One axis of the output. Points are pixels of the resized image, where probabilities are computed before they are
    resized; if logits are resized, no points are needed.
    """

    indices: NDArray[np.int64]  # [n, T] mask logits that each output pixel depends on, and, if logits are resized,
    weights: NDArray[np.float32]  # [n, T] their weights
    num_points: NDArray[np.int64]  # [tiles] at most _POINTS
    point_indices: NDArray[np.int64]  # [tiles, _POINTS, T] mask logits of each point
    point_weights: NDArray[np.float32]
    near: NDArray[np.int64]  # [n, 2] the points of each output pixel, counted within its tile
    near_weights: NDArray[np.float32]  # [n, 2]


def find_classes(
    masks_Qhw: NDArray[np.float32], scores_QC: NDArray[np.float32], geometry: ImageGeometry, resize_scores: bool
) -> ClassMap:
    """The best class of each pixel of the original image; among equals the lowest.

    `resize_scores`: compute class scores at the resized size, then resize them. Otherwise resize mask logits.
    """
    _, h, w = masks_Qhw.shape
    height, width = geometry.original_hw
    num_classes = scores_QC.shape[1]
    rows = _axis(h, geometry.padded_hw[0], geometry.resized_hw[0], height, resize_scores)
    cols = _axis(w, geometry.padded_hw[1], geometry.resized_hw[1], width, resize_scores)
    labels_WH = np.empty((width, height), np.uint8 if num_classes < 256 else np.uint16)
    areas_C, score_sums_C = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.float64)
    _fill_classes(masks_Qhw, scores_QC, rows, cols, resize_scores, labels_WH, areas_C, score_sums_C)
    return ClassMap(RunMap.from_transposed(labels_WH, num_classes), areas_C, score_sums_C)


def _axis(num_low: int, num_padded: int, num_resized: int, num_original: int, with_points: bool) -> _Axis:
    both = axis_taps(num_low, num_padded, num_resized, num_original)
    num_tiles = -(-num_original // _TILE)
    num_points = np.zeros(num_tiles, np.int64)
    point_indices = np.zeros((num_tiles, _POINTS, NUM_TAPS), np.int64)
    point_weights = np.zeros((num_tiles, _POINTS, NUM_TAPS), np.float32)
    near = np.zeros((num_original, 2), np.int64)
    near_weights = np.zeros((num_original, 2), np.float32)
    if with_points:
        # Each step alone: the other step keeps the size.
        to_resized = axis_taps(num_low, num_padded, num_resized, num_resized)
        to_original = axis_taps(num_resized, num_resized, num_resized, num_original)
        near_weights[:] = to_original.weights[:, :2]
        for tile in range(num_tiles):
            pixels = slice(tile * _TILE, (tile + 1) * _TILE)
            points, positions = np.unique(to_original.indices[pixels, :2], return_inverse=True)
            near[pixels] = positions.reshape(-1, 2)
            num_points[tile] = points.size
            point_indices[tile, : points.size] = to_resized.indices[points]
            point_weights[tile, : points.size] = to_resized.weights[points]
    return _Axis(both.indices, both.weights, num_points, point_indices, point_weights, near, near_weights)


# -------------------------------------------------------------------------------------------------------------- tiles


@compiled
def _fill_classes(masks, scores, rows, cols, resize_scores, labels_WH, areas, score_sums):  # type: ignore[no-untyped-def]
    """Fill `labels_WH` tile by tile, add to the areas and score sums [C]."""
    num_queries, num_classes = scores.shape
    width, height = labels_WH.shape
    w = masks.shape[2]
    first_rows, last_rows = _tile_ranges(rows.indices)
    first_cols, last_cols = _tile_ranges(cols.indices)

    # Range of each query over the rows that the current row of tiles reads, and then over the tile.
    strip_lows = np.empty((num_queries, w), np.float32)
    strip_highs = np.empty((num_queries, w), np.float32)
    lows = np.empty(num_queries, np.float32)
    highs = np.empty(num_queries, np.float32)
    middles = np.empty(num_queries, np.float32)
    spreads = np.empty(num_queries, np.float32)
    middle_scores = np.empty(num_classes, np.float32)
    leads = np.empty(num_classes, np.float32)
    candidates = np.empty(num_classes, np.int32)

    # Scratch planes are whole tiles [x, y]; pixels beyond the image are computed but never counted or written.
    columns = np.zeros((w, _POINTS), np.float32)
    points = np.zeros(_POINTS * _POINTS, np.float32)
    point_probs = np.zeros(_POINTS * _POINTS, np.float32)
    logits = np.zeros(_TILE * _TILE, np.float32)
    probs = np.empty(_TILE * _TILE, np.float32)
    totals = np.empty((num_classes, _TILE * _TILE), np.float32)
    best_classes = np.empty(_TILE * _TILE, np.int32)
    bits = np.empty(max(_POINTS * _POINTS, num_queries), np.int32)

    for tile_y in range(first_rows.size):
        y0, y1 = tile_y * _TILE, min((tile_y + 1) * _TILE, height)
        for q in range(num_queries):
            _range_of_rows(masks[q], first_rows[tile_y], last_rows[tile_y], strip_lows[q], strip_highs[q])

        for tile_x in range(first_cols.size):
            x0, x1 = tile_x * _TILE, min((tile_x + 1) * _TILE, width)
            first_col, last_col = first_cols[tile_x], last_cols[tile_x]
            for q in range(num_queries):
                lows[q], highs[q] = _range_of_columns(strip_lows[q], strip_highs[q], first_col, last_col)
            _sigmoids(lows, middles, bits)
            _sigmoids(highs, spreads, bits)
            for q in range(num_queries):
                low, high = middles[q], spreads[q]
                middles[q], spreads[q] = (low + high) * _HALF, (high - low) * _HALF
            num_candidates = _find_candidates(scores, middles, spreads, middle_scores, leads, candidates)

            totals[:num_candidates] = 0
            error_left = _SCORE_ERROR
            for q in range(num_queries):
                if num_candidates == 1:  # only its score is needed
                    error = scores[q, candidates[0]] * spreads[q]
                    if error <= error_left * _HALF:
                        error_left -= error
                        totals[0] += scores[q, candidates[0]] * middles[q]
                        continue
                if resize_scores:
                    _tile_probs(
                        masks[q], rows, cols, tile_y, tile_x, y0, y1, x0, x1, first_col, last_col,
                        columns, points, point_probs, probs, bits,
                    )  # fmt: skip
                else:
                    _tile_logits(
                        masks[q], rows.indices, rows.weights, cols.indices, cols.weights,
                        y0, y1, x0, x1, first_col, last_col, columns, logits,
                    )  # fmt: skip
                    _sigmoids(logits, probs, bits)
                for i in range(num_candidates):
                    _add_scaled(totals[i], scores[q, candidates[i]], probs)
            _keep_best(totals, candidates, num_candidates, best_classes)
            _write_classes(totals[0], best_classes, labels_WH[x0:x1, y0:y1], areas, score_sums)


@compiled
def _find_candidates(scores, middles, spreads, middle_scores, leads, candidates):  # type: ignore[no-untyped-def]
    """Put the classes that may be the best somewhere in the tile into `candidates`, ascending; return their number."""
    middle_scores[:] = 0
    for q in range(middles.size):
        _add_scaled(middle_scores, middles[q], scores[q])
    best = np.argmax(middle_scores)
    best_score = middle_scores[best]
    for c in range(leads.size):
        leads[c] = middle_scores[c] - best_score
    for q in range(spreads.size):
        _add_differences(leads, scores[q], scores[q, best], spreads[q])
    slack = _SLACK * best_score * (spreads.size + 20)
    num_candidates = 0
    for c in range(leads.size):
        if leads[c] >= -slack:
            candidates[num_candidates] = c
            num_candidates += 1
    return num_candidates


@compiled
def _add_scaled(totals, factor, values):  # type: ignore[no-untyped-def]
    for i in range(totals.size):
        totals[i] += factor * values[i]


@compiled
def _add_differences(leads, values, value, factor):  # type: ignore[no-untyped-def]
    for c in range(leads.size):
        leads[c] += abs(values[c] - value) * factor


@compiled
def _tile_probs(  # type: ignore[no-untyped-def]
    mask, rows, cols, tile_y, tile_x, y0, y1, x0, x1, first_col, last_col, columns, points, point_probs, probs, bits
):
    """Probabilities of one query, computed at the points of a tile and resized, into `probs` [x, y] of the tile."""
    num_y, num_x = rows.num_points[tile_y], cols.num_points[tile_x]
    stride = _TILE if num_y <= _TILE else _POINTS  # a whole number of vector registers
    for y in range(num_y):
        r0, r1, r2, r3 = _four(rows.point_indices[tile_y, y])
        w0, w1, w2, w3 = _four(rows.point_weights[tile_y, y])
        for c in range(first_col, last_col + 1):
            columns[c - first_col, y] = w0 * mask[r0, c] + w1 * mask[r1, c] + w2 * mask[r2, c] + w3 * mask[r3, c]
    for x in range(num_x):
        i0, i1, i2, i3 = _four(cols.point_indices[tile_x, x])
        w0, w1, w2, w3 = _four(cols.point_weights[tile_x, x])
        c0, c1, c2, c3 = (
            columns[i0 - first_col],
            columns[i1 - first_col],
            columns[i2 - first_col],
            columns[i3 - first_col],
        )
        out = points[x * stride : (x + 1) * stride]
        for y in range(stride):
            out[y] = w0 * c0[y] + w1 * c1[y] + w2 * c2[y] + w3 * c3[y]
    _sigmoids(points[: num_x * stride], point_probs, bits)
    for y in range(y0, y1):  # along y from points to pixels, in place of the logits
        near0, near1, w0, w1 = rows.near[y, 0], rows.near[y, 1], rows.near_weights[y, 0], rows.near_weights[y, 1]
        for x in range(num_x):
            points[x * _TILE + y - y0] = w0 * point_probs[x * stride + near0] + w1 * point_probs[x * stride + near1]
    for x in range(x0, x1):
        near0, near1, w0, w1 = cols.near[x, 0], cols.near[x, 1], cols.near_weights[x, 0], cols.near_weights[x, 1]
        left, right = points[near0 * _TILE : (near0 + 1) * _TILE], points[near1 * _TILE : (near1 + 1) * _TILE]
        out = probs[(x - x0) * _TILE : (x - x0 + 1) * _TILE]
        for y in range(_TILE):
            out[y] = w0 * left[y] + w1 * right[y]


@compiled
def _four(values):  # type: ignore[no-untyped-def]
    return values[0], values[1], values[2], values[3]


@compiled
def _keep_best(totals, candidates, num_candidates, best_classes):  # type: ignore[no-untyped-def]
    """The best class of each pixel of the tile, its score into `totals[0]`; among equals the first, as with argmax."""
    best_scores = totals[0]
    best_classes[:] = candidates[0]
    for n in range(1, num_candidates):
        scores, candidate = totals[n], candidates[n]
        for i in range(best_scores.size):
            better = scores[i] > best_scores[i]
            best_scores[i] = scores[i] if better else best_scores[i]
            best_classes[i] = candidate if better else best_classes[i]


@compiled
def _write_classes(best_scores, best_classes, labels, areas, score_sums):  # type: ignore[no-untyped-def]
    """Write the part [x, y] of a tile that lies in the image: 1 + class. Scores of more than 1 count as 1."""
    for x in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            best = best_classes[x * _TILE + y]
            labels[x, y] = best + 1
            areas[best] += 1
            score_sums[best] += min(best_scores[x * _TILE + y], _ONE)
