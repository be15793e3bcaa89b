"""Layers whose products are of 8-bit numbers, for CPUs with instructions for them (VNNI).

A weight has a scale for each output and is rounded once. The input has one scale and one zero point, which are found
anew in each call: the result for an image depends on all that a layer gets, so a batch must hold one image.
"""

from typing import Any

import torch
from torch import Tensor, nn

from m2f_core.layers import mkldnn
from m2f_core.layers.linear import FUSED, Float32Linear
from m2f_core.layers.rounding_kernel import round_to_bytes

# With fewer channels on either side, rounding the input takes as long as the product gains (docs/decisions.md).
LEAST_WIDTH = 192
_USUAL_ROWS = 4096  # oneDNN chooses the layout of a weight by this


def _rounded_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in int8, and the scale of each output."""
    weight = weight.detach().float()
    scales = weight.flatten(1).abs().amax(1).clamp_(min=1e-30) / 127
    return (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round_().to(torch.int8), scales


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float()


class Int8Linear(nn.Module):
    """`linear` and its activation; the result is float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        activation = getattr(linear, "activation", None)
        self._activation, self._formula = FUSED.get(activation, FUSED[None])
        self._afterwards = None if activation in FUSED else activation
        # Plain attributes, because opaque tensors cannot be moved, compared or saved like parameters.
        rounded, self._scales = _rounded_weight(linear.weight)
        self._weight: Any = mkldnn.lay_out_int8_weight(rounded, _USUAL_ROWS)
        self._bias = _float32(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rounded = round_to_bytes(x.float().contiguous())
        y = mkldnn.int8_linear(
            *rounded, self._weight, self._scales, self._bias, activation=self._activation, formula=self._formula
        )
        return y if self._afterwards is None else self._afterwards(y)


class Int8Conv(nn.Module):
    """A convolution with stride 1; its maps have channels last in memory, whatever those of the input."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._padding = [int(length) for length in conv.padding]
        rounded, self._scales = _rounded_weight(conv.weight)
        self._weight: Any = mkldnn.lay_out_int8_kernel(rounded, self._scales, self._padding)
        self._bias = _float32(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h, w]."""
        rounded = round_to_bytes(x.float().contiguous(memory_format=torch.channels_last))
        return mkldnn.int8_conv(*rounded, self._weight, self._scales, self._bias, self._padding)


def round_to_int8(part: nn.Module) -> nn.Module:
    """Replace, in place, the linear layers and the convolutions of `part` that are wide enough to gain."""
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(child, Float32Linear):
                if min(child.in_features, child.out_features) >= LEAST_WIDTH:
                    setattr(module, name, Int8Linear(child))
            elif isinstance(child, nn.Conv2d) and _gains(child):
                setattr(module, name, Int8Conv(child))
    return part


def _gains(conv: nn.Conv2d) -> bool:
    is_plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and isinstance(conv.padding, tuple)
    return is_plain and conv.kernel_size != (1, 1) and min(conv.in_channels, conv.out_channels) >= LEAST_WIDTH
