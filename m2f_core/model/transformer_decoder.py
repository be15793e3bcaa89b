"""Transformer decoder with masked attention: learned queries in, one mask and one class embedding per query out.

Cheng et al., "Masked-attention Mask Transformer" (2022). Before every layer the decoder predicts a mask for each query,
and the layer's cross-attention reads only the cells where that mask is on. The layers cycle through three feature maps,
from coarse to fine.

Legend: B batch, Q query, C mask channels, D width of the decoder, M heads, E channels per head, h w cells at the mask
features' resolution (stride 4), S cells of one level, T S or Q (the cells or queries that are attended to).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear
from m2f_core.model.pixel_decoder import NUM_LEVELS, sine_position_encoding


class QueryPrediction(NamedTuple):
    """The prediction of the queries after a layer."""

    states: Tensor  # [Q, B, D] the layer's output, which the next layer reads
    queries: Tensor  # [B, Q, D] the normalised states, for the class head
    mask_logits: Tensor  # [B, Q, h, w]
    attention: Tensor | None  # [B, M, Q, Q] what the queries read of each other in the layer, if asked for


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values may differ; `dropout` of the weights, in training."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        q_BQD: Tensor,
        k_BTD: Tensor,
        v_BTD: Tensor,
        may_attend_B1QT: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """may_attend_B1QT: true if a query may read a key. A row without true gives NaN; see `open_empty_rows`.

        The attention's weights [B, M, Q, T] before dropout are appended to `weights`, if it is given.
        """

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        q_BMQE, k_BMTE, v_BMTE = heads(self.q_proj(q_BQD)), heads(self.k_proj(k_BTD)), heads(self.v_proj(v_BTD))
        dropout = self.dropout if self.training else 0.0
        if weights is None:
            out_BMQE = F.scaled_dot_product_attention(
                q_BMQE, k_BMTE, v_BMTE, attn_mask=may_attend_B1QT, dropout_p=dropout
            )
        else:
            assert may_attend_B1QT is None, "weights are given for self-attention only"
            weights.append((q_BMQE * q_BMQE.shape[-1] ** -0.5 @ k_BMTE.transpose(2, 3)).softmax(-1))
            out_BMQE = F.dropout(weights[-1], dropout) @ v_BMTE
        return self.out_proj(out_BMQE.transpose(1, 2).flatten(2))


def open_empty_rows(may_attend_BQS: Tensor) -> Tensor:
    """Let a query read all cells if it could read none, as in the original."""
    return may_attend_BQS | ~may_attend_BQS.any(dim=-1, keepdim=True)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and a feed-forward network, each residual.

    With `pre_norm`, the LayerNorm of each part comes before the part instead of after the sum. `dropout` applies, in
    training, to the weights of both attentions, between the linear layers and to what each part adds.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.dropout = nn.Dropout(dropout)
        self.cross_attention = Attention(dim, num_heads, dropout)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.fc1 = ActivatedLinear(dim, feedforward_dim, activation)
        self.fc2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x_BQD: Tensor,
        position_1QD: Tensor,
        keys_BSD: Tensor,
        values_BSD: Tensor,
        may_attend_BQS: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """keys_BSD: the tokens of one level with their positions; values_BSD: the tokens without positions.

        The weights of the self-attention are appended to `weights`, if it is given.
        """

        def read_image(y: Tensor) -> Tensor:
            return self.cross_attention(y + position_1QD, keys_BSD, values_BSD, may_attend_BQS.unsqueeze(1))

        def read_each_other(y: Tensor) -> Tensor:
            return self.self_attention(y + position_1QD, y + position_1QD, y, weights=weights)

        def feed_forward(y: Tensor) -> Tensor:
            return self.fc2(self.dropout(self.fc1(y)))

        x_BQD = self._add(x_BQD, read_image, self.cross_attention_norm)
        x_BQD = self._add(x_BQD, read_each_other, self.self_attention_norm)
        return self._add(x_BQD, feed_forward, self.feedforward_norm)

    def _add(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return x + self.dropout(part(norm(x))) if self.pre_norm else norm(x + self.dropout(part(x)))


class MaskEmbedder(nn.Module):
    """A query's state -> the vector whose product with the mask features is the query's mask. Three linear layers."""

    def __init__(self, dim: int, mask_feature_size: int) -> None:
        super().__init__()
        hidden = [ActivatedLinear(dim, dim, F.relu) for _ in range(2)]
        self.layers = nn.ModuleList([*hidden, nn.Linear(dim, mask_feature_size)])

    def forward(self, x_BQD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BQD = layer(x_BQD)
        return x_BQD


class TransformerDecoder(nn.Module):
    """The decoder. It predicts `num_layers + 1` times: before the first layer and after each one.

    Without `learned_start`, the states of the queries before the first layer are an input, not a parameter.
    """

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
        pre_norm: bool,
        enforce_input_projection: bool,
        learned_start: bool = True,
    ) -> None:
        super().__init__()
        self.query_features = nn.Parameter(standard_normal(num_queries, hidden_dim)) if learned_start else None
        self.query_positions = nn.Parameter(standard_normal(num_queries, hidden_dim))
        self.level_embed = nn.Parameter(standard_normal(NUM_LEVELS, hidden_dim))
        project = enforce_input_projection or feature_size != hidden_dim
        self.input_projections = nn.ModuleList(
            nn.Conv2d(feature_size, hidden_dim, kernel_size=1) if project else nn.Identity() for _ in range(NUM_LEVELS)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim, num_heads, feedforward_dim, activation, dropout, pre_norm)
            for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_dim)
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_feature_size)

    def forward(
        self,
        mask_features_BChw: Tensor,
        maps: Sequence[Tensor],
        every_prediction: bool = False,
        with_attention: bool = False,
        start_BQD: Tensor | None = None,
    ) -> list[QueryPrediction]:
        """The last prediction, or all predictions from first to last; `maps` are the pixel decoder's, coarse to fine.

        `with_attention`: predictions have their layer's `attention`; the prediction before the first layer has none.
        start_BQD: the states before the first layer, if the decoder has not learned them.

        Between layers, masks are needed only at the size of the level that the next layer reads. Bilinear resizing and
        the product with the query are both linear, so the mask features are resized once per level instead of every
        mask.
        """
        keys, values, mask_features_BCS = [], [], []
        for feature_map, project, level_embed in zip(maps, self.input_projections, self.level_embed, strict=True):
            height, width = feature_map.shape[2:]
            tokens_BSD = project(feature_map).flatten(2).transpose(1, 2) + level_embed
            position_1SD = sine_position_encoding(height, width, tokens_BSD.shape[2], tokens_BSD.device)
            values.append(tokens_BSD)
            keys.append(tokens_BSD + position_1SD)
            resized = F.interpolate(mask_features_BChw, size=(height, width), mode="bilinear", align_corners=False)
            # No gradient flows through the choice of attended cells.
            mask_features_BCS.append(resized.flatten(2).detach())

        batch = mask_features_BChw.shape[0]
        x_BQD = start_BQD if self.query_features is None else self.query_features.expand(batch, -1, -1)
        assert x_BQD is not None, "a decoder without a learned start gets one"
        position_1QD = self.query_positions.unsqueeze(0)
        states, queries = [x_BQD.transpose(0, 1)], [self.output_norm(x_BQD)]
        attentions: list[Tensor] | None = [] if with_attention else None
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            may_attend_BQS = self.attended_cells(queries[-1], mask_features_BCS[level])
            x_BQD = states[-1].transpose(0, 1)  # through the state as given out, so that a gradient reaches it
            x_BQD = layer(x_BQD, position_1QD, keys[level], values[level], may_attend_BQS, attentions)
            states.append(x_BQD.transpose(0, 1))
            queries.append(self.output_norm(x_BQD))
        wanted = slice(None) if every_prediction else slice(-1, None)
        of_predictions: list[Tensor | None] = [None, *(attentions if attentions else [None] * len(self.layers))]
        return [
            QueryPrediction(states_QBD, queries_BQD, self.predict_masks(queries_BQD, mask_features_BChw), attention)
            for states_QBD, queries_BQD, attention in zip(
                states[wanted], queries[wanted], of_predictions[wanted], strict=True
            )
        ]

    def predict_masks(self, queries_BQD: Tensor, mask_features_BChw: Tensor) -> Tensor:
        """Mask logits [B, Q, h, w] of normalised query states."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embedder(queries_BQD), mask_features_BChw)

    def attended_cells(self, queries_BQD: Tensor, mask_features_BCS: Tensor) -> Tensor:
        """Boolean [B, Q, S]: where the predicted mask is on (probability at least 0.5), or everywhere if nowhere."""
        logits_BQS = self.mask_embedder(queries_BQD.detach()) @ mask_features_BCS
        return open_empty_rows(logits_BQS >= 0)
