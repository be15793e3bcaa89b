"""Instance and semantic inference in hf mode against transformers, pixel for pixel, over scenes and sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance, semantic
from m2f_core.inference.instance import instance_segments
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import MASK2FORMER_RULES, FamilyRules, InstanceSettings, SemanticSettings
from tests.support.decoder_scenes import NUM_CLASSES, decoder_outputs

torch.set_num_threads(1)

THEIRS = {MASK2FORMER_RULES: Mask2FormerImageProcessor(), FamilyRules(): MaskFormerImageProcessor()}
# The size of a photograph takes longest, and shows nothing that the others do not.
SIZES = [(384, 384), (97, 113), (500, 31), (1, 60), pytest.param((480, 640), marks=pytest.mark.thorough)]
SCENES = [(0, 20, 0.5), (1, 5, 5.0), (2, 1, 0.0), (3, 0, 0.5)]  # seed, confident queries, noise


def outputs_of(seed: int, num_kept: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    return decoder_outputs(seed, (56, 72), num_kept, 40, noise)


def their_form(logits: torch.Tensor, masks: torch.Tensor) -> Mask2FormerForUniversalSegmentationOutput:
    return Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=logits[None], masks_queries_logits=masks[None]
    )


def geometry_of(size: tuple[int, int]) -> ImageGeometry:
    """hf mode knows no padding: what the image went through does not matter."""
    return ImageGeometry(size, (224, 288), (224, 288))


@pytest.mark.parametrize("rules", THEIRS, ids=["grid", "no grid"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_semantic_map(scene: tuple[int, int, float], size: tuple[int, int], rules: FamilyRules) -> None:
    logits, masks = outputs_of(*scene)
    chosen = replace(SemanticSettings.defaults("hf"), rules=rules)
    found = semantic.to_hf(semantic_segments(logits, masks, geometry_of(size), chosen))
    [expected] = THEIRS[rules].post_process_semantic_segmentation(their_form(logits, masks), target_sizes=[size])
    assert torch.equal(found, expected)


def test_of_equal_scores_the_class_is_the_same_too() -> None:
    logits, masks = torch.zeros(3, 5), torch.ones(3, 8, 8)
    found = semantic.to_hf(semantic_segments(logits, masks, geometry_of((9, 9)), SemanticSettings.defaults("hf")))
    their_processor = THEIRS[MASK2FORMER_RULES]
    [expected] = their_processor.post_process_semantic_segmentation(their_form(logits, masks), target_sizes=[(9, 9)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rules", THEIRS, ids=["grid", "no grid"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, pytest.param(0.9, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_instances(scene: tuple[int, int, float], size: tuple[int, int], threshold: float, rules: FamilyRules) -> None:
    logits, masks = outputs_of(*scene)
    chosen = replace(InstanceSettings.defaults("hf"), score_threshold=threshold, rules=rules)
    result = instance_segments(logits, masks, geometry_of(size), chosen)
    for binary_maps in (False, True):
        found = instance.to_hf(result, return_binary_maps=binary_maps)
        [expected] = THEIRS[rules].post_process_instance_segmentation(
            their_form(logits, masks), threshold=threshold, target_sizes=[size], return_binary_maps=binary_maps
        )
        assert found["segments_info"] == expected["segments_info"]
        np.testing.assert_array_equal(np.asarray(found["segmentation"]), np.asarray(expected["segmentation"]))


def test_the_scenes_have_something_to_find() -> None:
    for seed, num_kept, noise in SCENES[:3]:
        logits, masks = outputs_of(seed, num_kept, noise)
        result = instance_segments(logits, masks, geometry_of((480, 640)), InstanceSettings.defaults("hf"))
        assert len(result.instances) >= min(num_kept, 3) and logits.shape[1] == NUM_CLASSES + 1
