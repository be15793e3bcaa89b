"""The query transformer of a OneFormer: the states of the queries before the masked decoder, from task and image.

A decoder as in DETR whose queries all start as the task token. It reads the mask features, with one peculiarity that
trained weights rely on: the projected features take the place of the positions and the sine codes that of the
features, so keys are the sum of both, and values are sine codes alone.

Legend: B batch, Q query (all but the task), D width, M heads, E channels per head, h w cells of the mask features,
S = h * w.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers.linear import ActivatedLinear
from m2f_core.model.pixel_decoder import axis_code
from m2f_core.model.transformer_decoder import Attention


class CodeAttention(Attention):
    """Attention whose values are the sine codes of cells.

    Half of a code depends on the row only, the other half on the column. So the projected codes of h x w cells are sums
    of h + w projected vectors, which are the same for every image.
    """

    def read_codes(self, q_BQD: Tensor, k_BSD: Tensor, height: int, width: int) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        v_BSD = self._values(height, width, k_BSD).expand(k_BSD.shape[0], -1, -1)
        q_BMQE, k_BMSE, v_BMSE = heads(self.q_proj(q_BQD)), heads(self.k_proj(k_BSD)), heads(v_BSD)
        dropout = self.dropout if self.training else 0.0
        out_BMQE = F.scaled_dot_product_attention(q_BMQE, k_BMSE, v_BMSE.to(q_BMQE.dtype), dropout_p=dropout)
        return self.out_proj(out_BMQE.transpose(1, 2).flatten(2))

    def _values(self, height: int, width: int, like: Tensor) -> Tensor:
        """The projected codes [1, S, D]."""
        half = like.shape[2] // 2
        rows_hD = F.pad(axis_code(height, half, like.device), (0, half))
        columns_wD = F.pad(axis_code(width, half, like.device), (half, 0))
        projected = self.v_proj(torch.cat((rows_hD, columns_wD, rows_hD.new_zeros(1, 2 * half))))
        rows_hD, columns_wD, bias_1D = projected.split((height, width, 1))
        return (rows_hD[:, None] + (columns_wD - bias_1D)).view(1, height * width, -1)


class QueryLayer(nn.Module):
    """Self-attention, attention to the image and a feed-forward network, each residual.

    With `pre_norm`, the LayerNorm of each part comes before the part instead of after the sum.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attention = Attention(dim, num_heads, dropout=0.0)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = CodeAttention(dim, num_heads, dropout=0.0)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.fc1 = ActivatedLinear(dim, feedforward_dim, F.relu)
        self.fc2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(self, x_BQD: Tensor, position_1QD: Tensor, keys_BSD: Tensor, height: int, width: int) -> Tensor:
        def read_each_other(y: Tensor) -> Tensor:
            return self.self_attention(y + position_1QD, y + position_1QD, y)

        def read_image(y: Tensor) -> Tensor:
            return self.cross_attention.read_codes(y + position_1QD, keys_BSD, height, width)

        def feed_forward(y: Tensor) -> Tensor:
            return self.fc2(self.fc1(y))

        x_BQD = self._add(x_BQD, read_each_other, self.self_attention_norm)
        x_BQD = self._add(x_BQD, read_image, self.cross_attention_norm)
        return self._add(x_BQD, feed_forward, self.feedforward_norm)

    def _add(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return x + part(norm(x)) if self.pre_norm else norm(x + part(x))


class QueryTransformer(nn.Module):
    """Task and image -> the states of the queries, normalised."""

    def __init__(self, dim: int, num_layers: int, num_heads: int, feedforward_dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.input_projection = nn.Conv2d(dim, dim, kernel_size=1)
        self.layers = nn.ModuleList(QueryLayer(dim, num_heads, feedforward_dim, pre_norm) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, start_1D: Tensor, positions_QD: Tensor, mask_features_BDhw: Tensor) -> Tensor:
        """start_1D: the state of every query before the first layer; positions_QD: what tells the queries apart."""
        batch, dim, height, width = mask_features_BDhw.shape
        rows_hD, columns_wD = (axis_code(length, dim // 2, mask_features_BDhw.device) for length in (height, width))
        keys_BDhw = self.input_projection(mask_features_BDhw)
        code_hwD = torch.cat((rows_hD[:, None].expand(-1, width, -1), columns_wD[None].expand(height, -1, -1)), dim=-1)
        keys_BSD = (keys_BDhw.permute(0, 2, 3, 1) + code_hwD).flatten(1, 2)
        x_BQD = start_1D.expand(batch, positions_QD.shape[0], dim)
        for layer in self.layers:
            x_BQD = layer(x_BQD, positions_QD[None], keys_BSD, height, width)
        return self.output_norm(x_BQD)
