"""Steps that the inference of every task shares: class scores, checks for finite masks, and enlarged masks.

Legend: Q queries; C classes; h, w mask logits. Suffix 1 is "plus the no-object class", which is the last column.
"""

import torch
import torch.nn.functional as F

HF_GRID_HW = (384, 384)  # transformers enlarges every mask to this size, whatever the size of the input


def all_scores(pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor) -> torch.Tensor:
    """Class probabilities [Q, C + 1] in float32, including "no object".

    ValueError if the two outputs do not belong to one image, or if the logits are not finite: half precision can break
    a decoder, and the next steps would hide this.
    """
    if pred_masks_Qhw.ndim != 3 or pred_logits_QC1.shape[:-1] != pred_masks_Qhw.shape[:1]:
        raise ValueError(f"{_shapes(pred_logits_QC1, pred_masks_Qhw)} disagree")
    scores_QC1 = pred_logits_QC1.detach().float().softmax(-1)
    if not scores_QC1.isfinite().all():
        raise ValueError("class logits are not finite")
    return scores_QC1


def class_scores(pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor) -> torch.Tensor:
    """Class probabilities [Q, C] in float32: softmax over all columns, then the "no object" column is dropped.

    ValueError as in `all_scores`, and if there is no query, no pixel or no class.
    """
    scores_QC1 = all_scores(pred_logits_QC1, pred_masks_Qhw)
    if pred_masks_Qhw.numel() == 0 or pred_logits_QC1.shape[-1] < 2:
        shapes = _shapes(pred_logits_QC1, pred_masks_Qhw)
        raise ValueError(f"{shapes} hold no query, no pixel or no class beside 'no object'")
    return scores_QC1[:, :-1]


def finite_masks(masks_Khw: torch.Tensor) -> torch.Tensor:
    """Mask logits in float32, contiguous, without gradient. ValueError if a logit is not finite."""
    masks_Khw = masks_Khw.detach().float().contiguous()
    # The sum is several times cheaper than the full check; a sum of finite numbers hardly ever overflows.
    if not masks_Khw.sum().isfinite() and not masks_Khw.isfinite().all():
        raise ValueError("mask logits are not finite")
    return masks_Khw


def bilinear(planes_BChw: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """The resizing of masks and scores in both the original and transformers."""
    return F.interpolate(planes_BChw, size=size_hw, mode="bilinear", align_corners=False)


def _shapes(pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor) -> str:
    return f"class logits {tuple(pred_logits_QC1.shape)} and masks {tuple(pred_masks_Qhw.shape)}"
