"""Initial values of parameters that are no layer's weights."""

import torch
from torch import Tensor


def standard_normal(*size: int) -> Tensor:
    """torch.randn. On the meta device, where `Checkpoint` builds models without values, nothing is drawn.

    There PyTorch would load SymPy for it: 0.4 to 1.4 s at the start of each process that loads a checkpoint.
    """
    values = torch.empty(*size)
    return values if values.is_meta else values.normal_()
