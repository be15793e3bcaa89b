"""The blocks of a plain vision transformer, as DINOv2 has them.

Legend: B batch, N tokens, D channels, M heads, E channels of a head.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear

Activation = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Every token reads every token."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, may_attend_BNN: Tensor | None) -> Tensor:
        """`may_attend_BNN`: which token (row) may read which (column); None: each may read all."""
        q_BMNE, k_BMNE, v_BMNE = (
            proj(x_BND).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None if may_attend_BNN is None else may_attend_BNN[:, None]
        out_BMNE = F.scaled_dot_product_attention(q_BMNE, k_BMNE, v_BMNE, mask)
        result: Tensor = self.out_proj(out_BMNE.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = ActivatedLinear(dim, width, activation)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.fc1(x_BND))
        return result


class GatedFeedForward(nn.Module):
    """SwiGLU: one half of the hidden channels, activated, scales the other half."""

    def __init__(self, dim: int, width: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * width)
        self.down = nn.Linear(width, dim)
        self.activation = activation

    def forward(self, x_BND: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x_BND).chunk(2, dim=-1)
        result: Tensor = self.down(self.activation(gate) * up)
        return result


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised before and added with a factor for each channel after."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention
        self.scale1 = nn.Parameter(standard_normal(dim))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.feedforward = feedforward
        self.scale2 = nn.Parameter(standard_normal(dim))

    def forward(self, x_BND: Tensor, may_attend_BNN: Tensor | None = None) -> Tensor:
        x_BND = x_BND + self.scale1 * self.attention(self.norm1(x_BND), may_attend_BNN)
        return x_BND + self.scale2 * self.feedforward(self.norm2(x_BND))
