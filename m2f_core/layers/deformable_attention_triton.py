"""Multi-scale deformable attention on a CUDA device: one Triton kernel that stores only the sum.

The same sum as in `deformable_attention`, with the arguments of `deformable_attention_kernel`. A program computes some
queries of one head of one image: softmax, places and bilinear weights are in registers, and the four cells around each
point are read as rows of D neighbouring channels. Arithmetic is float32 whatever the type of the stored values.

Without a device the kernel runs in Triton's interpreter (TRITON_INTERPRET=1, set before this file is imported); this is
how the tests compare it with the other ways. It has not been timed on a GPU.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES_PER_PROGRAM = 32


def attend_by_triton(
    value_BSMD: Tensor,
    level_hw: Sequence[tuple[int, int]],
    centre_Q2: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> Tensor:
    """Like `deformable_attention_kernel.attend_by_kernel`; the result, [B, Q, M*D], has the type of the values."""
    batch, cells, heads, dim = value_BSMD.shape
    queries, (levels, points) = len(centre_Q2), logits_BQMLP.shape[3:]
    out_BQMD = torch.empty((batch, queries, heads, dim), dtype=value_BSMD.dtype, device=value_BSMD.device)
    grid = (triton.cdiv(queries, _QUERIES_PER_PROGRAM), heads, batch)
    _attend[grid](
        value_BSMD.contiguous(),
        centre_Q2.contiguous(),
        offsets_BQMLP2.contiguous(),
        logits_BQMLP.contiguous(),
        _level_table(tuple(level_hw), value_BSMD.device),
        out_BQMD,
        queries,
        cells,
        HEADS=heads,
        DIM=dim,
        LEVELS=levels,
        POINTS=points,
        BLOCK=_QUERIES_PER_PROGRAM,
        DIM_POWER=triton.next_power_of_2(dim),
        READS_POWER=triton.next_power_of_2(levels * points),
    )
    return out_BQMD.flatten(2)


@lru_cache(maxsize=256)  # cached also because nothing may be copied from the host while a CUDA graph is recorded
def _level_table(level_hw: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(height, width, first cell) of each level, int32 [L, 3]."""
    starts = torch.tensor([0, *(h * w for h, w in level_hw)]).cumsum(0)[:-1]
    return torch.cat([torch.tensor(level_hw), starts[:, None]], dim=1).to(device, torch.int32)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    value,
    centres,
    offsets,
    logits,
    level_table,
    out,
    queries,
    cells,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM_POWER: tl.constexpr,
    READS_POWER: tl.constexpr,
):
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query = tl.minimum(place, queries - 1)  # programs at the end repeat the last query, and do not store it
    at = (image * queries + query) * HEADS + head
    channel = tl.arange(0, DIM_POWER)
    is_channel = channel < DIM

    # Softmax over all reads of a query and head
    read = tl.arange(0, READS_POWER)
    is_read = (read < LEVELS * POINTS)[None, :] & (place >= 0)[:, None]
    reads = at[:, None] * (LEVELS * POINTS) + read[None, :]
    scores = tl.load(logits + reads, mask=is_read, other=float("-inf")).to(tl.float32)
    most = tl.max(scores, axis=1)
    sum_of_shares = tl.sum(tl.exp(scores - most[:, None]), axis=1)

    centre_x = tl.load(centres + 2 * query).to(tl.float32)
    centre_y = tl.load(centres + 2 * query + 1).to(tl.float32)
    total = tl.zeros([BLOCK, DIM_POWER], dtype=tl.float32)
    for level in tl.static_range(LEVELS):
        height = tl.load(level_table + 3 * level)
        width = tl.load(level_table + 3 * level + 1)
        first_cell = tl.load(level_table + 3 * level + 2)
        for point in tl.static_range(POINTS):
            one = at * (LEVELS * POINTS) + level * POINTS + point
            share = tl.exp(tl.load(logits + one).to(tl.float32) - most) / sum_of_shares
            # In cells; 0 is the centre of the first cell.
            x = centre_x * width - 0.5 + tl.load(offsets + 2 * one).to(tl.float32)
            y = centre_y * height - 0.5 + tl.load(offsets + 2 * one + 1).to(tl.float32)
            left, top = tl.floor(x), tl.floor(y)
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    column, row = left + right, top + below
                    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                    # Linear in the distance: 1 at the cell's centre, 0 one cell away. NaN stays NaN.
                    weight = share * (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
                    cell = first_cell + tl.where(inside, row * width + column, 0.0).to(tl.int32)
                    first = ((image * cells + cell) * HEADS + head) * DIM
                    seen = tl.load(
                        value + first[:, None] + channel[None, :],
                        mask=inside[:, None] & is_channel[None, :],
                        other=0.0,
                    )
                    total += weight[:, None] * seen.to(tl.float32)
    tl.store(
        out + at[:, None] * DIM + channel[None, :],
        total.to(out.dtype.element_ty),
        mask=(place < queries)[:, None] & is_channel[None, :],
    )
