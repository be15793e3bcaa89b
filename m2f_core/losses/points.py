"""Random points: the loss compares masks at these points instead of at every pixel.

Masks are read by bilinear interpolation, so prediction and truth may differ in resolution. Kirillov et al., "PointRend"
(2020), section 3.2; Cheng et al., "Mask2Former" (2022), section 3.2.2. The arithmetic and the order of the random
numbers equal `Mask2FormerLoss` in transformers, so that equal seeds give equal losses.

Legend: M masks, P points, O oversampled points, U uncertain points, h w cells of a mask. A point is (x, y) in [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Rand = Callable[..., Tensor]  # called as torch.rand: rand((M, P, 2), device=device), uniform in [0, 1)


def read_at_own_points(masks_Mhw: Tensor, points_MP2: Tensor) -> Tensor:
    """[M, P]: each mask at its own points. Beyond the centres of the outermost cells, values fade to zero."""
    values_M1P1 = F.grid_sample(masks_Mhw.unsqueeze(1), _grid(points_MP2).unsqueeze(2), align_corners=False)
    return values_M1P1[:, 0, :, 0]


def read_at_same_points(masks_Mhw: Tensor, points_P2: Tensor) -> Tensor:
    """[M, P]: all masks at the same points. The masks are channels of one image, so the cells are found only once."""
    values_1MP1 = F.grid_sample(masks_Mhw.unsqueeze(0), _grid(points_P2)[None, :, None], align_corners=False)
    return values_1MP1[0, :, :, 0]


@torch.no_grad()
def draw_uncertain_points(
    logits_Mhw: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float, rand: Rand
) -> Tensor:
    """Points [M, P, 2] that lie mostly where a mask is uncertain (its logit is near 0).

    First `oversample_ratio` times as many uniform points are drawn, and the most uncertain ones are kept as a share
    `importance_sample_ratio` of all points; the other points are new uniform ones.
    """
    num_masks, device = len(logits_Mhw), logits_Mhw.device
    num_uncertain = int(importance_sample_ratio * num_points)
    points_MO2 = rand((num_masks, int(num_points * oversample_ratio), 2), device=device)
    certainty_MO = read_at_own_points(logits_Mhw, points_MO2).abs()
    # Negated, because `largest=False` might order ties differently from transformers.
    chosen_MU = (-certainty_MO).topk(num_uncertain, dim=1).indices
    points_MU2 = points_MO2.gather(1, chosen_MU.unsqueeze(2).expand(-1, -1, 2))
    if num_uncertain == num_points:
        return points_MU2
    return torch.cat([points_MU2, rand((num_masks, num_points - num_uncertain, 2), device=device)], dim=1)


def _grid(points: Tensor) -> Tensor:
    """Convert to the coordinates of `F.grid_sample`, which go from -1 to 1."""
    return 2.0 * points - 1.0
