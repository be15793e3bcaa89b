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
