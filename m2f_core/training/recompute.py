"""Less memory for a training step: activations inside of blocks are computed again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). Also known as activation or gradient checkpointing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from m2f_core.model.contract import SegmentationModel


def recompute_activations(model: SegmentationModel) -> None:
    """From now on keep the input of each of `model.repeated_blocks()` alone until the backward pass, in training mode.

    Loss and gradients stay the same, bit for bit: random numbers are drawn again from the same state.
    """
    for block in model.repeated_blocks():
        block.forward = partial(_forward, block, block.forward)


def _forward(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not block.training or not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
