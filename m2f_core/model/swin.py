"""Swin Transformer, the backbone: an image in, four feature maps out.

Liu et al., "Swin Transformer" (2021), in the form that Mask2Former uses: windows are not shrunk for a small input,
features are taken before downsampling, and each output has its own LayerNorm.

Legend: B batch, H W cells of the feature map at hand (pixels for the image), C channels of that stage,
N = window_size^2 cells of a window, V windows of an image, M heads, D channels per head.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers.linear import ActivatedLinear

# Added to the attention logit of two cells that the cyclic shift puts into one window although they are not neighbours
# ("strangers"). Weights were trained with this value, not with -inf, so a cell may still attend to a stranger.
STRANGER_LOGIT = -100.0


def pad_to_multiple(x_BHWC: Tensor, multiple: int) -> Tensor:
    """Pad with zeros at the right and the bottom, so that H and W are multiples of `multiple`."""
    _, height, width, _ = x_BHWC.shape
    pad_bottom, pad_right = -height % multiple, -width % multiple
    return F.pad(x_BHWC, (0, 0, 0, pad_right, 0, pad_bottom)) if pad_bottom or pad_right else x_BHWC


def split_windows(x_BHWC: Tensor, size: int) -> Tensor:
    """[B, H, W, C] -> [B*V, N, C], windows of an image in row-major order. H and W are multiples of `size`."""
    batch, height, width, channels = x_BHWC.shape
    tiles = x_BHWC.reshape(batch, height // size, size, width // size, size, channels)
    return tiles.transpose(2, 3).reshape(-1, size * size, channels)


def join_windows(windows_XNC: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: [B*V, N, C] -> [B, height, width, C]."""
    channels = windows_XNC.shape[-1]
    tiles = windows_XNC.reshape(-1, height // size, width // size, size, size, channels)
    return tiles.transpose(2, 3).reshape(-1, height, width, channels)


def stranger_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Additive attention mask [V, 1, N, N] for the windows of a map that was rolled by `shift`.

    Rolling moves the first rows to the end, so the last window holds rows from both ends of the image. Rows and columns
    are numbered by the strip that they come from, and cells of different strips are strangers.
    """

    def strips(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - size).long() + (position >= length - shift).long()

    region_HW = strips(height)[:, None] * 3 + strips(width)[None, :]
    region_VN = split_windows(region_HW[None, :, :, None], size).squeeze(-1)
    strangers_VNN = region_VN[:, None, :] != region_VN[:, :, None]
    return (strangers_VNN * STRANGER_LOGIT).unsqueeze(1)


@cache
def _bias_index(window_size: int) -> NDArray[np.int64]:
    """[N, N]: the row of the table of biases for each pair of cells of a window. All blocks share its memory."""
    row, column = np.indices((window_size, window_size)).reshape(2, -1)
    row_step = row[:, None] - row[None, :] + window_size - 1
    column_step = column[:, None] - column[None, :] + window_size - 1
    return row_step * (2 * window_size - 1) + column_step


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias per relative position and head."""

    def __init__(self, dim: int, num_heads: int, window_size: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out_proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        # Of numpy, so that the index has values even in a model that is built on "meta".
        self.register_buffer("bias_index", torch.from_numpy(_bias_index(window_size)), persistent=False)
        self.bias_index: Tensor

    def forward(self, x_XNC: Tensor, mask_V1NN: Tensor | None) -> Tensor:
        """x_XNC: the windows of all images, [B*V, N, C]. mask_V1NN: see `stranger_mask`."""
        num_windows, cells, channels = x_XNC.shape
        qkv = self.qkv(x_XNC).view(num_windows, cells, 3, self.num_heads, channels // self.num_heads)
        q_XMND, k_XMND, v_XMND = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        bias = self.relative_position_bias_table[self.bias_index].permute(2, 0, 1).unsqueeze(0)  # [1, M, N, N]
        bias = (bias if mask_V1NN is None else bias + mask_V1NN).to(q_XMND.dtype)
        if mask_V1NN is not None:
            bias = bias.repeat(num_windows // mask_V1NN.shape[0], 1, 1, 1)  # the same for every image of the batch
        out_XMND = F.scaled_dot_product_attention(q_XMND, k_XMND, v_XMND, attn_mask=bias)
        return self.out_proj(out_XMND.transpose(1, 2).reshape(num_windows, cells, channels))


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden_dim: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = ActivatedLinear(dim, hidden_dim, activation)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, a branch is zero for a share `rate` of the images.

    Kept branches are scaled up, so that the mean over many draws equals the branch. Does nothing in eval mode.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BHWC: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch_BHWC
        keep = 1 - self.rate
        draw_B111 = torch.rand((len(branch_BHWC), 1, 1, 1), dtype=branch_BHWC.dtype, device=branch_BHWC.device)
        return branch_BHWC / keep * (draw_B111 + keep).floor()


class SwinBlock(nn.Module):
    """Window attention and a feed-forward network, both residual and pre-normalised.

    `drop_path_rate` applies to both, as in the original; transformers drops only the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        layer_norm_eps: float,
        drop_path_rate: float,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.attention_norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attention = WindowAttention(dim, num_heads, window_size, qkv_bias)
        self.mlp_norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = FeedForward(dim, int(mlp_ratio * dim), activation)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x_BHWC: Tensor, mask_V1NN: Tensor | None) -> Tensor:
        """mask_V1NN: the mask for this map's size; only a block with a shift needs it."""
        height, width = x_BHWC.shape[1:3]
        # Padding comes after the norm, so other cells attend to padding cells that are zero.
        y_BHWC = pad_to_multiple(self.attention_norm(x_BHWC), self.window_size)
        padded_height, padded_width = y_BHWC.shape[1:3]
        if self.shift:
            y_BHWC = y_BHWC.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = split_windows(y_BHWC, self.window_size)
        windows = self.attention(windows, mask_V1NN if self.shift else None)
        y_BHWC = join_windows(windows, self.window_size, padded_height, padded_width)
        if self.shift:
            y_BHWC = y_BHWC.roll((self.shift, self.shift), dims=(1, 2))
        x_BHWC = x_BHWC + self.drop_path(y_BHWC[:, :height, :width])
        return x_BHWC + self.drop_path(self.mlp(self.mlp_norm(x_BHWC)))


class PatchMerging(nn.Module):
    """Halve the resolution: four neighbours become one cell of twice the channels. Odd sizes are padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = pad_to_multiple(x_BHWC, 2)
        # Column by column, as the weights were trained: top left, bottom left, top right, bottom right.
        neighbours = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class PatchEmbedding(nn.Module):
    """Cut the image into patches and project each to `dim` channels. Zeros complete the patches at the border."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixel_values_B3HW: Tensor) -> Tensor:
        height, width = pixel_values_B3HW.shape[2:]
        padded = F.pad(pixel_values_B3HW, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.projection(padded).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks at one resolution, one for each of `drop_path_rates`; every second one sees windows shifted by half."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        layer_norm_eps: float,
        drop_path_rates: tuple[float, ...],
        activation: Callable[[Tensor], Tensor],
        downsample: bool,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.half_window = window_size // 2
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                num_heads,
                window_size,
                shift=self.half_window if index % 2 else 0,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                layer_norm_eps=layer_norm_eps,
                drop_path_rate=rate,
                activation=activation,
            )
            for index, rate in enumerate(drop_path_rates)
        )
        self.downsample = PatchMerging(dim) if downsample else nn.Identity()

    def forward(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The features of this stage, and the same features downsampled for the next stage."""
        mask_V1NN = None
        if self.half_window and len(self.blocks) > 1:
            # Made anew for every image and shared by the blocks, because sizes vary too much for a cache.
            height, width = (length + -length % self.window_size for length in x_BHWC.shape[1:3])
            mask_V1NN = stranger_mask(height, width, self.window_size, self.half_window, x_BHWC.device)
        for block in self.blocks:
            x_BHWC = block(x_BHWC, mask_V1NN)
        return x_BHWC, self.downsample(x_BHWC)


class SwinTransformer(nn.Module):
    """The backbone. Stage s has `embed_dim * 2^s` channels at stride `patch_size * 2^s`."""

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        patch_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        layer_norm_eps: float,
        drop_path_rate: float,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        num_stages = len(depths)
        last = max(sum(depths) - 1, 1)
        # Deeper blocks are dropped more often.
        rates = [drop_path_rate * index / last for index in range(sum(depths))]
        self.patch_embedding = PatchEmbedding(patch_size, embed_dim)
        self.stages = nn.ModuleList(
            SwinStage(
                embed_dim * 2**index,
                heads,
                window_size,
                mlp_ratio,
                qkv_bias,
                layer_norm_eps,
                tuple(rates[sum(depths[:index]) : sum(depths[: index + 1])]),
                activation,
                downsample=index < num_stages - 1,
            )
            for index, heads in enumerate(num_heads)
        )
        self.output_norms = nn.ModuleDict(
            {f"stage{index + 1}": nn.LayerNorm(embed_dim * 2**index) for index in range(num_stages)}
        )

    def forward(self, pixel_values_B3HW: Tensor) -> list[Tensor]:
        """Normalised RGB of any size -> maps [B, C, ceil(H/stride), ceil(W/stride)], highest resolution first."""
        features = []
        x_BHWC = self.patch_embedding(pixel_values_B3HW)
        for stage, output_norm in zip(self.stages, self.output_norms.values(), strict=True):
            features_BHWC, x_BHWC = stage(x_BHWC)
            features.append(output_norm(features_BHWC).permute(0, 3, 1, 2))
        return features
