"""The blocks of a plain vision transformer, as DINOv2 and DINOv3 have them.

Legend: B batch, N tokens, P patches (the last of the tokens), D channels, M heads, E channels of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear

Activation = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Every token reads every token. `biases`: of the layers for queries, keys, values and the result."""

    def __init__(self, dim: int, num_heads: int, biases: tuple[bool, bool, bool, bool] = (True,) * 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim, bias) for bias in biases)

    def forward(self, x_BND: Tensor, may_attend_BNN: Tensor | None, turns_2PE: Tensor | None = None) -> Tensor:
        """`may_attend_BNN`: which token (row) may read which (column); None: each may read all. `turns_2PE`: cosine and
        sine by which queries and keys of patches are turned.
        """
        q_BMNE, k_BMNE, v_BMNE = (
            proj(x_BND).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if turns_2PE is not None:
            q_BMNE, k_BMNE = turned(q_BMNE, turns_2PE), turned(k_BMNE, turns_2PE)
        mask = None if may_attend_BNN is None else may_attend_BNN[:, None]
        out_BMNE = F.scaled_dot_product_attention(q_BMNE, k_BMNE, v_BMNE, mask)
        result: Tensor = self.out_proj(out_BMNE.transpose(1, 2).flatten(2))
        return result


def turned(x_BMNE: Tensor, turns_2PE: Tensor) -> Tensor:
    """Each patch's pairs of channels (e, e + E/2), turned by the angles of its place; other tokens stay.

    `apply_rotary_pos_emb` of transformers, `rope_apply` of dinov3/layers/attention.py.
    """
    cosine_PE, sine_PE = turns_2PE
    num_others = x_BMNE.shape[2] - cosine_PE.shape[0]
    others, patches = x_BMNE[:, :, :num_others], x_BMNE[:, :, num_others:]
    first, second = patches.chunk(2, dim=-1)
    patches = patches * cosine_PE + torch.cat((-second, first), dim=-1) * sine_PE
    return torch.cat((others, patches.to(x_BMNE.dtype)), dim=2)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, width: int, activation: Activation, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = ActivatedLinear(dim, width, activation, bias)
        self.fc2 = nn.Linear(width, dim, bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.fc1(x_BND))
        return result


class GatedFeedForward(nn.Module):
    """SwiGLU, or with another activation: one half of the hidden channels, activated, scales the other half."""

    def __init__(self, dim: int, width: int, activation: Activation = F.silu, bias: bool = True) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * width, bias)
        self.down = nn.Linear(width, dim, bias)
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

    def forward(self, x_BND: Tensor, may_attend_BNN: Tensor | None = None, turns_2PE: Tensor | None = None) -> Tensor:
        x_BND = x_BND + self.scale1 * self.attention(self.norm1(x_BND), may_attend_BNN, turns_2PE)
        return x_BND + self.scale2 * self.feedforward(self.norm2(x_BND))
