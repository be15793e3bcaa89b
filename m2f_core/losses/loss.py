"""The loss: match queries with targets, then compare classes and masks of the matched pairs.

`SetCriterion` is what all families share; `Criterion` compares masks at random points: Cheng et al., "Mask2Former"
(2022), section 3.2; `mask2former/modeling/criterion.py` of the original. On one worker its losses and their gradients
equal `Mask2FormerLoss` in transformers to the last bit at equal seeds.

Legend: B images, Q queries, K classes, N targets of one image, M matched pairs of all images, P points, h w cells of
predicted masks, H W pixels of targets' masks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m2f_core.losses.matcher import LossWeights, Match, match_targets
from m2f_core.losses.points import Rand, draw_uncertain_points, read_at_own_points


class _Normalizers(NamedTuple):
    """The divisors for sums of losses; scalars, float32."""

    num_masks: Tensor  # targets of all images, at least 1; with several workers, the mean over the workers
    class_weights: Tensor | None  # summed weights of all queries, mean over workers; None: this worker's sum


class _Truth(NamedTuple):
    """The targets of a batch, one entry for each image."""

    mask_labels: Sequence[Tensor]  # [N, H, W] as given: matching reads these, as in transformers
    padded_masks: Sequence[Tensor]  # padded to one size: the losses read these
    class_labels: Sequence[Tensor]  # [N]


@dataclass(frozen=True)
class SetCriterion(ABC):
    """Set prediction loss with deep supervision: targets are matched anew with every prediction of the decoder.

    `no_object_weight` is the weight of "no object" in the cross-entropy; every class has weight 1. `earlier_first`:
    earlier predictions are matched and compared before the last one, which matters for random numbers alone.
    """

    weights: LossWeights
    no_object_weight: float
    earlier_first: bool = field(default=False, kw_only=True)

    @abstractmethod
    def match(
        self,
        class_logits_BQK1: Tensor,
        mask_logits_BQhw: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> list[Match]:
        """One match for each image."""

    @abstractmethod
    def mask_losses(
        self, mask_logits_BQhw: Tensor, padded_masks: Sequence[Tensor], matches: Sequence[Match], num_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of single pixels and the dice loss of the matched pairs, divided by `num_masks`."""

    def __call__(
        self,
        class_queries_logits: Tensor,
        masks_queries_logits: Tensor,
        auxiliary_predictions: Sequence[Mapping[str, Tensor]],
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Weighted losses, named as in transformers; the loss is their sum.

        class_queries_logits: [B, Q, K+1], masks_queries_logits: [B, Q, h, w] of the last prediction. Earlier ones are
        `auxiliary_predictions`, with these two names as keys; their losses' names end in _0, _1, ... mask_labels:
        bool [N, H, W] for each image; class_labels: int64 [N]. Computed in float32, also under autocast. With several
        workers of torch.distributed, every worker must call this.
        """
        with torch.autocast(masks_queries_logits.device.type, enabled=False):
            truth = _Truth(mask_labels, _pad_to_largest(mask_labels), class_labels)
            normalizers = self._normalizers(class_queries_logits, class_labels)
            last = {"": {"class_queries_logits": class_queries_logits, "masks_queries_logits": masks_queries_logits}}
            earlier = {f"_{index}": prediction for index, prediction in enumerate(auxiliary_predictions)}
            losses: dict[str, Tensor] = {}
            for suffix, one in (earlier | last if self.earlier_first else last | earlier).items():
                class_logits_BQK1, mask_logits_BQhw = one["class_queries_logits"], one["masks_queries_logits"]
                of_one = self._losses(class_logits_BQK1.float(), mask_logits_BQhw.float(), truth, normalizers)
                losses |= {f"{name}{suffix}": loss for name, loss in of_one.items()}
            return losses

    def _losses(
        self, class_logits_BQK1: Tensor, mask_logits_BQhw: Tensor, truth: _Truth, normalizers: _Normalizers
    ) -> dict[str, Tensor]:
        """The losses of one prediction. Random numbers and sums have the same order as in transformers."""
        matches = self.match(class_logits_BQK1, mask_logits_BQhw, truth.mask_labels, truth.class_labels)
        mask_loss, dice_loss = self.mask_losses(mask_logits_BQhw, truth.padded_masks, matches, normalizers.num_masks)
        class_loss = self._class_loss(class_logits_BQK1, truth.class_labels, matches, normalizers.class_weights)
        return {
            "loss_mask": mask_loss * self.weights.mask,
            "loss_dice": dice_loss * self.weights.dice,
            "loss_cross_entropy": class_loss * self.weights.cross_entropy,
        }

    def _normalizers(self, class_logits_BQK1: Tensor, class_labels: Sequence[Tensor]) -> _Normalizers:
        """The divisors, which are the same for every prediction, because the number of matched queries is the same.

        With several workers, each with a share of the batch, the divisor is the sum over the whole batch divided by the
        number of workers: the mean of the workers' gradients is then the gradient of the whole batch's loss. The
        original does this for the masks only, with a quotient of at least 1.
        """
        batch, num_queries, _ = class_logits_BQK1.shape
        device = class_logits_BQK1.device
        num_masks = sum(map(len, class_labels))
        num_workers = torch.distributed.get_world_size() if is_distributed() else 1
        if num_workers == 1:
            return _Normalizers(torch.tensor(float(max(num_masks, 1)), device=device), None)
        num_matched = sum(min(num_queries, len(classes)) for classes in class_labels)
        class_weights = num_matched + self.no_object_weight * (batch * num_queries - num_matched)
        sums_2 = torch.tensor([num_masks, class_weights], dtype=torch.float32, device=device)
        torch.distributed.all_reduce(sums_2)
        num_masks_of_all, class_weights_of_all = sums_2
        # A sum of weights is 0 only if `no_object_weight` is 0 and the batch has no object; the loss is 0 as well then.
        class_weights_of_all = torch.where(class_weights_of_all == 0, 1.0, class_weights_of_all)
        return _Normalizers(num_masks_of_all.clamp(min=1) / num_workers, class_weights_of_all / num_workers)

    def _class_loss(
        self,
        class_logits_BQK1: Tensor,
        class_labels: Sequence[Tensor],
        matches: Sequence[Match],
        summed_weights: Tensor | None,
    ) -> Tensor:
        """Weighted cross-entropy of all queries; queries without a target should predict "no object"."""
        no_object = class_logits_BQK1.shape[-1] - 1
        wanted_BQ = torch.full(class_logits_BQK1.shape[:2], no_object, device=class_logits_BQK1.device)
        for wanted_Q, classes_N, match in zip(wanted_BQ, class_labels, matches, strict=True):
            wanted_Q[match.queries] = classes_N[match.targets]
        weights_K1 = torch.ones(no_object + 1, device=class_logits_BQK1.device)
        weights_K1[no_object] = self.no_object_weight
        logits_BK1Q = class_logits_BQK1.transpose(1, 2)
        if summed_weights is None and (self.no_object_weight or any(map(len, class_labels))):
            return F.cross_entropy(logits_BK1Q, wanted_BQ, weights_K1)
        sum_of_all = F.cross_entropy(logits_BK1Q, wanted_BQ, weights_K1, reduction="sum")
        # With `no_object_weight` 0, a batch without objects has no term: 0, where transformers computes 0 / 0.
        return sum_of_all if summed_weights is None else sum_of_all / summed_weights


@dataclass(frozen=True)
class Criterion(SetCriterion):
    """Every mask is compared at `num_points` points, see `m2f_core.losses.points`; `rand` draws all points."""

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float
    rand: Rand = torch.rand

    def match(
        self,
        class_logits_BQK1: Tensor,
        mask_logits_BQhw: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
    ) -> list[Match]:
        return match_targets(
            class_logits_BQK1, mask_logits_BQhw, mask_labels, class_labels, self.weights, self.num_points, self.rand
        )

    def mask_losses(
        self, mask_logits_BQhw: Tensor, padded_masks: Sequence[Tensor], matches: Sequence[Match], num_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of the matched pairs, at points that are drawn for each pair."""
        images_M = torch.cat([torch.full_like(match.queries, i) for i, match in enumerate(matches)])
        queries_M = torch.cat([match.queries for match in matches])
        logits_Mhw = mask_logits_BQhw[images_M, queries_M]
        points_MP2 = draw_uncertain_points(
            logits_Mhw, self.num_points, self.oversample_ratio, self.importance_sample_ratio, self.rand
        )
        # One image at a time: as floats, the masks of all images would be four times the size of the targets.
        points_of_images = points_MP2.split([len(match.targets) for match in matches])
        wanted_MP = torch.cat(
            [
                read_at_own_points(masks_NHW[match.targets].to(logits_Mhw), points_NP2)
                for masks_NHW, match, points_NP2 in zip(padded_masks, matches, points_of_images, strict=True)
            ]
        )
        logits_MP = read_at_own_points(logits_Mhw, points_MP2)
        return mean_cross_entropy(logits_MP, wanted_MP, num_masks), dice(logits_MP, wanted_MP, num_masks)


def mean_cross_entropy(logits_MP: Tensor, wanted_MP: Tensor, num_masks: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the points, summed over the masks, divided by `num_masks`."""
    return F.binary_cross_entropy_with_logits(logits_MP, wanted_MP, reduction="none").mean(1).sum() / num_masks


def dice(logits_MP: Tensor, wanted_MP: Tensor, num_masks: Tensor) -> Tensor:
    """1 - (2 |A and B| + 1) / (|A| + |B| + 1) with soft masks, summed over the masks, divided by `num_masks`."""
    on_MP = logits_MP.sigmoid()
    numerator_M = 2 * (on_MP * wanted_MP).sum(-1)
    denominator_M = on_MP.sum(-1) + wanted_MP.sum(-1)
    return (1 - (numerator_M + 1) / (denominator_M + 1)).sum() / num_masks


def _pad_to_largest(mask_labels: Sequence[Tensor]) -> list[Tensor]:
    """Pad masks to one size with zeros at the right and the bottom; masks of that size are not copied."""
    height, width = (max(masks.shape[axis] for masks in mask_labels) for axis in (1, 2))
    missing = [(width - masks.shape[2], height - masks.shape[1]) for masks in mask_labels]
    return [
        F.pad(masks, (0, right, 0, bottom)) if right or bottom else masks
        for masks, (right, bottom) in zip(mask_labels, missing, strict=True)
    ]


def is_distributed() -> bool:
    """Whether torch.distributed has a group of workers, of which this process is one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
