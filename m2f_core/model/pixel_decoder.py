"""Pixel decoder: four backbone features in, three refined maps and one fine map of mask features out.

Cheng et al., "Masked-attention Mask Transformer" (2022), the MSDeformAttn variant: the three coarse features become one
sequence of tokens that a deformable transformer encoder refines; the finest feature joins at the end, as in an FPN.

Legend: B batch, C channels, h w cells of a feature map, S tokens (cells of all three levels), Q as S.
Levels are ordered from coarse to fine (strides 32, 16, 8). Sizes are (height, width).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.config.mask2former import GROUP_NORM_GROUPS
from m2f_core.layers.deformable_attention import DeformableAttention, TokenPlaces
from m2f_core.layers.initial_values import standard_normal
from m2f_core.layers.linear import ActivatedLinear

NUM_LEVELS = 3  # in the deformable encoder and in the transformer decoder, which reads the encoder's output
NUM_POINTS = 4  # points that a query reads per head and level


def sine_position_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """The code of each cell's position: [1, height * width, channels] float32; first half of the channels y, then x.

    Sines and cosines of wavelengths from 1 to 10,000 turns, of positions scaled to (0, 2 pi] (as in DETR).
    """
    half = channels // 2
    y_hwC = axis_code(height, half, device)[:, None].expand(height, width, half)
    x_hwC = axis_code(width, half, device)[None].expand(height, width, half)
    return torch.cat((y_hwC, x_hwC), dim=-1).view(1, height * width, channels)


def axis_code(length: int, channels: int, device: torch.device) -> Tensor:
    """The half of `sine_position_encoding` that belongs to one axis: [length, channels] float32."""
    wavelength = 10000.0 ** (2 * torch.arange(channels // 2, device=device, dtype=torch.float32) / channels)
    position = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
    angle = position[:, None] / wavelength
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # sines and cosines alternate


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centre of each cell, row-major: [height * width, 2], (x, y) in [0, 1] of the image, float32."""
    y_h = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x_w = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack((x_w.expand(height, width), y_h[:, None].expand(height, width)), dim=-1).view(-1, 2)


class ConvNorm(nn.Module):
    """A convolution that keeps the size, followed by GroupNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.GroupNorm(GROUP_NORM_GROUPS, out_channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.norm(self.conv(x_BChw))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both residual and post-normalised.

    `dropout` applies, in training, between the linear layers and to what each part adds.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.attention = DeformableAttention(dim, num_heads, NUM_LEVELS, NUM_POINTS)
        self.attention_norm = nn.LayerNorm(dim)
        self.fc1 = ActivatedLinear(dim, feedforward_dim, F.relu)
        self.fc2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(self, x_BSC: Tensor, places: TokenPlaces) -> Tensor:
        x_BSC = self.attention_norm(x_BSC + self.dropout(self.attention(x_BSC, places)))
        return self.feedforward_norm(x_BSC + self.dropout(self.fc2(self.dropout(self.fc1(x_BSC)))))


class PixelDecoder(nn.Module):
    """The MSDeformAttn pixel decoder. `in_channels` are the backbone's, highest resolution first."""

    def __init__(
        self,
        in_channels: tuple[int, ...],
        feature_size: int,
        mask_feature_size: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        finest_channels, *level_channels = in_channels
        self.input_projections = nn.ModuleList(
            ConvNorm(channels, feature_size, kernel_size=1, bias=True) for channels in reversed(level_channels)
        )
        self.level_embed = nn.Parameter(standard_normal(NUM_LEVELS, feature_size))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(feature_size, num_heads, feedforward_dim, dropout) for _ in range(num_layers)
        )
        self.lateral = ConvNorm(finest_channels, feature_size, kernel_size=1, bias=False)
        self.output = ConvNorm(feature_size, feature_size, kernel_size=3, bias=False)
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """`features`: the backbone's four maps, highest resolution first.

        Returns the mask features at the finest resolution, and the refined maps from coarse to fine.
        """
        finest_BChw, *coarser = features
        projected = [project(x) for project, x in zip(self.input_projections, reversed(coarser), strict=True)]
        level_hw = [(x.shape[2], x.shape[3]) for x in projected]

        # One sequence of tokens from all levels; each token's code holds its position and its level
        tokens_BSC = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)
        places = self.token_places(level_hw, tokens_BSC.device)
        for layer in self.layers:
            tokens_BSC = layer(tokens_BSC, places)

        # Back to maps, then one step of a feature pyramid to the finest resolution
        levels = tokens_BSC.split([h * w for h, w in level_hw], dim=1)
        maps = [x.transpose(1, 2).unflatten(2, hw) for x, hw in zip(levels, level_hw, strict=True)]
        upsampled = F.interpolate(maps[-1], size=finest_BChw.shape[2:], mode="bilinear", align_corners=False)
        fine_BChw = F.relu(self.output(self.lateral(finest_BChw) + upsampled))
        return self.mask_projection(fine_BChw), maps

    def token_places(self, level_hw: Sequence[tuple[int, int]], device: torch.device) -> TokenPlaces:
        """The places of all tokens; the code holds position and level."""
        channels = self.level_embed.shape[1]
        codes = [sine_position_encoding(h, w, channels, device) for h, w in level_hw]
        centres = [cell_centres(h, w, device) for h, w in level_hw]
        return TokenPlaces(
            level_hw=level_hw,
            code=torch.cat([code + embed for code, embed in zip(codes, self.level_embed, strict=True)], dim=1),
            centre=torch.cat(centres),
            cell_size=torch.stack([2 * centre[0] for centre in centres]),  # made on the device: nothing is copied there
        )
