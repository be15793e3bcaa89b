"""All private names of torch's oneDNN (MKL-DNN) operators that the layers use, written for torch 2.13.

torch offers these operators only to its own compiler. tests/test_private_names.py names those that a later version has
removed.
"""

import torch
from torch import Tensor


def lay_out_weight(weight: Tensor) -> Tensor:
    """`weight` [out, in] in oneDNN's layout for this CPU: an opaque tensor that only `linear` accepts."""
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return laid_out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, formula: str) -> Tensor:
    """A linear layer and its activation in one pass: "none", "relu", or "gelu" with its formula."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], formula)
    return out


def lay_out_int8_weight(weight: Tensor, num_rows: int) -> Tensor:
    """int8 `weight` [out, in] for products with about `num_rows` rows: an opaque tensor that `int8_linear` accepts."""
    laid_out: Tensor = torch.ops.onednn.qlinear_prepack(weight, [num_rows, weight.shape[1]])
    return laid_out


def lay_out_int8_kernel(weight: Tensor, weight_scales: Tensor, padding: list[int]) -> Tensor:
    """int8 `weight` [out, in, h, w] of a convolution with stride 1: an opaque tensor that `int8_conv` accepts."""
    # oneDNN asks for a scale and a zero point of the input, but its layout does not depend on the scale.
    ones = [1, 1]
    laid_out: Tensor = torch.ops.onednn.qconv_prepack(weight, weight_scales, 1.0, 128, ones, padding, ones, 1, None)
    return laid_out


def int8_linear(
    x: Tensor,
    scale: float,
    zero_point: int,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    activation: str,
    formula: str,
) -> Tensor:
    """`linear` of the numbers that uint8 `x` [..., in] and the int8 weight stand for; the result is float32.

    A number is (value - zero_point) * scale; row i of the weight has the scale `weight_scales[i]` and no zero point.
    """
    no_points = torch.zeros(len(weight_scales), dtype=torch.int32)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(x, scale, zero_point, weight, weight_scales, no_points, bias),
        *(1.0, 0, torch.float32, activation, [], formula),
    )
    return out


def int8_conv(
    x: Tensor,
    scale: float,
    zero_point: int,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    padding: list[int],
) -> Tensor:
    """A convolution with stride 1 of uint8 `x` [B, in, h, w], channels last in memory, as `int8_linear`."""
    no_points, ones = torch.zeros(len(weight_scales), dtype=torch.int32), [1, 1]
    out: Tensor = torch.ops.onednn.qconv2d_pointwise(
        *(x, scale, zero_point, weight, weight_scales, no_points, bias),
        *(ones, padding, ones, 1, 1.0, 0, torch.float32, "none", [], ""),
    )
    return out
