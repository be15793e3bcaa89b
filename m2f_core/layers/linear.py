"""Linear layers with an activation, with their own precision, or with weights laid out for the CPU.

torch multiplies float32 matrices with MKL, which on some processors has half the speed of oneDNN with weights in its
own layout. To convert the layout at each call would cost as much as this gains, so the weights are converted once,
when the model is loaded. This is for inference: a packed layer has no gradient, and its model cannot be saved.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.layers import mkldnn

# Activations that oneDNN computes while the result is in its registers: name of the activation and of its formula.
FUSED: dict[Any, tuple[str, str]] = {None: ("none", ""), F.relu: ("relu", ""), F.gelu: ("gelu", "none")}


class ActivatedLinear(nn.Linear):
    """A linear layer and an activation."""

    def __init__(
        self, in_features: int, out_features: int, activation: Callable[[Tensor], Tensor], bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


class Float32Linear(nn.Linear):
    """A linear layer that always computes in float32, even under autocast and with weights of another type."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class PackedLinear(nn.Module):
    """`linear` (or a convolution of 1x1), computed in `dtype` for any input type; the result has that type."""

    def __init__(self, linear: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        activation = getattr(linear, "activation", None)
        self._activation, self._formula = FUSED.get(activation, FUSED[None])
        self._afterwards = None if activation in FUSED else activation  # one that oneDNN does not compute
        # Plain attributes, because opaque tensors cannot be moved, compared or saved like parameters.
        weight = linear.weight.detach().flatten(1).to(dtype)
        self._weight: Any = mkldnn.lay_out_weight(weight)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y = mkldnn.linear(x.to(self.dtype), self._weight, self._bias, self._activation, self._formula)
        return y if self._afterwards is None else self._afterwards(y)


class PackedPointwise(PackedLinear):
    """A 1x1 convolution computed as a linear layer: [B, C, h, w] in and out, with channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pack_linear_layers(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replace every linear layer of `model` in place. Does nothing if torch was built without oneDNN.

    The gain is not timed first: if timing decided, two workers could choose differently and differ in the last bits.
    """
    for module, name, child in _children(model):
        if isinstance(child, nn.Linear):
            own = torch.float32 if isinstance(child, Float32Linear) else dtype
            setattr(module, name, PackedLinear(child, own))
    return model


def pack_pointwise_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same for 1x1 convolutions. This is faster if maps have their channels last in memory."""
    for module, name, child in _children(model):
        if isinstance(child, nn.Conv2d) and child.kernel_size == child.stride == (1, 1):
            setattr(module, name, PackedPointwise(child, dtype))
    return model


def convert_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert, in place, the weights that autocast would convert to `dtype` in every forward pass: the same results.

    Autocast keeps converted weights for the next pass only in training.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Float32Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return model


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(module, name, child) of everything below `model`; empty if torch cannot pack layers."""
    if not torch.backends.mkldnn.is_available():
        return []
    return [(module, name, child) for module in model.modules() for name, child in module.named_children()]
