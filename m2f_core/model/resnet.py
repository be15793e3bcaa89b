"""ResNet, the other backbone: an image in, four feature maps out.

He et al., "Deep Residual Learning for Image Recognition" (2016), with bottleneck blocks (ResNet-50 and deeper) or basic
ones (ResNet-18, ResNet-34). As in detectron2, the batch norms are frozen: statistics, scale and shift come from a
checkpoint and do not change, even in training.

Legend: B batch, H W pixels of the image, h w cells of the feature map at hand, C channels of that map.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.config.backbones import BOTTLENECK_REDUCTION

BATCH_NORM_EPS = 1e-5  # the same in detectron2 and transformers, and not a field of their configurations


class FrozenBatchNorm(nn.Module):
    """Batch norm with given statistics. All values are buffers: optimizers do not see them, train() has no effect.

    `num_batches_tracked` is not used: transformers' files contain it, so it is loaded and saved unchanged.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x_BChw: Tensor) -> Tensor:
        return F.batch_norm(
            x_BChw, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=BATCH_NORM_EPS
        )


class ConvNorm(nn.Module):
    """A convolution without bias and its frozen batch norm; an odd kernel keeps the size, a stride divides it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.norm = FrozenBatchNorm(out_channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.norm(self.conv(x_BChw))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    same_shape = in_channels == out_channels and stride == 1
    return nn.Identity() if same_shape else ConvNorm(in_channels, out_channels, kernel_size=1, stride=stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; residual."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, kernel_size=3, stride=stride)
        self.second = ConvNorm(out_channels, out_channels, kernel_size=3)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.activation = activation

    @property
    def last(self) -> ConvNorm:
        """What the shortcut is added to."""
        return self.second

    def forward(self, x_BChw: Tensor) -> Tensor:
        y_BChw = self.second(F.relu(self.first(x_BChw)))
        return self.activation(y_BChw + self.shortcut(x_BChw))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, which reduce and restore the number of channels; residual."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        downsample_in_bottleneck: bool,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        thin = out_channels // BOTTLENECK_REDUCTION
        reduce_stride, spatial_stride = (stride, 1) if downsample_in_bottleneck else (1, stride)
        self.reduce = ConvNorm(in_channels, thin, kernel_size=1, stride=reduce_stride)
        self.spatial = ConvNorm(thin, thin, kernel_size=3, stride=spatial_stride)
        self.expand = ConvNorm(thin, out_channels, kernel_size=1)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.activation = activation

    @property
    def last(self) -> ConvNorm:
        """What the shortcut is added to."""
        return self.expand

    def forward(self, x_BChw: Tensor) -> Tensor:
        y_BChw = self.expand(F.relu(self.spatial(F.relu(self.reduce(x_BChw)))))
        return self.activation(y_BChw + self.shortcut(x_BChw))


def _stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, out_channels: int, depth: int, stride: int
) -> nn.Sequential:
    """A sequence of blocks; the first block changes the width and, by `stride`, the resolution."""
    others = (block(out_channels, out_channels, 1) for _ in range(depth - 1))
    return nn.Sequential(block(in_channels, out_channels, stride), *others)


class ResNet(nn.Module):
    """The backbone. Stage s (0 to 3) has `hidden_sizes[s]` channels at stride `4 * 2^s`."""

    def __init__(
        self,
        embedding_size: int,
        hidden_sizes: tuple[int, ...],
        depths: tuple[int, ...],
        layer_type: str,
        downsample_in_bottleneck: bool,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        """`layer_type`: "basic" or "bottleneck"; only the latter reads `downsample_in_bottleneck`."""
        super().__init__()
        self.activation = activation
        if layer_type == "basic":
            block: Callable[[int, int, int], nn.Module] = partial(BasicBlock, activation=activation)
        else:
            block = partial(Bottleneck, downsample_in_bottleneck=downsample_in_bottleneck, activation=activation)
        self.stem = ConvNorm(3, embedding_size, kernel_size=7, stride=2)
        widths = zip((embedding_size, *hidden_sizes), hidden_sizes, strict=False)
        self.stages = nn.ModuleList(
            _stage(block, in_channels, out_channels, depth, stride=2 if index else 1)
            for index, ((in_channels, out_channels), depth) in enumerate(zip(widths, depths, strict=True))
        )

    def forward(self, pixel_values_B3HW: Tensor) -> list[Tensor]:
        """Normalised RGB of any size -> maps [B, C, ceil(H/stride), ceil(W/stride)], highest resolution first."""
        x_BChw = self.activation(self.stem(pixel_values_B3HW))
        x_BChw = F.max_pool2d(x_BChw, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x_BChw = stage(x_BChw)
            features.append(x_BChw)
        return features
