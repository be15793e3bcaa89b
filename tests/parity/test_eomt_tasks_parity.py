"""From an EoMT's decoder outputs to segments: `hf` against transformers, `reference` against its authors.

The authors' steps are written down here as they are in training/lightning_module.py of github.com/tue-mps/eomt.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2f_core.families.eomt.family import FAMILY
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.square import SquareProcessor
from m2f_core.inference.instance import instance_segments
from m2f_core.inference.panoptic import panoptic_segments
from m2f_core.inference.semantic import (
    best_classes_hf,
    best_classes_hf_together,
    find_classes_in_windows,
    hf_window_scores,
    semantic_segments,
    to_hf,
)
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.masks import rle
from tests.support.decoder_scenes import NUM_CLASSES, STUFF_CLASS_IDS, decoder_outputs

pytest.importorskip("transformers", reason="parity needs the oracle, transformers")

from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

torch.set_num_threads(1)

RULES = FAMILY.rules
SIDE = 128
THEIRS = EomtImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": SIDE})
CUTTING = {"shortest_edge": SIDE, "longest_edge": None}
SIZES = [(128, 128), (97, 213), (300, 71), (31, 40)]
SCENES = [(0, 20, 0.5), (1, 5, 5.0), (2, 1, 0.0), (3, 0, 0.5)]  # seed, confident queries, noise
CUT_SIZES = [(128, 128), (97, 213), (300, 71), (64, 100), (170, 40), (450, 1200)]


def outputs_of(seed: int, num_kept: int, noise: float) -> tuple[Tensor, Tensor]:
    return decoder_outputs(seed, (SIDE // 4, SIDE // 4), num_kept, 40, noise)


def geometry_of(mode: str, hw: tuple[int, int], cuts: bool = False) -> ImageGeometry:
    return SquareProcessor.read(None, mode, None, SIDE, cuts).geometry(*hw)


def as_outputs(logits: Tensor, masks: Tensor, offsets: list[Any] | None = None) -> SimpleNamespace:
    return SimpleNamespace(class_queries_logits=logits, masks_queries_logits=masks, patch_offsets=offsets)


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("hw", SIZES, ids=str)
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_panoptic_segments_are_transformers(scene, hw, threshold) -> None:
    logits, masks = outputs_of(*scene)
    settings = PanopticSettings.defaults("hf", STUFF_CLASS_IDS, RULES)
    others = {} if threshold is None else {"threshold": threshold, "overlap_mask_area_threshold": threshold}
    if threshold is not None:
        settings = replace(settings, score_threshold=threshold, overlap_threshold=threshold)
    found = panoptic_segments(logits, masks, geometry_of("hf", hw), settings)
    [expected] = THEIRS.post_process_panoptic_segmentation(
        as_outputs(logits[None], masks[None]), target_sizes=[hw], stuff_classes=list(STUFF_CLASS_IDS), **others
    )
    np.testing.assert_array_equal(found.label_map_HW.astype(np.int64) - 1, expected["segmentation"].numpy())
    rows = [{"id": i.segment_id - 1, "label_id": i.class_id, "score": round(i.score, 6)} for i in found.infos]
    assert rows == expected["segments_info"]
    assert len(rows) >= min(scene[1], 2) or threshold is None


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@pytest.mark.parametrize("hw", SIZES, ids=str)
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_instances_are_transformers(scene, hw, threshold) -> None:
    logits, masks = outputs_of(*scene)
    settings = InstanceSettings.defaults("hf", rules=RULES)
    if threshold is not None:
        settings = replace(settings, score_threshold=threshold)
    found = instance_segments(logits, masks, geometry_of("hf", hw), settings)
    others = {} if threshold is None else {"threshold": threshold}
    [expected] = THEIRS.post_process_instance_segmentation(
        as_outputs(logits[None], masks[None]), target_sizes=[hw], **others
    )
    map_HW = torch.full(hw, -1.0)
    for number, one in enumerate(found.instances):
        map_HW[torch.from_numpy(rle.decode(one.mask.counts, *hw))] = number
    assert torch.equal(map_HW, expected["segmentation"])
    rows = [
        {"id": number, "label_id": one.class_id, "score": round(one.score, 6)}
        for number, one in enumerate(found.instances)
    ]
    assert rows == expected["segments_info"]
    assert rows or scene[1] == 0


def test_the_best_queries_alone_can_be_kept() -> None:
    logits, masks = outputs_of(*SCENES[0])
    settings = replace(InstanceSettings.defaults("hf", rules=RULES), score_threshold=0.0)
    every, few = (
        instance_segments(logits, masks, geometry_of("hf", (97, 213)), one).instances
        for one in (settings, replace(settings, top_k=5))
    )
    best = logits.softmax(-1)[:, :-1].amax(-1).topk(5).indices.tolist()
    assert list(few) == [one for one in every if one.query in best] and 0 < len(few) < len(every)


def windows_of(mode: str, hw: tuple[int, int], seed: int) -> tuple[ImageGeometry, Tensor, Tensor]:
    """An image's geometry, and decoder outputs of each of its windows."""
    geometry = geometry_of(mode, hw, cuts=True)
    outputs = [decoder_outputs(seed + n, (SIDE // 4, SIDE // 4), 8, 20, 0.5) for n in range(geometry.num_inputs)]
    logits, masks = (torch.stack(parts) for parts in zip(*outputs, strict=True))
    return geometry, logits, masks


@pytest.mark.parametrize("hw", CUT_SIZES, ids=str)
def test_a_semantic_map_is_transformers(hw) -> None:
    geometry, logits, masks = windows_of("hf", hw, 0)
    offsets = [(0, max(window), max(window) + SIDE) for window in geometry.windows]
    [expected] = THEIRS.post_process_semantic_segmentation(
        as_outputs(logits, masks, offsets), target_sizes=[hw], size=CUTTING, return_segmentation_scores=True
    )
    result = semantic_segments(logits, masks, geometry, replace(SemanticSettings.defaults("hf"), rules=RULES))
    assert torch.equal(to_hf(result), expected.segmentation)
    best_HW = expected.segmentation_scores.amax(0).clamp(max=1).double()
    for info in result.infos:
        of_class = best_HW[expected.segmentation == info.class_id]
        assert info.score == pytest.approx(of_class.mean().item(), abs=1e-5)
    assert len(result.infos) > 3


@pytest.mark.parametrize("hw", CUT_SIZES, ids=str)
@pytest.mark.parametrize("strip_floats", [2**23, 2**16], ids=["one strip", "strips"])
def test_a_semantic_map_is_its_authors(hw, strip_floats) -> None:
    geometry, logits, masks = windows_of("reference", hw, 3)
    enlarged = F.interpolate(masks, (SIDE, SIDE), mode="bilinear")
    scores = torch.einsum("bqhw, bqc -> bchw", enlarged.sigmoid(), logits.softmax(dim=-1)[..., :-1])
    sums, counts = (torch.zeros(NUM_CLASSES, *geometry.resized_hw) for _ in range(2))
    for of_window, (top, left) in zip(scores, geometry.windows, strict=True):
        sums[:, top : top + SIDE, left : left + SIDE] += of_window
        counts[:, top : top + SIDE, left : left + SIDE] += 1
    expected = F.interpolate((sums / counts)[None, ...], hw, mode="bilinear")[0]
    labels_HW, best_HW = find_classes_in_windows(masks, logits.softmax(-1)[..., :-1], geometry, strip_floats)
    torch.testing.assert_close(best_HW, expected.amax(0), atol=1e-5, rtol=0)
    other = (labels_HW.long() - 1) != expected.argmax(0)
    top = expected.topk(2, dim=0).values
    assert ((top[0] - top[1])[other] < 1e-5).all(), "the class is another one only where two are equal but for rounding"
    assert other.float().mean() < 1e-3


@pytest.mark.parametrize("hw", CUT_SIZES[:3], ids=str)
def test_a_device_finds_the_same_classes(hw) -> None:
    geometry, logits, masks = windows_of("hf", hw, 5)
    scores = hf_window_scores(masks, logits.softmax(-1)[..., :-1], geometry)
    for mine, other in zip(best_classes_hf(scores, hw), best_classes_hf_together(scores, hw), strict=True):
        assert torch.equal(mine, other)


def test_a_line_that_no_window_sees_has_the_first_class_as_in_transformers() -> None:
    side = 1280  # by rounding, windows of an image of 34043 pixels leave its last column out
    geometry = SquareProcessor.read(None, "hf", None, side, cuts=True).geometry(side, 34_043)
    assert geometry.windows[-1] == (0, 34_043 - side - 1)
    narrow = ImageGeometry((4, 9), (4, 9), (4, 4), ((0, 0), (0, 4)))
    masks = torch.full((2, 1, 1, 1), 5.0)
    result = semantic_segments(
        torch.tensor([[[0.0, 9.0, 0.0]]] * 2), masks, narrow, replace(SemanticSettings.defaults("hf"), rules=RULES)
    )
    assert to_hf(result)[:, :8].unique().tolist() == [1] and to_hf(result)[:, 8].unique().tolist() == [0]


def authors_panoptic(masks: Tensor, logits: Tensor, stuff: frozenset[int]) -> list[tuple[int, Tensor]]:
    """(class, mask) of each segment, in the order of ids. `masks`: logits [Q, H, W] at the size of the image."""
    scores, classes = logits.softmax(dim=-1).max(-1)
    keep = classes.ne(logits.shape[-1] - 1) & (scores > 0.8)
    segments: list[tuple[int, Tensor]] = []
    if not keep.any():
        return segments
    probs = masks.sigmoid()[keep]
    mask_ids = (scores[keep][..., None, None] * probs).argmax(0)
    for k, class_id in enumerate(classes[keep].tolist()):
        orig_mask, new_mask = probs[k] >= 0.5, mask_ids == k
        final_mask = orig_mask & new_mask
        areas = [mask.sum().item() for mask in (orig_mask, new_mask, final_mask)]
        if 0 in areas or areas[1] / areas[0] < 0.8:
            continue
        fused = [n for n, (other, _) in enumerate(segments) if other == class_id and class_id in stuff]
        if fused:
            segments[fused[0]] = (class_id, segments[fused[0]][1] | final_mask)
        else:
            segments.append((class_id, final_mask))
    return segments


def at_image(masks: Tensor, geometry: ImageGeometry) -> Tensor:
    height, width = geometry.resized_hw
    enlarged = F.interpolate(masks[None], geometry.padded_hw, mode="bilinear")[:, :, :height, :width]
    return F.interpolate(enlarged, geometry.original_hw, mode="bilinear")[0]


@pytest.mark.parametrize("hw", SIZES, ids=str)
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_panoptic_segments_are_the_authors(scene, hw) -> None:
    """The kernel of Mask2Former's reference mode serves this family, too."""
    logits, masks = outputs_of(*scene)
    geometry = geometry_of("reference", hw)
    found = panoptic_segments(logits, masks, geometry, PanopticSettings.defaults("reference", STUFF_CLASS_IDS))
    expected = authors_panoptic(at_image(masks, geometry), logits, STUFF_CLASS_IDS)
    assert [info.class_id for info in found.infos] == [class_id for class_id, _ in expected]
    map_HW = torch.from_numpy(found.label_map_HW.astype(np.int64))
    different = sum(
        (map_HW == info.segment_id).ne(mask).sum().item() for info, (_, mask) in zip(found.infos, expected, strict=True)
    )
    assert different <= 2, "pixels on a border, by rounding"


@pytest.mark.parametrize("hw", SIZES[:3], ids=str)
def test_instances_are_the_authors(hw) -> None:
    logits, masks = outputs_of(*SCENES[0])
    geometry = geometry_of("reference", hw)
    found = instance_segments(logits, masks, geometry, InstanceSettings.defaults("reference"))
    scores = logits.softmax(dim=-1)[:, :-1]
    top_scores, top_indices = scores.flatten(0, 1).topk(100, sorted=False)
    chosen = at_image(masks, geometry)[top_indices // NUM_CLASSES]
    on = chosen > 0
    mask_scores = (chosen.sigmoid().flatten(1) * on.flatten(1)).sum(1) / (on.flatten(1).sum(1) + 1e-6)
    expected = sorted(
        (
            (round(score, 5), class_id)
            for score, class_id, mask in zip(
                (top_scores * mask_scores).tolist(), (top_indices % NUM_CLASSES).tolist(), on, strict=True
            )
            if mask.any()
        ),
        reverse=True,
    )
    assert len(expected) > 5
    mine = sorted(((round(one.score, 5), one.class_id) for one in found.instances), reverse=True)
    assert [class_id for _, class_id in mine] == [class_id for _, class_id in expected]
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in expected], abs=2e-5)
