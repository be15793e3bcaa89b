"""Multi-scale deformable attention: each query reads a few points of each feature map, at places that it chooses.

Zhu et al., "Deformable DETR" (2021). There are four ways to compute the same sum, and a test compares all of them with
plain loops:

- `attend_by_grid_sample`: one `F.grid_sample` per level. Autograd handles its gradient well, so training uses it.
- `attend_by_embedding_bag`: a bilinear read of four cells is a weighted sum of four rows of a table, and so is the sum
  over points and levels. `F.embedding_bag` computes this in one pass and never stores the sampled values; on a CPU it
  is several times as fast. Inference uses it where no kernel can be used: on other devices, with gradients, in exported
  programs.
- `deformable_attention_kernel.attend_by_kernel`: the sum in compiled plain loops; for inference on a CPU.
- `deformable_attention_triton.attend_by_triton`: the same for CUDA devices.

Legend: B batch, Q query, M heads, D channels per head, L levels, P points per level, S = sum of h*w over the levels,
X B*M, A = L*P*4 cells that one query and head reads. Sizes are (height, width); the last axis of a location is (x, y).
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers.deformable_attention_kernel import attend_by_kernel
from m2f_core.layers.linear import Float32Linear

logger = logging.getLogger(__name__)


def attend_by_grid_sample(
    value_BSMD: Tensor, level_hw: Sequence[tuple[int, int]], locations_BQMLP2: Tensor, weights_BQMLP: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, [B, Q, M*D].

    Locations are in [0, 1] from the left/top edge to the right/bottom edge of each level (a cell's centre is at half a
    cell); outside the map all values are zero.
    """
    batch, _, heads, dim = value_BSMD.shape
    queries = locations_BQMLP2.shape[1]
    grids_XLQP2 = (2 * locations_BQMLP2 - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
    samples = []
    for level, value in enumerate(value_BSMD.split([h * w for h, w in level_hw], dim=1)):
        map_XDhw = value.permute(0, 2, 3, 1).reshape(batch * heads, dim, *level_hw[level])
        samples.append(
            F.grid_sample(map_XDhw, grids_XLQP2[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    samples_XDQA = torch.cat(samples, dim=-1)
    weights_X1QA = weights_BQMLP.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out_XDQ = (samples_XDQA * weights_X1QA).sum(-1)
    return out_XDQ.view(batch, heads * dim, queries).transpose(1, 2)


def attend_by_embedding_bag(
    value_BSMD: Tensor, level_hw: Sequence[tuple[int, int]], locations_BQMLP2: Tensor, weights_BQMLP: Tensor
) -> Tensor:
    """Like `attend_by_grid_sample`: the same arguments, the same result up to rounding."""
    batch, cells, heads, dim = value_BSMD.shape
    queries = locations_BQMLP2.shape[1]
    # Row ((b * S + cell) * M + m) of the table holds head m's values in that cell of image b. 32 bits are enough (2^31
    # rows would be 256 GiB of values) and halve the memory traffic.
    image_start = torch.arange(batch, dtype=torch.int32, device=value_BSMD.device) * (cells * heads)
    first_row_B1M1 = image_start.view(-1, 1, 1, 1) + torch.arange(
        heads, dtype=torch.int32, device=value_BSMD.device
    ).view(1, 1, -1, 1)

    rows, shares = [], []
    level_start = 0
    for level, (height, width) in enumerate(level_hw):
        columns = _two_neighbours(locations_BQMLP2[:, :, :, level, :, 0], width)
        lines = _two_neighbours(locations_BQMLP2[:, :, :, level, :, 1], height)
        column_parts = [(column * heads + first_row_B1M1, x_share) for column, x_share in columns]
        for line, y_share in lines:
            line_row = (line * width + level_start) * heads
            weight_BQMP = weights_BQMLP[:, :, :, level] * y_share
            for column_row, x_share in column_parts:
                rows.append(line_row + column_row)
                shares.append(weight_BQMP * x_share)
        level_start += height * width

    rows_2d = torch.cat(rows, dim=-1).view(batch * queries * heads, -1)
    shares_2d = torch.cat(shares, dim=-1).view(batch * queries * heads, -1)
    table = value_BSMD.reshape(-1, dim)
    out = F.embedding_bag(rows_2d, table, mode="sum", per_sample_weights=shares_2d)
    return out.view(batch, queries, heads * dim)


def _two_neighbours(locations: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Along one axis, the two cells between whose centres each location lies, with their linear shares.

    A cell outside 0..length-1 has share 0, and its index is moved to the border so that it can be read.
    """
    position = locations * length - 0.5  # in cells; 0 is the centre of the first cell
    before = position.floor()
    share_after = position - before
    cell = before.int()
    neighbours = []
    for index, share in ((cell, 1 - share_after), (cell + 1, share_after)):
        neighbours.append((index.clamp(0, length - 1), share * ((index >= 0) & (index < length))))
    return neighbours


class TokenPlaces(NamedTuple):
    """The places of the tokens of several feature maps, row by row, one level after the other; all float32."""

    level_hw: Sequence[tuple[int, int]]
    code: Tensor  # [1, S, C] added to the tokens as queries, not as values
    centre: Tensor  # [S, 2] centre of the token's cell, (x, y) in [0, 1] of the image
    cell_size: Tensor  # [L, 2] size of each level's cells, in the same unit


def locate_and_weigh(
    cell_size_L2: Tensor, centre_Q2: Tensor, offsets_BQMLP2: Tensor, logits_BQMLP: Tensor
) -> tuple[Tensor, Tensor]:
    """The points of each query, in [0, 1] of the image, and their weights."""
    locations_BQMLP2 = centre_Q2[:, None, None, None] + offsets_BQMLP2 * cell_size_L2[:, None]
    return locations_BQMLP2, logits_BQMLP.flatten(3).softmax(-1).view_as(logits_BQMLP)


def fused_way(*inputs: Tensor) -> Callable[..., Tensor] | None:
    """The kernel for these inputs, if any: kernels have no gradient, and exported programs cannot call a kernel."""
    has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if torch.compiler.is_compiling() or has_gradient or len({x.device for x in inputs}) > 1:
        return None
    if inputs[0].device.type == "cpu":
        return attend_by_kernel
    return _triton_way(inputs[0].device) if inputs[0].device.type == "cuda" else None


@cache
def _triton_way(device: torch.device) -> Callable[..., Tensor] | None:
    """The Triton kernel, if it is available and works on this device: torch for a CPU comes without Triton, and a
    container without a C compiler cannot start Triton's kernels. Try it once here, before it fails for every image.
    """
    try:
        from m2f_core.layers.deformable_attention_triton import attend_by_triton

        check_kernel(attend_by_triton, device)
    except Exception as error:
        logger.warning(
            f"deformable attention is slow, because its Triton kernel cannot be used on {device}: "
            f"{type(error).__name__}: {error}"
        )
        return None
    return attend_by_triton


def check_kernel(attend: Callable[..., Tensor], device: torch.device) -> None:
    """Raise ArithmeticError if `attend` differs from torch's operations; exceptions of `attend` itself pass through."""
    generator = torch.Generator().manual_seed(0)
    level_hw, reads = [(2, 3), (5, 4)], (2, 40, 2, 2, 4)
    value, centre, offsets, logits = (
        torch.randn(*shape, generator=generator).to(device) for shape in ((2, 26, 2, 8), (40, 2), (*reads, 2), reads)
    )
    cell_size = torch.tensor([(1 / w, 1 / h) for h, w in level_hw], device=device)
    centre = centre.sigmoid()
    out = attend(value, level_hw, centre, offsets, logits)
    expected = attend_by_embedding_bag(value, level_hw, *locate_and_weigh(cell_size, centre, offsets, logits))
    error = (out - expected).abs().max().item()
    if not error <= 1e-4:
        raise ArithmeticError(f"the result is off by {error:.1e}")


class DeformableAttention(nn.Module):
    """Multi-head deformable attention of the tokens of several feature maps among themselves.

    Locations and weights are computed in float32 even under autocast: in bfloat16 a location would be rounded to 1/256
    of the image, which is most of a cell.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = Float32Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = Float32Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x_BSC: Tensor, places: TokenPlaces) -> Tensor:
        batch, tokens, channels = x_BSC.shape
        points_shape = (batch, tokens, self.num_heads, self.num_levels, self.num_points)
        value_BSMD = self.value_proj(x_BSC).view(batch, tokens, self.num_heads, channels // self.num_heads)
        with torch.autocast(x_BSC.device.type, enabled=False):
            query_BSC = x_BSC + places.code
            # Offsets are in cells of the level that is read.
            offsets_BSMLP2 = self.sampling_offsets(query_BSC).view(*points_shape, 2)
            logits_BSMLP = self.attention_weights(query_BSC).view(points_shape)
            inputs = (places.centre, offsets_BSMLP2, logits_BSMLP)
            fused = None if self.training else fused_way(value_BSMD, *inputs)
            if fused is not None:
                out_BSC = fused(value_BSMD, places.level_hw, *inputs)
            else:
                attend = attend_by_grid_sample if self.training else attend_by_embedding_bag
                locations_and_weights = locate_and_weigh(places.cell_size, *inputs)
                out_BSC = attend(value_BSMD.float(), places.level_hw, *locations_and_weights)
        return self.output_proj(out_BSC.to(value_BSMD.dtype))
