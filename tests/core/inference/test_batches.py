"""A batch that is reduced on a device, in two copies, against its images one by one on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance, panoptic, semantic
from m2f_core.inference.instance import InstanceResult, instance_segments
from m2f_core.inference.panoptic import panoptic_segments
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from tests.support.decoder_scenes import STUFF_CLASS_IDS, decoder_outputs
from tests.support.device_reduction import reduce_as_on_device

torch.set_num_threads(1)

ALONE = {
    PanopticSettings: panoptic_segments,
    InstanceSettings: instance_segments,
    SemanticSettings: semantic_segments,
}
SETTINGS = {
    "panoptic": PanopticSettings.defaults("reference", STUFF_CLASS_IDS),
    "panoptic hf": PanopticSettings.defaults("hf", STUFF_CLASS_IDS),
    "instance": InstanceSettings.defaults("reference", frozenset(range(80))),
    "instance hf": InstanceSettings.defaults("hf"),
    "semantic, masks": SemanticSettings.defaults("reference", "masks"),
    "semantic, scores": SemanticSettings.defaults("reference", "scores"),
    "semantic hf": SemanticSettings.defaults("hf"),
}
# One padded size, other originals: smaller, larger, cut off at the right or at the bottom.
PADDED, MASK_HW = (128, 160), (32, 40)
GEOMETRIES = [
    ImageGeometry((60, 80), (120, 160), PADDED),
    ImageGeometry((150, 130), (128, 111), PADDED),
    ImageGeometry((60, 80), (120, 160), PADDED),
    ImageGeometry((97, 160), (97, 160), PADDED),
]
BORDERLINE_SHARE = 1e-3  # of pixels that rounding may decide, where CPU and device do not compute alike


def maps(result):
    """Mask or map and rows of a result, as arrays and numbers."""
    if isinstance(result, InstanceResult):
        return [(i.class_id, i.query, i.score, i.mask) for i in result.instances]
    return result.label_map_HW


def assert_alike(found, expected, name):
    assert type(found) is type(expected)
    if isinstance(found, InstanceResult):
        assert [(i.class_id, i.query) for i in found.instances] == [(i.class_id, i.query) for i in expected.instances]
        for one, other in zip(found.instances, expected.instances, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-3)
            assert one.mask.area == pytest.approx(other.mask.area, rel=0.01, abs=3)
        if name.endswith("hf"):
            assert found == expected
        return
    assert [(i.segment_id, i.class_id, i.query) for i in found.infos] == [
        (i.segment_id, i.class_id, i.query) for i in expected.infos
    ]
    for one, other in zip(found.infos, expected.infos, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)
    differing = found.label_map_HW != expected.label_map_HW
    assert differing.mean() <= (0 if name.endswith("hf") else BORDERLINE_SHARE)
    assert found.label_map_HW.dtype == expected.label_map_HW.dtype


@pytest.mark.parametrize("at_once", ["all", "some"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_gives_what_its_images_give_alone(name, at_once, monkeypatch):
    settings = SETTINGS[name]
    if at_once == "some":  # masks or classes, and rows
        monkeypatch.setattr(panoptic, "_FLOATS_AT_ONCE", 3 * 128 * 160)
        monkeypatch.setattr(instance, "_FLOATS_AT_ONCE", 3 * 384 * 384)
        monkeypatch.setattr(semantic, "_STRIP_FLOATS_ON_DEVICE", 50 * 60 * 80)
    scenes = [decoder_outputs(seed, MASK_HW, num_kept, 40) for seed, num_kept in enumerate([7, 0, 20, 1])]
    fetched: list[int] = []
    found = reduce_as_on_device(scenes, GEOMETRIES, settings, fetched)
    expected = [
        ALONE[type(settings)](*scene, geometry, settings) for scene, geometry in zip(scenes, GEOMETRIES, strict=True)
    ]
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other, name)
    assert len(fetched) == (1 if isinstance(settings, SemanticSettings) else 2), "copies of a whole batch"
    logits_and_masks = sum(x.numel() * 4 for scene in scenes for x in scene)
    assert sum(fetched) < logits_and_masks / 2


@pytest.mark.parametrize("most", [0, 10**6])
@pytest.mark.parametrize("resize", ["masks", "scores"])
def test_both_ways_to_enlarge_give_the_same(resize, most, monkeypatch):
    """By taps and by products; and a map that already has its size is left as it is."""
    settings, scene = SemanticSettings.defaults("reference", resize), decoder_outputs(3, MASK_HW, 7, 40)
    as_it_is = ImageGeometry(MASK_HW, MASK_HW, MASK_HW)
    monkeypatch.setattr(semantic, "_MOST_IN_A_PRODUCT", most)
    for geometry in (GEOMETRIES[1], as_it_is):
        logits, masks = (x.clone() for x in scene)
        [found] = reduce_as_on_device([(logits, masks)], [geometry], settings)
        assert_alike(found, semantic_segments(*scene, geometry, settings), "semantic")
        assert torch.equal(masks, scene[1]), "the model's output is not changed"


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_for_which_there_was_no_room_are_copied_once_more(name, monkeypatch):
    for module in (panoptic, instance, semantic):
        monkeypatch.setattr(module, "_RUNS_PER_COLUMN", 0)
    scenes, geometries = [decoder_outputs(seed, MASK_HW, 7, 40) for seed in (0, 1)], GEOMETRIES[:2]
    fetched: list[int] = []
    found = reduce_as_on_device(scenes, geometries, SETTINGS[name], fetched)
    monkeypatch.undo()
    for one, other in zip(found, reduce_as_on_device(scenes, geometries, SETTINGS[name]), strict=True):
        assert np.array_equal(maps(one), maps(other)) if not isinstance(one, InstanceResult) else one == other
    assert len(fetched) == (2 if isinstance(SETTINGS[name], SemanticSettings) else 3)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_fail(name, wrong):
    settings = SETTINGS[name]
    for broken, said in ((1, "mask logits are not finite"), (0, "class logits are not finite")):
        scenes = [tuple(x.clone() for x in decoder_outputs(seed, MASK_HW, 7, 40)) for seed in (0, 1)]
        if broken == 0 and wrong == -torch.inf:
            continue  # a class that is impossible
        scenes[1][broken][..., 3] = wrong
        with pytest.raises(ValueError, match=said):
            reduce_as_on_device(scenes, GEOMETRIES[:2], settings)


def test_more_than_127_kept_queries_need_wider_codes():
    settings = replace(SETTINGS["panoptic"], score_threshold=0.0, overlap_threshold=0.0)
    scene = decoder_outputs(0, MASK_HW, 150, 160)
    [found] = reduce_as_on_device([scene], GEOMETRIES[:1], settings)
    expected = panoptic_segments(*scene, GEOMETRIES[0], settings)
    assert expected.num_kept_queries > 127
    assert_alike(found, expected, "panoptic")
