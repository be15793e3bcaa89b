"""OneFormer's inference in hf mode against transformers' processor, pixel for pixel; and the pixels of its images.

transformers resizes the masks of segments with torchvision, which is not installed here. For float tensors torchvision
calls F.interpolate with antialias, which stands in for it.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.models.oneformer import image_processing_pil_oneformer as theirs
from transformers.models.oneformer.modeling_oneformer import OneFormerForUniversalSegmentationOutput

from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.families.oneformer import FAMILY, RULES_OF_INFERENCE
from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import panoptic, semantic
from m2f_core.inference.instance import instance_segments, start_instances
from m2f_core.inference.panoptic import panoptic_segments
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.masks import rle
from m2f_core.masks.on_device import Parcel, fetch_at_once
from tests.support.decoder_scenes import STUFF_CLASS_IDS, decoder_outputs

torch.set_num_threads(1)

# Larger, smaller and as large as the masks, which have 56 x 72 cells.
SIZES = [(97, 113), (30, 41), (500, 31), (56, 72), pytest.param((480, 640), marks=pytest.mark.thorough)]
SCENES = [(0, 20, 0.5), (1, 5, 5.0), (2, 1, 0.0), (3, 0, 0.5)]  # seed, confident queries, noise
FUSED = STUFF_CLASS_IDS
PANOPTIC = replace(PanopticSettings.defaults("hf", FUSED), rules=RULES_OF_INFERENCE)
INSTANCE = InstanceSettings.defaults("hf", None, RULES_OF_INFERENCE)
SEMANTIC = replace(SemanticSettings.defaults("hf"), rules=RULES_OF_INFERENCE)


@pytest.fixture(scope="module")
def processor() -> theirs.OneFormerImageProcessorPil:
    processor = theirs.OneFormerImageProcessorPil()
    processor.class_info_file = "coco_panoptic.json"  # its name alone is read
    return processor


@pytest.fixture(autouse=True)
def torchvision_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(masks: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
        return F.interpolate(masks, size, mode=interpolation, align_corners=False, antialias=True)

    modes = SimpleNamespace(BILINEAR="bilinear")
    monkeypatch.setattr(theirs, "tvF", SimpleNamespace(resize=resize, InterpolationMode=modes), raising=False)


def their_form(logits: torch.Tensor, masks: torch.Tensor) -> OneFormerForUniversalSegmentationOutput:
    return OneFormerForUniversalSegmentationOutput(class_queries_logits=logits[None], masks_queries_logits=masks[None])


def outputs_of(scene: tuple[int, int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    return decoder_outputs(scene[0], (56, 72), scene[1], 40, scene[2])


def geometry_of(size: tuple[int, int]) -> ImageGeometry:
    return ImageGeometry(size, (224, 288), (224, 288))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_panoptic_segments(processor, scene, size) -> None:
    logits, masks = outputs_of(scene)
    found = panoptic.to_hf(panoptic_segments(logits, masks, geometry_of(size), PANOPTIC), PANOPTIC)
    [expected] = processor.post_process_panoptic_segmentation(
        their_form(logits, masks), label_ids_to_fuse=set(FUSED), target_sizes=[size]
    )
    assert found["segments_info"] == expected["segments_info"]
    assert torch.equal(found["segmentation"].float(), expected["segmentation"].float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_semantic_map(processor, scene, size) -> None:
    logits, masks = outputs_of(scene)
    found = semantic.to_hf(semantic_segments(logits, masks, geometry_of(size), SEMANTIC))
    [expected] = processor.post_process_semantic_segmentation(their_form(logits, masks), target_sizes=[size])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_instances(processor, scene, size, threshold) -> None:
    """A pixel belongs to one at most. On a device, the same."""
    logits, masks = outputs_of(scene)
    settings = replace(INSTANCE, score_threshold=threshold)
    [expected] = processor.post_process_instance_segmentation(
        their_form(logits, masks), threshold=threshold, target_sizes=[size]
    )
    parcel = Parcel()
    started = start_instances(logits[None], masks[None], [geometry_of(size)], settings, parcel)
    [of_device] = started.finish(parcel.send(fetch_at_once)())
    for result in (instance_segments(logits, masks, geometry_of(size), settings), of_device):
        rows = [
            {"id": number, "label_id": one.class_id, "was_fused": False, "score": round(one.score, 6)}
            for number, one in enumerate(result.instances, 1)
        ]
        assert rows == expected["segments_info"]
        label_map = np.zeros(size, np.int32) if expected["segments_info"] else np.asarray(expected["segmentation"])
        for number, one in enumerate(result.instances, 1):
            label_map[rle.decode(one.mask.counts, *size)] = number
        np.testing.assert_array_equal(label_map, np.asarray(expected["segmentation"]))
        assert all(one.query in started.queries[0] for one in result.instances)


def test_the_scenes_have_something_to_find(processor) -> None:
    for scene in SCENES[:3]:
        logits, masks = outputs_of(scene)
        assert instance_segments(logits, masks, geometry_of((97, 113)), INSTANCE).instances
        assert panoptic_segments(logits, masks, geometry_of((97, 113)), PANOPTIC).infos


def test_other_classes_take_part_but_are_no_results() -> None:
    logits, masks = outputs_of(SCENES[0])
    everything = instance_segments(logits, masks, geometry_of((97, 113)), INSTANCE).instances
    wanted = frozenset({everything[0].class_id})
    chosen = instance_segments(logits, masks, geometry_of((97, 113)), replace(INSTANCE, wanted_class_ids=wanted))
    assert [(one.class_id, one.score, one.mask.counts) for one in chosen.instances] == [
        (one.class_id, one.score, one.mask.counts) for one in everything if one.class_id in wanted
    ]
    none = replace(INSTANCE, wanted_class_ids=frozenset({10_000}))
    assert instance_segments(logits, masks, geometry_of((97, 113)), none).instances == ()


@pytest.mark.parametrize("size", [(97, 113), (480, 640), (31, 500), (200, 200), (1, 60)])
@pytest.mark.parametrize("file", [{}, {"size": {"shortest_edge": 64, "longest_edge": 100}}], ids=str)
def test_pixels_are_theirs(size: tuple[int, int], file: dict) -> None:
    """A file without `size_divisor` means no rounding, unlike Mask2Former's; nothing is padded or stretched."""
    config = {"image_processor_type": "OneFormerImageProcessor", **file}
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    ours = FAMILY.image_processor(OneFormerConfig.tiny(), config, "hf", None, "panoptic")
    geometry = ours.geometry(*size)
    expected = theirs.OneFormerImageProcessorPil(**file)([image], task_inputs=["panoptic"], return_tensors="pt")
    assert geometry.resized_hw == geometry.padded_hw == tuple(expected["pixel_values"].shape[2:])
    assert torch.equal(ours.to_batch([ours.resize(image)], geometry.padded_hw), expected["pixel_values"])


def test_in_reference_mode_sides_are_multiples_of_32_without_a_warning() -> None:
    config = {"image_processor_type": "OneFormerImageProcessor"}
    processor = FAMILY.image_processor(OneFormerConfig.tiny(), config, "reference", None, "panoptic")
    assert processor.geometry(480, 640).padded_hw == (800, 1088)
    assert processor.warnings() == []
