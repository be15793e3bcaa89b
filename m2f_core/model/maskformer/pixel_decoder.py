"""Pixel decoder: four backbone features in, one fine map out, by a feature pyramid of convolutions.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (2021); Lin et al., "Feature
Pyramid Networks for Object Detection" (2017).

Legend: B batch, C channels, h w cells of a feature map.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.model.pixel_decoder import ConvNorm


class PyramidStep(nn.Module):
    """From one level of the pyramid to the next finer one."""

    def __init__(self, in_channels: int, feature_size: int) -> None:
        super().__init__()
        self.lateral = ConvNorm(in_channels, feature_size, kernel_size=1, bias=False)
        self.output = ConvNorm(feature_size, feature_size, kernel_size=3, bias=False)

    def forward(self, coarse_BChw: Tensor, feature_BChw: Tensor) -> Tensor:
        upsampled = F.interpolate(coarse_BChw, size=feature_BChw.shape[2:], mode="nearest")
        return F.relu(self.output(self.lateral(feature_BChw) + upsampled))


class PixelDecoder(nn.Module):
    """The pyramid. `in_channels` are the backbone's, highest resolution first; `steps` go from coarse to fine.

    The mask features are `mask_projection` of the result. It is a part of its own, because
    `MaskFormer.logits_at_once` joins it with the product that follows.
    """

    def __init__(self, in_channels: tuple[int, ...], feature_size: int, mask_feature_size: int) -> None:
        super().__init__()
        *finer_channels, coarsest_channels = in_channels
        self.stem = ConvNorm(coarsest_channels, feature_size, kernel_size=3, bias=False)
        self.steps = nn.ModuleList(PyramidStep(channels, feature_size) for channels in reversed(finer_channels))
        self.mask_projection = nn.Conv2d(feature_size, mask_feature_size, kernel_size=3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The backbone's four maps, highest resolution first -> the fine map, at the size of the first."""
        *finer, coarsest_BChw = features
        x_BChw = F.relu(self.stem(coarsest_BChw))
        for step, feature_BChw in zip(self.steps, reversed(finer), strict=True):
            x_BChw = step(x_BChw, feature_BChw)
        return x_BChw
