"""The loss of MaskFormer: masks are compared at every pixel, by focal loss and dice loss.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (2021), section 3; Lin et al.,
"Focal Loss for Dense Object Detection" (2017); `mask_former/modeling/criterion.py` and `matcher.py` of the original.

Legend: B images, Q queries, K classes, N targets or matched pairs of one image, S cells of a predicted mask, P pixels,
h w cells of predicted masks, H W pixels of targets' masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m2f_core.losses.loss import SetCriterion, dice
from m2f_core.losses.matcher import LossWeights, Match, cheapest, pairwise_dice

FOCAL_ALPHA = 0.25  # the weight of pixels inside of a mask; that of the others is 1 minus this
FOCAL_GAMMA = 2.0  # how much less the pixels count that are right already


@dataclass(frozen=True)
class FullMaskCriterion(SetCriterion):
    """Targets are matched at the size of the predicted masks; losses are computed at the targets' own size."""

    @torch.no_grad()
    def match(
        self,
        class_logits_BQK1: Tensor,
        mask_logits_BQhw: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> list[Match]:
        """One match for each image. Costs are computed in float32; the class's cost has weight 1, as in the sources."""
        with torch.autocast(mask_logits_BQhw.device.type, enabled=False):
            costs = [
                matching_cost(logits_QK1, masks_Qhw, masks_NHW, classes_N, self.weights)
                for logits_QK1, masks_Qhw, masks_NHW, classes_N in zip(
                    class_logits_BQK1.float(), mask_logits_BQhw.float(), mask_labels, class_labels, strict=True
                )
            ]
        # Wait for the device only now, when the costs of all images are under way.
        return [cheapest(cost_QN) for cost_QN in costs]

    def mask_losses(
        self, mask_logits_BQhw: Tensor, padded_masks: Sequence[Tensor], matches: Sequence[Match], num_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Focal loss, the mean over a mask's pixels, and dice loss; both summed over the masks."""
        focal_losses, dice_losses = [], []
        for masks_Qhw, masks_NHW, match in zip(mask_logits_BQhw, padded_masks, matches, strict=True):
            logits_NP = _enlarged(masks_Qhw[match.queries], masks_NHW.shape[1:]).flatten(1)
            wanted_NP = masks_NHW[match.targets].to(logits_NP).flatten(1)
            focal_losses.append(focal(logits_NP, wanted_NP).mean(1).sum())
            dice_losses.append(dice(logits_NP, wanted_NP, num_masks))
        return torch.stack(focal_losses).sum() / num_masks, torch.stack(dice_losses).sum()


def matching_cost(
    class_logits_QK1: Tensor, mask_logits_Qhw: Tensor, masks_NHW: Tensor, classes_N: Tensor, weights: LossWeights
) -> Tensor:
    """Cost [Q, N] of each pair of query and target; masks of targets are read by nearest neighbour."""
    assert masks_NHW.ndim == 3 and classes_N.shape == masks_NHW.shape[:1], "one mask and one class for each target"
    height, width = mask_logits_Qhw.shape[1:]
    targets_NS = mask_logits_Qhw.new_empty(0, height * width)
    if len(masks_NHW):  # PyTorch does not resize none
        shrunk_N1hw = F.interpolate(masks_NHW[:, None].to(mask_logits_Qhw), size=(height, width), mode="nearest")
        targets_NS = shrunk_N1hw.flatten(1)
    logits_QS = mask_logits_Qhw.flatten(1)
    # The error is 1 - p; the constant 1 does not change the assignment.
    class_cost_QN = -class_logits_QK1.softmax(-1)[:, classes_N]
    mask_cost_QN = pairwise_focal(logits_QS, targets_NS)
    dice_cost_QN = pairwise_dice(logits_QS, targets_NS)
    return weights.mask * mask_cost_QN + class_cost_QN + weights.dice * dice_cost_QN


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """The focal loss of each pixel; `wanted` is 0 or 1."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    on = logits.sigmoid()
    right = on * wanted + (1 - on) * (1 - wanted)  # the probability of the truth
    weight = FOCAL_ALPHA * wanted + (1 - FOCAL_ALPHA) * (1 - wanted)
    return weight * cross_entropy * (1 - right) ** FOCAL_GAMMA


def pairwise_focal(logits_QS: Tensor, targets_NS: Tensor) -> Tensor:
    """[Q, N]: focal loss of each pair, the mean over the cells."""
    where_on_QS = focal(logits_QS, torch.ones_like(logits_QS))
    where_off_QS = focal(logits_QS, torch.zeros_like(logits_QS))
    return (where_on_QS @ targets_NS.T + where_off_QS @ (1 - targets_NS).T) / logits_QS.shape[1]


def _enlarged(logits_Nhw: Tensor, size_hw: torch.Size) -> Tensor:
    """[N, H, W]; N may be 0, for which PyTorch does not resize."""
    if not len(logits_Nhw):
        return logits_Nhw.new_zeros(0, *size_hw) + logits_Nhw.sum()
    return F.interpolate(logits_Nhw[:, None], size=tuple(size_hw), mode="bilinear", align_corners=False)[:, 0]
