"""What instance and semantic inference read from the decoder: class scores, and masks that are finite.

Legend: Q queries; C classes; h, w mask logits. Suffix 1 is "plus the no-object class", which is the last column.
"""

import torch


def class_scores(pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor) -> torch.Tensor:
    """Class probabilities [Q, C] in float32: softmax over all columns, then without that of "no object".

    ValueError if the two outputs are not of one image with at least one query and one class, or if they are not finite:
    half precision can break a decoder, and what follows would hide it.
    """
    shapes = f"class logits {tuple(pred_logits_QC1.shape)} and masks {tuple(pred_masks_Qhw.shape)}"
    if pred_masks_Qhw.ndim != 3 or pred_logits_QC1.shape[:-1] != pred_masks_Qhw.shape[:1]:
        raise ValueError(f"{shapes} disagree")
    if pred_masks_Qhw.numel() == 0 or pred_logits_QC1.shape[-1] < 2:
        raise ValueError(f"{shapes} hold no query, no pixel or no class beside 'no object'")
    scores_QC1 = pred_logits_QC1.detach().float().softmax(-1)
    if not scores_QC1.isfinite().all():
        raise ValueError("class logits are not finite")
    return scores_QC1[:, :-1]


def finite_masks(masks_Khw: torch.Tensor) -> torch.Tensor:
    """Mask logits in float32, contiguous, without a gradient. ValueError if one is not finite."""
    masks_Khw = masks_Khw.detach().float().contiguous()
    # The sum of finite numbers may overflow, but hardly ever does, and is several times cheaper than the full check.
    if not masks_Khw.sum().isfinite() and not masks_Khw.isfinite().all():
        raise ValueError("mask logits are not finite")
    return masks_Khw
