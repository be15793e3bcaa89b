"""hf mode against transformers itself: the same map, pixel for pixel, and the same rows, on synthetic scenes."""

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers", reason="transformers is the oracle of hf mode")
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.panoptic import panoptic_segments, to_hf
from m2f_core.inference.settings import MASK2FORMER_RULES, FamilyRules, PanopticSettings
from tests.support.decoder_scenes import STUFF_CLASS_IDS, decoder_outputs

torch.set_num_threads(1)

SCENES = [
    (seed, mask_hw, num_kept, target_hw)
    for seed, (mask_hw, num_kept, target_hw) in enumerate(
        [
            ((96, 96), 1, (120, 160)),
            ((96, 96), 8, (384, 384)),
            ((96, 96), 20, (480, 640)),
            ((128, 176), 20, (480, 640)),
            ((128, 176), 40, (427, 640)),
            ((176, 128), 30, (640, 427)),
            ((64, 64), 12, (33, 57)),
            ((64, 64), 60, (500, 333)),
            ((200, 272), 25, (200, 300)),
            ((8, 8), 5, (1, 1)),
            ((24, 40), 90, (700, 500)),
            *(((96, 128), num_kept, (240, 320)) for num_kept in (2, 5, 10, 15, 20, 25, 30, 40, 60, 80)),
        ]
    )
]
THOROUGH = [scene for scene in SCENES if scene[3] in ((480, 640), (700, 500), (500, 333)) or 10 <= scene[2] < 40]


def theirs(
    logits: torch.Tensor, masks: torch.Tensor, chosen: PanopticSettings, target_hw: tuple[int, int]
) -> dict[str, Any]:
    outputs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None].clone())
    processor = Mask2FormerImageProcessorPil() if chosen.rules.hf_grid_hw else MaskFormerImageProcessorPil()
    (result,) = processor.post_process_panoptic_segmentation(
        outputs,
        threshold=chosen.score_threshold,
        mask_threshold=chosen.mask_threshold,
        overlap_mask_area_threshold=chosen.overlap_threshold,
        label_ids_to_fuse=set(chosen.fuse_class_ids),
        target_sizes=[target_hw],
    )
    return result


def assert_equal(
    logits: torch.Tensor, masks: torch.Tensor, chosen: PanopticSettings, target_hw: tuple[int, int]
) -> dict[str, Any]:
    padded_hw = (4 * masks.shape[1], 4 * masks.shape[2])
    # The resized size is not used in this mode, which is the point: transformers does not cut off padding.
    geometry = ImageGeometry(target_hw, (padded_hw[0] - 3, padded_hw[1] - 5), padded_hw)
    ours = to_hf(panoptic_segments(logits, masks, geometry, chosen), chosen)
    expected = theirs(logits, masks, chosen, target_hw)
    assert ours["segmentation"].dtype == expected["segmentation"].dtype
    assert torch.equal(ours["segmentation"], expected["segmentation"])
    assert ours["segments_info"] == expected["segments_info"]
    return expected


@pytest.mark.parametrize("rules", [MASK2FORMER_RULES, FamilyRules()], ids=["grid", "no grid"])
@pytest.mark.parametrize("fuse", [frozenset(), STUFF_CLASS_IDS], ids=["apart", "fused"])
@pytest.mark.parametrize(
    ("seed", "mask_hw", "num_kept", "target_hw"),
    [pytest.param(*scene, marks=[pytest.mark.thorough] if scene in THOROUGH else []) for scene in SCENES],
)
def test_map_and_rows_are_equal(
    seed: int,
    mask_hw: tuple[int, int],
    num_kept: int,
    target_hw: tuple[int, int],
    fuse: frozenset[int],
    rules: FamilyRules,
) -> None:
    logits, masks = decoder_outputs(seed, mask_hw, num_kept)
    assert_equal(logits, masks, replace(PanopticSettings.defaults("hf", fuse), rules=rules), target_hw)


@pytest.mark.parametrize(("score", "overlap", "mask"), [(0.0, 0.8, 0.5), (0.9, 0.0, 0.3), (0.5, 1.0, 0.5)])
def test_thresholds_act_alike(score: float, overlap: float, mask: float) -> None:
    logits, masks = decoder_outputs(50, (96, 128), 20)
    assert_equal(logits, masks, PanopticSettings("hf", score, overlap, mask, STUFF_CLASS_IDS), (240, 320))


def test_fused_ids_are_used_again_as_transformers_does() -> None:
    """The quirk of issue 23461 is in the scenes above: one id, several classes."""
    logits, masks = decoder_outputs(4, (128, 176), 40)
    expected = assert_equal(logits, masks, PanopticSettings.defaults("hf", STUFF_CLASS_IDS), (427, 640))
    pairs = {(row["id"], row["label_id"]) for row in expected["segments_info"]}
    assert len(pairs) > len({segment_id for segment_id, _ in pairs})


def test_the_overlap_ratio_is_a_float32() -> None:
    """A query that wins exactly 4/5 of its mask is kept, because 0.8 as a float32 is above 0.8."""
    logits = torch.zeros(2, 134)
    logits[0, 1], logits[1, 2] = 12.0, 10.0
    masks = torch.full((2, 384, 384), -10.0)
    masks[0, :, 192:] = 10.0
    masks[1, :, :240] = 10.0
    expected = assert_equal(logits, masks, PanopticSettings.defaults("hf"), (384, 384))
    assert [row["label_id"] for row in expected["segments_info"]] == [1, 2]


def test_nothing_found() -> None:
    """No query kept: a float map of -1. Queries kept but none large enough: an int map of 0."""
    chosen = PanopticSettings.defaults("hf", STUFF_CLASS_IDS)
    logits, masks = decoder_outputs(0, (32, 32), 0)
    assert assert_equal(logits, masks, chosen, (50, 60))["segmentation"].dtype == torch.float32
    logits, masks = decoder_outputs(0, (32, 32), 10)
    assert not assert_equal(logits, masks.clamp(max=-5), chosen, (50, 60))["segmentation"].any()
