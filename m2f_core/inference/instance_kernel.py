"""The binary mask of one query in the original image, as column-major runs, on the CPU.

The plain version (`instance.find_masks_torch`) enlarges the mask twice. Here, as in `panoptic_kernel`, both steps are
one weighted sum with non-negative weights, so inside a tile of the output a query stays within the range of the logits
that the tile reads. If the top of that range is at most 0, the mask is off in the whole tile; if the bottom is above
0, the mask is on. Only tiles in which the mask is on somewhere are interpolated, and only one column of tiles of the
full-size mask is in memory at a time: its pixels become runs before the next column is computed.

Legend: h, w mask logits; H, W original image; M runs.
"""

import numpy as np
from numpy.typing import NDArray

from m2f_core.inference.panoptic_kernel import (
    _TILE,
    _range_of_columns,
    _range_of_rows,
    _sigmoids,
    _tile_logits,
    _tile_ranges,
)
from m2f_core.inference.resize_taps import Taps
from m2f_core.jit import compiled
from m2f_core.masks.rle import LabelRuns

_ZERO = np.float32(0.0)
_OFF, _ON, _MIXED = 0, 1, 2  # states of a tile


def find_mask(mask_hw: NDArray[np.float32], rows: Taps, cols: Taps) -> tuple[LabelRuns, float]:
    """Where the logits of one query are above 0 after the resizings of the taps [H] and [W].

    Returns the runs of the mask (labels 0 and 1) and the sum of the probabilities of its pixels.
    """
    lengths, num_runs, probability_sum = _find_runs(mask_hw, rows.indices, rows.weights, cols.indices, cols.weights)
    starts_on = int(lengths[0] == 0)  # whether the mask begins with a one, so that the first run of zeros is empty
    values = np.arange(starts_on, num_runs, dtype=np.int32) % 2
    return LabelRuns(values, lengths[starts_on:num_runs].astype(np.uint32)), float(probability_sum)


@compiled
def _find_runs(mask, row_indices, row_weights, col_indices, col_weights):  # type: ignore[no-untyped-def]
    """Run lengths (the first `num_runs` are filled), `num_runs`, and the sum of the mask's probabilities."""
    height, width, w = row_indices.shape[0], col_indices.shape[0], mask.shape[1]
    first_rows, last_rows = _tile_ranges(row_indices)
    first_cols, last_cols = _tile_ranges(col_indices)
    strip_lows = np.empty((first_rows.size, w), np.float32)
    strip_highs = np.empty((first_rows.size, w), np.float32)
    for tile_y in range(first_rows.size):
        _range_of_rows(mask, first_rows[tile_y], last_rows[tile_y], strip_lows[tile_y], strip_highs[tile_y])

    states = np.empty(first_rows.size, np.int64)
    is_on = np.zeros((_TILE, height), np.bool_)  # the current column of tiles [x, y]; read where the tile is mixed
    columns = np.zeros((w, _TILE), np.float32)
    logits = np.zeros(_TILE * _TILE, np.float32)
    probs = np.empty(_TILE * _TILE, np.float32)
    bits = np.empty(_TILE * _TILE, np.int32)
    lengths = np.zeros(64, np.int64)  # the last run is still growing
    num_runs = 1
    probability_sum = 0.0

    for tile_x in range(first_cols.size):
        x0, x1 = tile_x * _TILE, min((tile_x + 1) * _TILE, width)
        first_col, last_col = first_cols[tile_x], last_cols[tile_x]
        for tile_y in range(first_rows.size):
            low, high = _range_of_columns(strip_lows[tile_y], strip_highs[tile_y], first_col, last_col)
            states[tile_y] = _OFF if high <= _ZERO else (_ON if low > _ZERO else _MIXED)
            if states[tile_y] == _OFF:
                continue
            y0, y1 = tile_y * _TILE, min((tile_y + 1) * _TILE, height)
            _tile_logits(
                mask, row_indices, row_weights, col_indices, col_weights,
                y0, y1, x0, x1, first_col, last_col, columns, logits,
            )  # fmt: skip
            _sigmoids(logits, probs, bits)
            probability_sum += _sum_where_on(logits, probs, is_on[: x1 - x0, y0:y1])
        for x in range(x1 - x0):
            if lengths.size < num_runs + height:  # room for the worst case of one column
                longer = np.zeros(2 * (num_runs + height), np.int64)
                longer[:num_runs] = lengths[:num_runs]
                lengths = longer
            num_runs = _append_column(is_on[x], states, lengths, num_runs)
    return lengths, num_runs, probability_sum


@compiled
def _sum_where_on(logits, probs, is_on):  # type: ignore[no-untyped-def]
    """Write which pixels [x, y] of the tile are on; return the sum of their probabilities."""
    sums = np.zeros(_TILE, np.float32)  # one per y, so that the compiler can add them in parallel
    for x in range(is_on.shape[0]):
        for y in range(is_on.shape[1]):
            on = logits[x * _TILE + y] > _ZERO
            is_on[x, y] = on
            sums[y] += probs[x * _TILE + y] if on else _ZERO
    total = 0.0
    for y in range(is_on.shape[1]):
        total += sums[y]
    return total


@compiled
def _append_column(is_on, states, lengths, num_runs):  # type: ignore[no-untyped-def]
    """Add one column of pixels to the runs; return the number of runs. Runs with odd index (from 0) are ones."""
    for tile_y in range(states.size):
        y0, y1 = tile_y * _TILE, min((tile_y + 1) * _TILE, is_on.size)
        if states[tile_y] == _MIXED:
            for y in range(y0, y1):
                num_runs += is_on[y] != (num_runs - 1) % 2
                lengths[num_runs - 1] += 1
        else:
            num_runs += states[tile_y] != (num_runs - 1) % 2
            lengths[num_runs - 1] += y1 - y0
    return num_runs
