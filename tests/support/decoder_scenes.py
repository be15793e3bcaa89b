"""Decoder outputs as a trained Mask2Former makes them, from a seed: for tests and benchmarks of post-processing.

Legend: Q queries, K confident ones; C classes; h, w mask logits.
"""

import torch
import torch.nn.functional as F

NUM_CLASSES = 133
STUFF_CLASS_IDS = frozenset(range(80, NUM_CLASSES))  # COCO panoptic: 80 things first, then 53 stuff classes


def decoder_outputs(
    seed: int,
    mask_hw: tuple[int, int],
    num_kept: int = 20,
    num_queries: int = 100,
    noise: float = 0.5,
    num_doubtful: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits [Q, C + 1] and mask logits [Q, h, w] of one image.

    The confident queries divide the image into cells with wobbly borders; inside its cell a query's logit rises with
    the distance to the border, up to 12, and outside it falls likewise. So borders are contested, insides are not, and
    some queries lose most of their mask to others. Every second confident query is of one of four stuff classes. The
    other queries are "no object", with masks near -8; the class scores of the doubtful ones lie around the thresholds.
    """
    rng = torch.Generator().manual_seed(seed)
    h, w = mask_hw
    queries = torch.randperm(num_queries, generator=rng)

    class_logits_QC1 = torch.randn(num_queries, NUM_CLASSES + 1, generator=rng)
    class_logits_QC1[:, -1] += 7.0
    masks_Qhw = _smooth_noise(num_queries, (h, w), 16, rng) - 8.0
    if num_kept == 0:
        return class_logits_QC1, masks_Qhw

    kept_K, doubtful = queries[:num_kept], queries[num_kept : num_kept + num_doubtful]
    class_ids_K = torch.randint(0, 80, (num_kept,), generator=rng)
    class_ids_K[::2] = 80 + torch.randint(0, 4, ((num_kept + 1) // 2,), generator=rng)
    class_logits_QC1[kept_K, -1] -= 7.0
    class_logits_QC1[kept_K, class_ids_K] += 11.0 + 4.0 * torch.rand(num_kept, generator=rng)
    class_logits_QC1[doubtful, 5] += 7.0 + 3.0 * torch.rand(doubtful.numel(), generator=rng)

    # Distance to each cell's centre over the cell's size: the border between two cells is where these are equal.
    y = torch.linspace(0, 1, h)[:, None] + 0.03 * _smooth_noise(1, (h, w), 12, rng)
    x = torch.linspace(0, 1, w)[None, :] + 0.03 * _smooth_noise(1, (h, w), 12, rng)
    centres_K2 = torch.rand(num_kept, 2, generator=rng)
    sizes_K = 0.5 + 0.5 * torch.rand(num_kept, generator=rng)
    distances_Khw = torch.hypot(y - centres_K2[:, 0, None, None], x - centres_K2[:, 1, None, None])
    distances_Khw /= sizes_K[:, None, None]
    nearest = distances_Khw.topk(min(2, num_kept), dim=0, largest=False)
    is_nearest_Khw = nearest.indices[:1] == torch.arange(num_kept)[:, None, None]
    rival_Khw = torch.where(is_nearest_Khw, nearest.values[-1:], nearest.values[:1])
    if num_kept == 1:
        rival_Khw = torch.full_like(distances_Khw, 0.4)
    masks_Qhw[kept_K] = ((rival_Khw - distances_Khw) * 80).clamp(-12, 12) + 0.15
    masks_Qhw[kept_K] += noise * _smooth_noise(num_kept, (h, w), 8, rng)
    return class_logits_QC1, masks_Qhw


def _smooth_noise(num: int, size_hw: tuple[int, int], cell: int, rng: torch.Generator) -> torch.Tensor:
    """Normal noise [num, h, w] that varies over about `cell` pixels."""
    coarse_hw = (max(2, size_hw[0] // cell), max(2, size_hw[1] // cell))
    coarse = torch.randn(1, num, *coarse_hw, generator=rng)
    return F.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)[0]
