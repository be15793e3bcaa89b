"""Linear layers with something special: an activation, a precision of their own, weights laid out for the CPU.

torch multiplies float32 matrices with MKL, which on some processors reaches half of what oneDNN does with weights in a
layout of its own; laying them out anew at each call would cost what that gains. So it is done once, when the model is
loaded. For inference: a packed layer has no gradient, and its model no state dict to save.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers import mkldnn

# What oneDNN computes while the result is in its registers: its name and that of the formula.
_FUSED: dict[Any, tuple[str, str]] = {None: ("none", ""), F.relu: ("relu", ""), F.gelu: ("gelu", "none")}


class ActivatedLinear(nn.Linear):
    """A linear layer and an activation."""

    def __init__(self, in_features: int, out_features: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


class Float32Linear(nn.Linear):
    """A linear layer in float32, whatever autocast says and whatever type its weights have."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class PackedLinear(nn.Module):
    """`linear` (or a convolution of 1x1), computed in `dtype` whatever comes in; the result is of that type."""

    def __init__(self, linear: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._activation, self._formula = _FUSED[getattr(linear, "activation", None)]
        # Plain attributes: opaque tensors cannot be moved, compared or saved as parameters are.
        weight = linear.weight.detach().flatten(1).to(dtype)
        self._weight: Any = mkldnn.lay_out_weight(weight)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return mkldnn.linear(x.to(self.dtype), self._weight, self._bias, self._activation, self._formula)


class PackedPointwise(PackedLinear):
    """A convolution of 1x1 as the linear layer that it is: [B, C, h, w] in and out, its channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pack_linear_layers(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replace every linear layer of `model` in place. Does nothing where torch was built without oneDNN.

    It is not timed whether that pays: a choice by stopwatch would let two workers differ in the last bits.
    """
    for module, name, child in _children(model):
        if isinstance(child, nn.Linear):
            own = torch.float32 if isinstance(child, Float32Linear) else dtype
            setattr(module, name, PackedLinear(child, own))
    return model


def pack_pointwise_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same for convolutions of 1x1. It pays where maps come with their channels last in memory."""
    for module, name, child in _children(model):
        if isinstance(child, nn.Conv2d) and child.kernel_size == child.stride == (1, 1):
            setattr(module, name, PackedPointwise(child, dtype))
    return model


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(module, name, child) of all there are below `model`; none where there is nothing to pack them with."""
    if not torch.backends.mkldnn.is_available():
        return []
    return [(module, name, child) for module in model.modules() for name, child in module.named_children()]
