"""Transformer decoder: learned queries in, one state per query after each layer out. Every query reads every cell.

Carion et al., "End-to-End Object Detection with Transformers" (DETR, 2020), as MaskFormer uses it: no encoder, and the
memory is the backbone's coarsest map.

Legend: B batch, Q query, D width of the decoder, S cells of the map, C channels, h w cells of a map.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear
from m2f_core.model.pixel_decoder import sine_position_encoding
from m2f_core.model.transformer_decoder import Attention, MaskEmbedder


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each residual and post-normalised.

    In training, `dropout` applies to what each part adds, `attention_dropout` to the weights of both attentions, and
    `activation_dropout` between the linear layers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.self_attention = Attention(dim, num_heads, attention_dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, num_heads, attention_dropout)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.fc1 = ActivatedLinear(dim, feedforward_dim, activation)
        self.fc2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(self, x_BQD: Tensor, position_1QD: Tensor, keys_BSD: Tensor, values_BSD: Tensor) -> Tensor:
        """keys_BSD: the map's cells with their positions; values_BSD: without."""
        with_position = x_BQD + position_1QD
        of_each_other = self.self_attention(with_position, with_position, x_BQD)
        x_BQD = self.self_attention_norm(x_BQD + self.dropout(of_each_other))
        of_image = self.cross_attention(x_BQD + position_1QD, keys_BSD, values_BSD)
        x_BQD = self.cross_attention_norm(x_BQD + self.dropout(of_image))
        of_itself = self.fc2(self.activation_dropout(self.fc1(x_BQD)))
        return self.feedforward_norm(x_BQD + self.dropout(of_itself))


class TransformerDecoder(nn.Module):
    """The decoder. It predicts after every layer. The queries start as zeros; only their positions are learned."""

    def __init__(
        self,
        feature_size: int,
        mask_feature_size: int,
        hidden_dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.query_positions = nn.Parameter(standard_normal(num_queries, hidden_dim))
        self.input_projection = (
            nn.Identity() if feature_size == hidden_dim else nn.Conv2d(feature_size, hidden_dim, kernel_size=1)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden_dim, num_heads, feedforward_dim, activation, dropout, attention_dropout, activation_dropout
            )
            for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_dim)
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_feature_size)

    def forward(self, coarsest_BChw: Tensor, every_prediction: bool = False) -> list[Tensor]:
        """The normalised states [B, Q, D] after the last layer, or after each layer, from first to last."""
        batch, _, height, width = coarsest_BChw.shape
        values_BSD = self.input_projection(coarsest_BChw).flatten(2).transpose(1, 2)
        keys_BSD = values_BSD + sine_position_encoding(height, width, values_BSD.shape[2], values_BSD.device)
        position_1QD = self.query_positions.unsqueeze(0)
        x_BQD = torch.zeros_like(position_1QD).expand(batch, -1, -1)
        states = []
        for layer in self.layers:
            x_BQD = layer(x_BQD, position_1QD, keys_BSD, values_BSD)
            states.append(x_BQD)
        return [self.output_norm(x) for x in states[slice(None) if every_prediction else slice(-1, None)]]
