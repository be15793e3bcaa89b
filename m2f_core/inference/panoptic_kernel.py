"""Which query wins each pixel of one image, on the CPU, without a full-size mask per query.

The plain version (`panoptic.find_winners_torch`) enlarges every mask to the padded and then to the original size. But
both steps are bilinear, hence linear and separable, so a row of the output is a sum of at most four rows of the mask
logits (`resize_taps.Taps`), and so is a column. The weights are non-negative and add up to one, so inside a tile of the
output a query never leaves the range of the logits that the tile reads. This decides most tiles at once:

- a query can win in a tile only if its score at the top of its range is at least the best query's score at the bottom;
- a tile with one such query belongs to it, and is simply filled if the bottom of its range is over the mask threshold;
- a query adds all, or none, of a tile to its area if its range is wholly over, or under, the mask threshold.

Only the remaining tiles, mostly at borders between segments, are interpolated, tile by tile and query by query. The
results differ from the plain version only where rounding decides (sums have another order); the tests check that this
happens only at pixels whose decision has a margin under 1e-5.

Legend: K kept queries; h, w mask logits; H, W original image; T = 4 taps; `_WH` is column-major.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.resize_taps import axis_taps
from m2f_core.jit import compiled
from m2f_core.masks.run_map import RunMap

_TILE = 16  # output pixels; one AVX-512 register of float32
_SLACK = np.float32(1e-6)  # above the rounding of a score (about 1e-7), so that no possible winner is missed

_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_EXP_LIMIT = np.float32(87.0)  # exp(87) is a normal float32 number, and so is exp(-87)
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that its product with a small integer is exact
_LN2_LOW = np.float32(-2.12194440054690583e-4)
# exp(r) = 1 + r + r²·(1/2 + r/6 + r²/24 + r³/120 + r⁴/720) for |r| <= ln(2)/2, error 2e-7 of the value
_E2, _E3, _E4, _E5, _E6 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720))


@dataclass(frozen=True, eq=False)
class Winners:
    """The winner of each pixel, and three areas (in pixels, int64 [K]) that decide which queries become segments."""

    winners: RunMap  # 1 + index of the winning query, or 0 if its probability is too low
    mask_areas: NDArray[np.int64]  # pixels that the query wins, whatever its probability there
    original_areas: NDArray[np.int64]  # pixels where the query's probability is at least the mask threshold
    final_areas: NDArray[np.int64]  # pixels that the query keeps: where both hold, or all that it wins


def find_winners(
    masks_Khw: NDArray[np.float32],
    scores_K: NDArray[np.float32],
    geometry: ImageGeometry,
    mask_threshold: float,
    keep_all: bool = False,
) -> Winners:
    """The winner of each pixel of the original image among the kept queries, and the queries' areas.

    `keep_all`: a query keeps all pixels that it wins, whatever its probability there.
    """
    height, width = geometry.original_hw
    _, h, w = masks_Khw.shape
    rows = axis_taps(h, geometry.padded_hw[0], geometry.resized_hw[0], height)
    cols = axis_taps(w, geometry.padded_hw[1], geometry.resized_hw[1], width)
    # uint8 is enough for 255 queries, and a quarter of the memory traffic of int32.
    winners_WH = np.empty((width, height), np.uint8 if scores_K.size < 256 else np.uint16)
    # sigmoid(x) >= threshold is x >= logit(threshold), which needs no exponential per pixel.
    with np.errstate(divide="ignore"):  # infinite for thresholds of 0 and 1
        threshold_logit = np.float32(np.log(mask_threshold) - np.log1p(-mask_threshold))
    areas = _fill_winners(
        masks_Khw,
        scores_K,
        rows.indices,
        rows.weights,
        cols.indices,
        cols.weights,
        threshold_logit,
        np.float32(-np.inf) if keep_all else threshold_logit,
        winners_WH,
    )
    return Winners(RunMap.from_transposed(winners_WH, scores_K.size), *areas)


# -------------------------------------------------------------------------------------------------------------- tiles


@compiled
def _fill_winners(  # type: ignore[no-untyped-def]
    masks, scores, row_indices, row_weights, col_indices, col_weights, threshold, least, winners_WH
):
    """Fill `winners_WH`, tile by tile, and return the mask, original and final areas [K].

    A logit of at least `threshold` is inside of the query's mask; a winner keeps pixels with logits of at least
    `least`, which is either equal or minus infinity.
    """
    num_kept = scores.size
    width, height = winners_WH.shape
    w = masks.shape[2]
    first_rows, last_rows = _tile_ranges(row_indices)
    first_cols, last_cols = _tile_ranges(col_indices)
    mask_areas = np.zeros(num_kept, np.int64)
    original_areas = np.zeros(num_kept, np.int64)
    final_areas = np.zeros(num_kept, np.int64)

    # Range of each query's logits over the rows that the current row of tiles reads, and then over the tile.
    strip_lows = np.empty((num_kept, w), np.float32)
    strip_highs = np.empty((num_kept, w), np.float32)
    lows = np.empty(num_kept, np.float32)
    highs = np.empty(num_kept, np.float32)
    low_probs = np.empty(num_kept, np.float32)
    high_probs = np.empty(num_kept, np.float32)
    is_candidate = np.empty(num_kept, np.bool_)

    # Scratch planes are whole tiles [x, y]; pixels beyond the image are computed but never counted or written.
    columns = np.zeros((w, _TILE), np.float32)
    logits = np.zeros(_TILE * _TILE, np.float32)
    probs = np.empty(_TILE * _TILE, np.float32)
    best_scores = np.empty(_TILE * _TILE, np.float32)
    best_logits = np.empty(_TILE * _TILE, np.float32)
    best_queries = np.empty(_TILE * _TILE, np.int32)
    bits = np.empty(max(_TILE * _TILE, num_kept), np.int32)

    for tile_y in range(first_rows.size):
        y0, y1 = tile_y * _TILE, min((tile_y + 1) * _TILE, height)
        for k in range(num_kept):
            _range_of_rows(masks[k], first_rows[tile_y], last_rows[tile_y], strip_lows[k], strip_highs[k])

        for tile_x in range(first_cols.size):
            x0, x1 = tile_x * _TILE, min((tile_x + 1) * _TILE, width)
            first_col, last_col = first_cols[tile_x], last_cols[tile_x]
            num_pixels = (y1 - y0) * (x1 - x0)
            for k in range(num_kept):
                lows[k], highs[k] = _range_of_columns(strip_lows[k], strip_highs[k], first_col, last_col)
            _sigmoids(lows, low_probs, bits)
            _sigmoids(highs, high_probs, bits)
            num_candidates = _find_candidates(low_probs, high_probs, scores, is_candidate)
            contested = num_candidates > 1

            best_scores[:] = -_ONE
            for k in range(num_kept):
                if lows[k] >= threshold:
                    original_areas[k] += num_pixels
                straddles = lows[k] < threshold and highs[k] >= threshold
                is_decided = lows[k] >= least or highs[k] < least
                if is_candidate[k] and not contested:
                    mask_areas[k] += num_pixels
                    best_queries[:] = k
                    if is_decided:  # the whole tile
                        inside = lows[k] >= least
                        final_areas[k] += num_pixels * inside
                        for x in range(x0, x1):
                            winners_WH[x, y0:y1] = (k + 1) * inside
                if not (straddles or (is_candidate[k] and contested)):
                    continue
                _tile_logits(
                    masks[k], row_indices, row_weights, col_indices, col_weights,
                    y0, y1, x0, x1, first_col, last_col, columns, logits,
                )  # fmt: skip
                if straddles:
                    original_areas[k] += _count_at_least(logits, threshold, x1 - x0, y1 - y0)
                if is_candidate[k] and contested:
                    _sigmoids(logits, probs, bits)
                    _keep_better(probs, scores[k], logits, k, best_scores, best_logits, best_queries)
                elif is_candidate[k] and not is_decided:
                    best_logits[:] = logits
                    _write_winners(best_logits, best_queries, least, winners_WH[x0:x1, y0:y1], final_areas)
            if contested:
                for k in range(num_kept):
                    if is_candidate[k]:
                        mask_areas[k] += _count_equal(best_queries, k, x1 - x0, y1 - y0)
                _write_winners(best_logits, best_queries, least, winners_WH[x0:x1, y0:y1], final_areas)
    return mask_areas, original_areas, final_areas


@compiled
def _tile_ranges(indices):  # type: ignore[no-untyped-def]
    """First and last input (inclusive) that the outputs of each tile read along one axis."""
    num_tiles = (indices.shape[0] + _TILE - 1) // _TILE
    first, last = np.empty(num_tiles, np.int64), np.empty(num_tiles, np.int64)
    for tile in range(num_tiles):
        read = indices[tile * _TILE : (tile + 1) * _TILE]
        first[tile], last[tile] = read.min(), read.max()
    return first, last


@compiled
def _range_of_rows(mask, first_row, last_row, lows, highs):  # type: ignore[no-untyped-def]
    """Smallest and largest logit of each column over an inclusive range of rows."""
    for c in range(mask.shape[1]):
        lows[c] = mask[first_row, c]
        highs[c] = mask[first_row, c]
    for r in range(first_row + 1, last_row + 1):
        for c in range(mask.shape[1]):
            value = mask[r, c]
            lows[c] = value if value < lows[c] else lows[c]
            highs[c] = value if value > highs[c] else highs[c]


@compiled
def _range_of_columns(strip_lows, strip_highs, first_col, last_col):  # type: ignore[no-untyped-def]
    """Smallest and largest logit of a strip over an inclusive range of columns."""
    low, high = strip_lows[first_col], strip_highs[first_col]
    for c in range(first_col + 1, last_col + 1):
        low = strip_lows[c] if strip_lows[c] < low else low
        high = strip_highs[c] if strip_highs[c] > high else high
    return low, high


@compiled
def _find_candidates(low_probs, high_probs, scores, is_candidate):  # type: ignore[no-untyped-def]
    """Mark the queries that may win somewhere in the tile, which are at least one, and return their number."""
    best_low = low_probs[0] * scores[0]
    for k in range(1, scores.size):
        best_low = max(best_low, low_probs[k] * scores[k])
    num_candidates = 0
    for k in range(scores.size):
        is_candidate[k] = high_probs[k] * scores[k] >= best_low - _SLACK
        num_candidates += is_candidate[k]
    return num_candidates


@compiled
def _tile_logits(  # type: ignore[no-untyped-def]
    mask, row_indices, row_weights, col_indices, col_weights, y0, y1, x0, x1, first_col, last_col, columns, logits
):
    """Interpolate one mask inside one tile, rows first, into `logits` [x, y] of the whole tile."""
    for y in range(y0, y1):
        r0, r1, r2, r3 = row_indices[y, 0], row_indices[y, 1], row_indices[y, 2], row_indices[y, 3]
        w0, w1, w2, w3 = row_weights[y, 0], row_weights[y, 1], row_weights[y, 2], row_weights[y, 3]
        for c in range(first_col, last_col + 1):
            columns[c - first_col, y - y0] = w0 * mask[r0, c] + w1 * mask[r1, c] + w2 * mask[r2, c] + w3 * mask[r3, c]
    for x in range(x0, x1):
        c0, c1 = columns[col_indices[x, 0] - first_col], columns[col_indices[x, 1] - first_col]
        c2, c3 = columns[col_indices[x, 2] - first_col], columns[col_indices[x, 3] - first_col]
        w0, w1, w2, w3 = col_weights[x, 0], col_weights[x, 1], col_weights[x, 2], col_weights[x, 3]
        out = logits[(x - x0) * _TILE : (x - x0 + 1) * _TILE]
        for y in range(_TILE):
            out[y] = w0 * c0[y] + w1 * c1[y] + w2 * c2[y] + w3 * c3[y]


@compiled
def _sigmoids(values, out, bits):  # type: ignore[no-untyped-def]
    """out = 1 / (1 + exp(-values)), in loops that the compiler turns into vector code; error under 3e-7.

    exp(z) = 2**n * exp(r) with z = n * ln(2) + r; 2**n is made by writing n into the exponent bits of a float32.
    """
    powers = bits.view(np.float32)
    for i in range(values.size):
        z = max(min(-values[i], _EXP_LIMIT), -_EXP_LIMIT)
        n = np.floor(z * _LOG2_E + _HALF)
        r = z - n * _LN2_HIGH - n * _LN2_LOW
        out[i] = _ONE + r + r * r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6))))
        bits[i] = (np.int32(n) + 127) << 23
    for i in range(values.size):
        out[i] = _ONE / (_ONE + out[i] * powers[i])


@compiled
def _keep_better(probs, score, logits, query, best_scores, best_logits, best_queries):  # type: ignore[no-untyped-def]
    """Replace the winner only if strictly better: among equals the first query wins, as with argmax."""
    for i in range(probs.size):
        value = probs[i] * score
        better = value > best_scores[i]
        best_scores[i] = value if better else best_scores[i]
        best_logits[i] = logits[i] if better else best_logits[i]
        best_queries[i] = np.int32(query) if better else best_queries[i]


@compiled
def _count_at_least(logits, threshold, num_x, num_y):  # type: ignore[no-untyped-def]
    count = 0
    for x in range(num_x):
        for y in range(num_y):
            count += logits[x * _TILE + y] >= threshold
    return count


@compiled
def _count_equal(best_queries, query, num_x, num_y):  # type: ignore[no-untyped-def]
    count = 0
    for x in range(num_x):
        for y in range(num_y):
            count += best_queries[x * _TILE + y] == query
    return count


@compiled
def _write_winners(best_logits, best_queries, least, winners, final_areas):  # type: ignore[no-untyped-def]
    """Write the part [x, y] of a tile that lies in the image: 1 + query, or 0 if its probability is too low."""
    for x in range(winners.shape[0]):
        for y in range(winners.shape[1]):
            query = best_queries[x * _TILE + y]
            inside = best_logits[x * _TILE + y] >= least
            final_areas[query] += inside
            winners[x, y] = (query + 1) * inside
