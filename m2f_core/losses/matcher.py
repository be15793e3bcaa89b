"""Match queries with targets: for each image, the assignment with the lowest cost.

Cheng et al., "Mask2Former" (2022), after Carion et al., "DETR" (2020), section 3.1; `mask2former/modeling/matcher.py`
of the original. The arithmetic equals `Mask2FormerHungarianMatcher` in transformers to the last bit.

Legend: B images, Q queries, K classes, N targets of one image, P points, h w cells of predicted masks, H W pixels of
targets' masks (may differ from image to image).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m2f_core.losses.points import Rand, read_at_same_points


class LossWeights(NamedTuple):
    """The weights of the three terms, both in the cost of a match and in the loss."""

    cross_entropy: float
    mask: float
    dice: float


class Match(NamedTuple):
    """The i-th of `queries` should find the i-th of `targets`; min(Q, N) pairs, on the device of the logits."""

    queries: Tensor  # int64
    targets: Tensor  # int64


@torch.no_grad()
def match_targets(
    class_logits_BQK1: Tensor,
    mask_logits_BQhw: Tensor,
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    weights: LossWeights,
    num_points: int,
    rand: Rand = torch.rand,
) -> list[Match]:
    """One match for each image. `mask_labels`: bool or float [N, H, W]; `class_labels`: int64 [N]; N may be 0.

    Costs are always computed in float32, whatever the types of autocast and logits: bfloat16 would make ties.
    """
    device = mask_logits_BQhw.device
    with torch.autocast(device.type, enabled=False):
        costs = [
            matching_cost(
                logits_QK1, masks_Qhw, masks_NHW, classes_N, weights, rand((1, num_points, 2), device=device)[0]
            )
            for logits_QK1, masks_Qhw, masks_NHW, classes_N in zip(
                class_logits_BQK1.float(), mask_logits_BQhw.float(), mask_labels, class_labels, strict=True
            )
        ]
    # Wait for the device only now, when the costs of all images are under way.
    return [cheapest(cost_QN) for cost_QN in costs]


def matching_cost(
    class_logits_QK1: Tensor,
    mask_logits_Qhw: Tensor,
    masks_NHW: Tensor,
    classes_N: Tensor,
    weights: LossWeights,
    points_P2: Tensor,
) -> Tensor:
    """Cost [Q, N] of each pair of query and target, all masks read at the same points."""
    assert masks_NHW.ndim == 3 and classes_N.shape == masks_NHW.shape[:1], "one mask and one class for each target"
    targets_NP = read_at_same_points(masks_NHW.to(mask_logits_Qhw), points_P2)
    logits_QP = read_at_same_points(mask_logits_Qhw, points_P2)
    # The error is 1 - p; the constant 1 does not change the assignment.
    class_cost_QN = -class_logits_QK1.softmax(-1)[:, classes_N]
    mask_cost_QN = pairwise_cross_entropy(logits_QP, targets_NP)
    dice_cost_QN = pairwise_dice(logits_QP, targets_NP)
    return weights.mask * mask_cost_QN + weights.cross_entropy * class_cost_QN + weights.dice * dice_cost_QN


def pairwise_cross_entropy(logits_QP: Tensor, targets_NP: Tensor) -> Tensor:
    """[Q, N]: binary cross-entropy of each pair, the mean over the points."""
    num_points = logits_QP.shape[1]
    where_on_QP = F.binary_cross_entropy_with_logits(logits_QP, torch.ones_like(logits_QP), reduction="none")
    where_off_QP = F.binary_cross_entropy_with_logits(logits_QP, torch.zeros_like(logits_QP), reduction="none")
    return (where_on_QP / num_points) @ targets_NP.T + (where_off_QP / num_points) @ (1 - targets_NP).T


def pairwise_dice(logits_QP: Tensor, targets_NP: Tensor) -> Tensor:
    """[Q, N]: dice loss of each pair."""
    on_QP = logits_QP.sigmoid()
    numerator_QN = 2 * (on_QP @ targets_NP.T)
    denominator_QN = on_QP.sum(-1)[:, None] + targets_NP.sum(-1)[None, :]
    return 1 - (numerator_QN + 1) / (denominator_QN + 1)


def cheapest(cost_QN: Tensor) -> Match:
    """Solve the assignment. A cost that is not finite (as from a diverged model) makes its pair the last choice."""
    from scipy.optimize import (
        linear_sum_assignment,
    )  # imported here, because it takes 0.4 s and inference does not need it

    greatest = torch.finfo(cost_QN.dtype).max
    cost_QN = cost_QN.nan_to_num(nan=greatest, posinf=greatest, neginf=greatest)
    queries, targets = linear_sum_assignment(cost_QN.cpu().numpy())
    return Match(*(torch.from_numpy(index).to(cost_QN.device) for index in (queries, targets)))
