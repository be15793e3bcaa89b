"""Multi-scale deformable attention on a CPU: one pass over queries that stores only the sum.

The same sum as in `deformable_attention`. Each query has two loops. The first finds its points, the cells that they
read and the weights, without a branch, so that the compiler computes sixteen at a time. The second adds up these cells
with their weights; the channels of a head are next to each other in memory. numba compiles the code for each number of
channels, so that the inner loop is straight code.

Names are those of `deformable_attention`: B batch, Q query, M heads, D channels per head, L levels, P points.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2f_core.jit import compiled
from m2f_core.layers.threads import in_parts


def attend_by_kernel(
    value_BSMD: Tensor,
    level_hw: Sequence[tuple[int, int]],
    centre_Q2: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples, float32 [B, Q, M*D]; on a CPU, no gradient, as many threads as torch has.

    A query's points lie `offsets` cells of their level (x, y) away from its centre, which is in [0, 1] of the image.
    Their weights are the softmax of `logits` over levels and points.
    """
    batch, cells, heads, dim = value_BSMD.shape
    queries = len(centre_Q2)
    logits_BQMA = logits_BQMLP.flatten(3)
    # The result is divided by their sum over a head's points: two fast passes, as softmax over few points is slow.
    shares_BQMA = (logits_BQMA - logits_BQMA.amax(-1, keepdim=True)).exp_()
    out = np.empty((batch * queries * heads, dim), np.float32)
    arrays = (
        value_BSMD.float().reshape(batch * cells * heads, dim).contiguous().numpy(),
        centre_Q2.contiguous().numpy(),
        offsets_BQMLP2.reshape(batch * queries, -1).contiguous().numpy(),
        shares_BQMA.reshape(batch * queries, -1).numpy(),
        *_points(level_hw, heads, logits_BQMLP.shape[4]),
    )
    attend = _kernel(dim)
    in_parts(queries, 1, lambda first, end: attend(*arrays, heads, batch, first, end, out))
    return torch.from_numpy(out).view(batch, queries, heads * dim)


def _points(level_hw: Sequence[tuple[int, int]], heads: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """By head, level and point of a query: (height, width) of the level, and the row of its first cell and this head.

    Row (cell * M + m) of an image's values holds head m's values in that cell.
    """
    sizes_L2 = np.array(level_hw, np.int32)
    ends_L = sizes_L2.prod(axis=1).cumsum()
    starts_L = np.concatenate(([0], ends_L[:-1])).astype(np.int32)
    first_rows_ML = starts_L * np.int32(heads) + np.arange(heads, dtype=np.int32)[:, None]
    return np.tile(np.repeat(sizes_L2, points, axis=0), (heads, 1)), np.repeat(first_rows_ML, points, axis=1).ravel()


def _clamp(cell: np.float32, last: np.float32) -> np.float32:
    """`cell` limited to 0 .. last, and 0 for NaN, because the result is used as an address."""
    cell = cell if cell > np.float32(0) else np.float32(0)
    return cell if cell < last else last


_within = compiled(_clamp)


@cache
def _kernel(dim: int) -> Callable[..., Any]:
    half, one, nothing = np.float32(0.5), np.float32(1), np.float32(0)

    def attend(  # type: ignore[no-untyped-def]
        value, centres, offsets, shares, sizes, first_rows, heads, batch, first, end, out
    ):
        """Queries `first` to `end` of all images. value: [B*S*M, D]; offsets, shares: [B*Q, ...]; out: [B*Q*M, D]."""
        queries = len(centres)
        num_points = len(first_rows)  # points of a query, all heads
        points_of_head = num_points // heads
        heights, widths = sizes[:, 0].astype(np.float32), sizes[:, 1].astype(np.float32)
        # Unsigned, so that numba does not add code for negative indices.
        rows, weights = np.empty((4, num_points), np.uint32), np.empty((4, num_points), np.float32)
        total = np.empty(dim, np.float32)
        step = np.int32(heads)  # rows from one cell to the next
        for b in range(batch):
            image = np.int32(b * (len(value) // batch))  # its first row
            for q in range(first, end):
                at = b * queries + q
                for i in range(num_points):
                    # In cells; 0 is the centre of the first cell.
                    height, width = heights[i], widths[i]
                    x = centres[q, 0] * width - half + offsets[at, 2 * i]
                    y = centres[q, 1] * height - half + offsets[at, 2 * i + 1]
                    left, top = np.float32(np.floor(x)), np.float32(np.floor(y))
                    right_share, bottom_share = x - left, y - top
                    # A cell outside the map has share 0, and the border cell is read instead.
                    left_share = one - right_share if (left >= nothing) & (left < width) else nothing
                    right_share = right_share if (left >= -one) & (left < width - one) else nothing
                    top_share = one - bottom_share if (top >= nothing) & (top < height) else nothing
                    bottom_share = bottom_share if (top >= -one) & (top < height - one) else nothing
                    left, right = _within(left, width - one), _within(left + one, width - one)
                    top, bottom = _within(top, height - one), _within(top + one, height - one)
                    # x - x is 0, or NaN if x is not finite: broken values must stay visible.
                    share = shares[at, i] + ((x - x) + (y - y))
                    first_row = image + first_rows[i]
                    upper, lower = np.int32(top) * sizes[i, 1], np.int32(bottom) * sizes[i, 1]
                    rows[0, i] = first_row + (upper + np.int32(left)) * step
                    rows[1, i] = first_row + (upper + np.int32(right)) * step
                    rows[2, i] = first_row + (lower + np.int32(left)) * step
                    rows[3, i] = first_row + (lower + np.int32(right)) * step
                    weights[0, i] = share * top_share * left_share
                    weights[1, i] = share * top_share * right_share
                    weights[2, i] = share * bottom_share * left_share
                    weights[3, i] = share * bottom_share * right_share
                for m in range(heads):
                    sum_of_shares = nothing
                    total[:] = nothing
                    for i in range(m * points_of_head, (m + 1) * points_of_head):
                        sum_of_shares += shares[at, i]
                        row_0, row_1, row_2, row_3 = rows[0, i], rows[1, i], rows[2, i], rows[3, i]
                        w_0, w_1, w_2, w_3 = weights[0, i], weights[1, i], weights[2, i], weights[3, i]
                        for d in range(dim):
                            total[d] += (
                                w_0 * value[row_0, d]
                                + w_1 * value[row_1, d]
                                + w_2 * value[row_2, d]
                                + w_3 * value[row_3, d]
                            )
                    for d in range(dim):
                        out[at * heads + m, d] = total[d] / sum_of_shares

    # Contraction: a multiplication and an addition in one step, rounded once.
    return compiled(attend, fastmath={"contract"})
