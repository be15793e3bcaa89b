"""The documented post-processing of a batch gives what transformers gives, in every pixel and row."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2f_core import Mask2FormerImageProcessor
from m2f_core.hf.outputs import Mask2FormerForUniversalSegmentationOutput
from tests.support.decoder_scenes import NUM_CLASSES, decoder_outputs

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
)

torch.set_num_threads(1)

OURS, THEIRS = Mask2FormerImageProcessor(), Mask2FormerImageProcessorPil()
SIZES = [[(120, 160), (97, 31)], None]


@pytest.fixture(scope="module")
def outputs() -> Mask2FormerForUniversalSegmentationOutput:
    """A batch of two: a scene with many segments, and one in which nothing is found."""
    scenes = [decoder_outputs(seed, (56, 72), num_kept, 40, 0.5) for seed, num_kept in ((0, 20), (3, 0))]
    logits, masks = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    return Mask2FormerForUniversalSegmentationOutput(class_queries_logits=logits, masks_queries_logits=masks)


def assert_same_results(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine["segments_info"] == expected["segments_info"]
        if isinstance(expected["segmentation"], list):
            assert mine["segmentation"] == [list(map(int, run)) for run in expected["segmentation"]]
        else:
            assert mine["segmentation"].dtype == expected["segmentation"].dtype
            assert torch.equal(mine["segmentation"], expected["segmentation"])


@pytest.mark.parametrize("sizes", SIZES, ids=["sizes", "no sizes"])
def test_semantic(outputs, sizes) -> None:
    ours = OURS.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    theirs = THEIRS.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert len(ours) == len(theirs) == 2
    assert all(torch.equal(mine, expected) for mine, expected in zip(ours, theirs, strict=True))
    assert ours[0].dtype == theirs[0].dtype and len(ours[0].unique()) > 3


@pytest.mark.parametrize("sizes", SIZES, ids=["sizes", "no sizes"])
def test_semantic_scores(outputs, sizes) -> None:
    ours = OURS.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    theirs = THEIRS.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.segmentation, expected.segmentation)
        assert mine["segmentation_scores"].shape[0] == NUM_CLASSES
        torch.testing.assert_close(mine.segmentation_scores, expected.segmentation_scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", SIZES, ids=["sizes", "no sizes"])
@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.0}, {"return_binary_maps": True}, {"return_coco_annotation": True}], ids=str
)
def test_instances(outputs, sizes, options) -> None:
    ours = OURS.post_process_instance_segmentation(outputs, target_sizes=sizes, **options)
    assert_same_results(ours, THEIRS.post_process_instance_segmentation(outputs, target_sizes=sizes, **options))
    assert len(ours[0]["segments_info"]) > 2


@pytest.mark.parametrize("sizes", SIZES, ids=["sizes", "no sizes"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_ids_to_fuse": set(range(NUM_CLASSES))},
        {"label_ids_to_fuse": {0, 2}, "threshold": 0.1, "overlap_mask_area_threshold": 0.1},
        {"mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0},
        {"mask_threshold": 1.0},
        {"threshold": 0.0},
    ],
    ids=str,
)
def test_panoptic(outputs, sizes, options) -> None:
    ours = OURS.post_process_panoptic_segmentation(outputs, target_sizes=sizes, **options)
    assert_same_results(ours, THEIRS.post_process_panoptic_segmentation(outputs, target_sizes=sizes, **options))
    assert options.get("mask_threshold") == 1.0 or len(ours[0]["segments_info"]) > 1


@given(st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.9]), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_any_scene(seed: int, threshold: float, size: tuple[int, int]) -> None:
    logits, masks = decoder_outputs(seed, (14, 18), 6, 12, 0.5)
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=logits[None], masks_queries_logits=masks[None]
    )
    for name in ("panoptic", "instance"):
        post_process = f"post_process_{name}_segmentation"
        ours, theirs = (
            getattr(processor, post_process)(outputs, threshold=threshold, target_sizes=torch.tensor([size]).tolist())
            for processor in (OURS, THEIRS)
        )
        assert_same_results(ours, theirs)


def test_sizes_may_be_a_tensor(outputs) -> None:
    sizes = SIZES[0]
    ours = OURS.post_process_semantic_segmentation(outputs, target_sizes=torch.tensor(sizes))
    assert [tuple(found.shape) for found in ours] == sizes


def test_what_contradicts_itself_is_refused(outputs) -> None:
    with pytest.raises(ValueError, match="1 target_sizes, but 2 images"):
        OURS.post_process_semantic_segmentation(outputs, target_sizes=[(3, 4)])
    with pytest.raises(ValueError, match="must not both"):
        OURS.post_process_instance_segmentation(outputs, return_coco_annotation=True, return_binary_maps=True)
