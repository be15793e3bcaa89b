"""Steps that the inference of every task shares: class scores, checks for finite masks, and enlarged masks.

Legend: B batch; Q queries; N queries of all images of a batch; C classes; h, w mask logits. Suffix 1 is "plus the
no-object class", which is the last column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m2f_core.inference.settings import FamilyRules
from m2f_core.masks.on_device import Arrays, Fetch, Parcel
from m2f_core.to_device import to_device


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


Result = TypeVar("Result")


@dataclass(frozen=True)
class Started(Generic[Result]):
    """A batch whose reduction is under way on its device.

    `queries`: for each image, those that may give a segment. `finish` takes the arrays of the batch's parcel and gives
    the result of each image; ValueError if logits are not finite.
    """

    queries: list[list[int]]
    finish: Callable[[Arrays], list[Result]]


def read_table(fetch: Fetch, rows: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
    """Small tensors, in one copy. The host waits, because the next steps depend on them."""
    parcel = Parcel()
    for row in rows:
        parcel.add(row)
    return parcel.send(fetch)()


def extremes(masks_BQhw: torch.Tensor) -> list[torch.Tensor]:
    """The lowest and the highest logit of each mask, [B, Q] each; one of them is not finite if any logit is not."""
    low_BQ, high_BQ = masks_BQhw.flatten(2).aminmax(dim=2)
    return [low_BQ, high_BQ]


def check_finite(scores: NDArray[np.float32], lows: NDArray[np.float32], highs: NDArray[np.float32]) -> None:
    """ValueError unless the scores and the extremes of the masks in use are finite."""
    if not np.isfinite(scores).all():
        raise ValueError("class logits are not finite")
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise ValueError("mask logits are not finite")


def places_of(queries: Sequence[Sequence[int]], num_queries: int, device: torch.device) -> torch.Tensor:
    """The places [N] of these queries of each image in the queries [B * Q] of the batch."""
    places = [image * num_queries + query for image, of_image in enumerate(queries) for query in of_image]
    return to_device(np.array(places, np.int64), device)


def bilinear(planes_BChw: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """The resizing of masks and scores in both the original and transformers."""
    return F.interpolate(planes_BChw, size=size_hw, mode="bilinear", align_corners=False)


def on_hf_grid(masks_khw: torch.Tensor, rules: FamilyRules) -> torch.Tensor:
    """Mask logits as hf mode reads them: [k, h, w] at the family's grid, or the same tensor if it has none."""
    return masks_khw if rules.hf_grid_hw is None else bilinear(masks_khw[None], rules.hf_grid_hw)[0]


def _shapes(pred_logits_QC1: torch.Tensor, pred_masks_Qhw: torch.Tensor) -> str:
    return f"class logits {tuple(pred_logits_QC1.shape)} and masks {tuple(pred_masks_Qhw.shape)}"
