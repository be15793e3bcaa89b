"""Instances in reference mode: both ways of finding a mask against a naive oracle; properties; refusals."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance
from m2f_core.inference.instance import InstanceResult, instance_segments
from m2f_core.inference.instance_kernel import find_mask
from m2f_core.inference.resize_taps import axis_taps
from m2f_core.inference.settings import InstanceSettings
from m2f_core.masks import rle
from tests.support.decoder_scenes import NUM_CLASSES, STUFF_CLASS_IDS, decoder_outputs
from tests.support.device_reduction import reduce_as_on_device
from tests.support.geometries import FULL_SIZE, GEOMETRIES, SMALL

torch.set_num_threads(1)

REFERENCE = InstanceSettings.defaults("reference")
THINGS = frozenset(range(NUM_CLASSES)) - STUFF_CLASS_IDS
MARGIN = 1e-5  # of a probability: below this, rounding may decide a pixel
BORDERLINE_SHARE = 1e-5  # of the pixels of all masks of all scenes together


@dataclass
class ExpectedInstance:
    mask_HW: np.ndarray  # noqa: N815
    margin_HW: np.ndarray  # noqa: N815 - distance of each pixel's probability from 1/2
    score: float


def oracle(
    logits_QC1: torch.Tensor, masks_Qhw: torch.Tensor, geometry: ImageGeometry, chosen: InstanceSettings
) -> dict[tuple[int, int], ExpectedInstance]:
    """The original's instance inference with full Q x H x W floats; (query, class) -> instance, empty ones left out."""
    padded = F.interpolate(masks_Qhw[None], size=geometry.padded_hw, mode="bilinear", align_corners=False)
    valid = padded[:, :, : geometry.resized_hw[0], : geometry.resized_hw[1]]
    logits_QHW = F.interpolate(valid, size=geometry.original_hw, mode="bilinear", align_corners=False)[0]
    scores_QC = F.softmax(logits_QC1, dim=-1)[:, :-1]
    pairs = [(-float(score), q, c) for q, row in enumerate(scores_QC) for c, score in enumerate(row)]
    top_k = len(scores_QC) if chosen.top_k is None else chosen.top_k
    expected = {}
    for score, q, c in sorted(pairs)[:top_k]:
        if chosen.wanted_class_ids is not None and c not in chosen.wanted_class_ids:
            continue
        mask, probs = logits_QHW[q] > 0, logits_QHW[q].double().sigmoid()
        score = -score * float((probs * mask).sum() / (mask.sum() + 1e-6))
        if mask.any() and score >= chosen.score_threshold:
            expected[q, c] = ExpectedInstance(mask.numpy(), (probs - 0.5).abs().numpy(), score)
    return expected


def both_ways(
    scene: tuple[torch.Tensor, torch.Tensor], geometry: ImageGeometry, chosen: InstanceSettings
) -> tuple[InstanceResult, InstanceResult]:
    """The result by the numba kernel, and by the torch way that other devices take."""
    [plain] = reduce_as_on_device([scene], [geometry], chosen)
    return instance_segments(*scene, geometry, chosen), plain


def assert_equals_oracle(
    scene: tuple[torch.Tensor, torch.Tensor], geometry: ImageGeometry, chosen: InstanceSettings = REFERENCE
) -> tuple[int, int]:
    """Plain way: equal masks. Kernel: equal but for pixels that rounding decides; returns their number and all."""
    expected = oracle(*scene, geometry, chosen)
    by_kernel, plain = both_ways(scene, geometry, chosen)
    num_differing = num_pixels = 0
    for result in (by_kernel, plain):
        found = {(i.query, i.class_id): i for i in result.instances}
        assert found.keys() == expected.keys() and len(found) == len(result.instances)
        scores = [i.score for i in result.instances]
        assert scores == sorted(scores, reverse=True)
        for key, segment in found.items():
            mask_HW = rle.decode(segment.mask.counts, *geometry.original_hw)
            differing = mask_HW != expected[key].mask_HW
            assert abs(segment.score - expected[key].score) < 1e-6 + differing.sum() / mask_HW.sum()
            assert segment.mask.area == mask_HW.sum() > 0
            assert segment.mask.bbox_xywh == rle.counts_bbox_xywh(segment.mask.counts, *geometry.original_hw)
            if result is plain:
                assert not differing.any()
            assert np.all(expected[key].margin_HW[differing] < MARGIN), "the kernel decided a clear pixel otherwise"
            num_differing, num_pixels = num_differing + int(differing.sum()), num_pixels + differing.size
    return num_differing, num_pixels


@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_ways_equal_the_oracle_in_every_geometry(name: str) -> None:
    mask_hw, geometry = GEOMETRIES[name]
    differing = pixels = 0
    for seed, num_kept in enumerate([1, 2, 7, 20]):
        found = assert_equals_oracle(decoder_outputs(seed, mask_hw, num_kept, 40), geometry)
        differing, pixels = differing + found[0], pixels + found[1]
    assert differing <= max(1, BORDERLINE_SHARE * pixels)


@pytest.mark.thorough
def test_both_ways_equal_the_oracle_at_the_size_of_a_photograph() -> None:
    mask_hw, geometry = FULL_SIZE
    differing, pixels = assert_equals_oracle(decoder_outputs(3, mask_hw, 20, 40), geometry)
    assert differing <= BORDERLINE_SHARE * pixels


@pytest.mark.parametrize(
    "chosen",
    [
        replace(REFERENCE, score_threshold=0.5),
        replace(REFERENCE, top_k=5),
        pytest.param(replace(REFERENCE, top_k=10**6, score_threshold=1e-3), marks=pytest.mark.thorough),
        replace(REFERENCE, top_k=None),
        replace(REFERENCE, wanted_class_ids=THINGS),
        replace(REFERENCE, wanted_class_ids=frozenset()),
    ],
)
def test_both_ways_equal_the_oracle_for_every_setting(chosen: InstanceSettings) -> None:
    mask_hw, geometry = SMALL
    for seed in range(1 if chosen.top_k == 10**6 else 3):  # thousands of masks a scene
        assert_equals_oracle(decoder_outputs(seed, mask_hw, 15, 40), geometry, chosen)


@pytest.mark.parametrize("noise", [0.0, 5.0, 30.0])
def test_noisy_masks_and_smooth_masks(noise: float) -> None:
    geometry = ImageGeometry((300, 200), (240, 160), (256, 160))
    assert_equals_oracle(decoder_outputs(3, (64, 40), 20, 60, noise), geometry)


@given(
    seed=st.integers(0, 2**31),
    mask_hw=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    original_hw=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    padding_hw=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    num_queries=st.integers(1, 9),
    num_classes=st.integers(1, 6),
    top_k=st.integers(1, 12),
)
def test_random_geometries_equal_the_oracle(
    seed: int,
    mask_hw: tuple[int, int],
    original_hw: tuple[int, int],
    padding_hw: tuple[int, int],
    num_queries: int,
    num_classes: int,
    top_k: int,
) -> None:
    padded_hw = (4 * mask_hw[0], 4 * mask_hw[1])
    resized_hw = (max(1, padded_hw[0] - padding_hw[0]), max(1, padded_hw[1] - padding_hw[1]))
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_queries, num_classes + 1, generator=rng)
    masks = 4 * torch.randn(num_queries, *mask_hw, generator=rng) + 3 * torch.randn(num_queries, 1, 1, generator=rng)
    geometry = ImageGeometry(original_hw, resized_hw, padded_hw)
    assert_equals_oracle((logits, masks), geometry, replace(REFERENCE, top_k=top_k))


@given(
    seed=st.integers(0, 2**31),
    size_hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share_on=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
)
def test_runs_are_those_of_the_mask(seed: int, size_hw: tuple[int, int], share_on: float) -> None:
    """Any mask whatever, pixel by pixel: nothing is resized, so the signs of the logits are the mask."""
    mask = torch.rand(size_hw, generator=torch.Generator().manual_seed(seed)) < share_on
    logits = torch.where(mask, 2.0, -3.0)
    rows, cols = (axis_taps(n, n, n, n) for n in size_hw)
    runs, probability_sum = find_mask(logits.numpy(), rows, cols)
    expected = rle.label_runs(mask.numpy().astype(np.uint8))
    np.testing.assert_array_equal(runs.values, expected.values)
    np.testing.assert_array_equal(runs.lengths, expected.lengths)
    assert probability_sum == pytest.approx(int(mask.sum()) * torch.tensor(2.0).sigmoid().item(), rel=1e-6)


def test_a_logit_of_zero_is_outside() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, :, 4:] = 1.0
    geometry = ImageGeometry((8, 8), (8, 8), (8, 8))
    for result in both_ways((torch.tensor([[3.0, 0.0]]), masks), geometry, REFERENCE):
        assert [i.mask.area for i in result.instances] == [32]


def test_a_query_with_several_classes_has_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def counted(mask_hw: np.ndarray, *taps: object) -> object:
        looked_at.append(mask_hw)
        return find_mask(mask_hw, *taps)

    monkeypatch.setattr(instance, "find_mask", counted)
    logits = torch.tensor([[2.0, 3.0, 1.0, 0.0], [5.0, 0.0, 1.0, 0.0]])
    masks = torch.stack([torch.ones(8, 8), -torch.ones(8, 8)])
    result = instance_segments(logits, masks, ImageGeometry((9, 9), (32, 32), (32, 32)), REFERENCE)
    assert [(i.query, i.class_id) for i in result.instances] == [(0, 1), (0, 0), (0, 2)], "empty masks are left out"
    assert len({id(i.mask) for i in result.instances}) == 1 and len(looked_at) == 2


def test_of_equal_scores_the_lower_query_and_class_come_first() -> None:
    geometry = ImageGeometry((9, 9), (32, 32), (32, 32))
    result = instance_segments(torch.zeros(3, 3), torch.ones(3, 8, 8), geometry, replace(REFERENCE, top_k=5))
    assert [(i.query, i.class_id) for i in result.instances] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_stuff_takes_its_place_among_the_best_before_it_is_dropped() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    geometry = ImageGeometry((9, 9), (32, 32), (32, 32))
    for top_k, expected in ((1, []), (2, [1])):
        chosen = replace(REFERENCE, top_k=top_k, wanted_class_ids=frozenset({1}))
        result = instance_segments(logits, torch.ones(2, 8, 8), geometry, chosen)
        assert [i.class_id for i in result.instances] == expected


@pytest.mark.parametrize("mode", ["reference", "hf"])
def test_nothing_found(mode: str) -> None:
    chosen = InstanceSettings.defaults(mode)
    geometry = ImageGeometry((12, 34), (32, 32), (32, 32))
    empty = decoder_outputs(0, (8, 8), 5)
    assert instance_segments(empty[0], -empty[1].abs(), geometry, chosen) == InstanceResult((), (12, 34))
    unsure = decoder_outputs(0, (8, 8), 0, num_doubtful=0)
    result = instance_segments(unsure[0], unsure[1].abs(), geometry, replace(chosen, score_threshold=0.9))
    assert result == InstanceResult((), (12, 34))


@pytest.mark.parametrize("mode", ["reference", "hf"])
def test_mask_of_the_whole_image(mode: str) -> None:
    """One query, one class: the first run of zeros is empty."""
    logits, masks = torch.tensor([[4.0, 0.0]]), torch.full((1, 8, 8), 3.0)
    (found,) = instance_segments(
        logits, masks, ImageGeometry((70, 50), (30, 30), (32, 32)), InstanceSettings.defaults(mode)
    ).instances
    assert found.mask.area == 70 * 50 and found.mask.bbox_xywh == (0, 0, 50, 70) and found.mask.label == 1
    assert found.score == pytest.approx(float(torch.tensor(4.0).sigmoid() * torch.tensor(3.0).sigmoid()), abs=1e-6)


def test_half_precision_and_strided_masks_are_accepted() -> None:
    logits, masks = decoder_outputs(0, (32, 32))
    geometry = ImageGeometry((100, 100), (128, 128), (128, 128))
    expected = instance_segments(logits, masks, geometry, REFERENCE)
    strided = masks.transpose(1, 2).contiguous().transpose(1, 2)
    assert instance_segments(logits, strided, geometry, REFERENCE) == expected
    half = instance_segments(logits.bfloat16(), masks.bfloat16(), geometry, REFERENCE)
    areas = [{i.query: i.mask.area for i in result.instances} for result in (expected, half)]
    assert all(abs(areas[1][query] - area) < 0.1 * area + 20 for query, area in areas[0].items() if area > 50)


@pytest.mark.parametrize("mode", ["reference", "hf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value: float, mode: str) -> None:
    logits, masks = decoder_outputs(0, (16, 16))
    geometry, chosen = ImageGeometry((64, 64), (64, 64), (64, 64)), InstanceSettings.defaults(mode)
    with pytest.raises(ValueError, match="mask logits are not finite"):
        instance_segments(logits, masks.index_fill(1, torch.tensor([3]), value), geometry, chosen)
    with pytest.raises(ValueError, match="class logits are not finite"):
        instance_segments(logits.index_fill(1, torch.tensor([3]), value), masks, geometry, chosen)


def test_impossible_inputs_are_refused() -> None:
    logits, masks = decoder_outputs(0, (16, 16))
    geometry = ImageGeometry((64, 64), (64, 64), (64, 64))
    with pytest.raises(ValueError, match="disagree"):
        instance_segments(logits[:-1], masks, geometry, REFERENCE)
    with pytest.raises(ValueError, match="no query"):
        instance_segments(logits[:0], masks[:0], geometry, REFERENCE)
    with pytest.raises(ValueError, match="no class"):
        instance_segments(logits[:, :1], masks, geometry, REFERENCE)
    with pytest.raises(ValueError, match="within padded size"):
        instance_segments(logits, masks, ImageGeometry((64, 64), (65, 64), (64, 64)), REFERENCE)
    for wrong in ({"mode": "paper"}, {"score_threshold": 1.5}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(REFERENCE, **wrong)


def test_defaults_of_the_modes() -> None:
    assert InstanceSettings.defaults("reference", THINGS) == InstanceSettings("reference", 0.0, 100, THINGS)
    assert InstanceSettings.defaults("hf") == InstanceSettings("hf", 0.5, None, None)


@pytest.mark.parametrize("mode", ["reference", "hf"])
def test_warm_up_leaves_nothing_to_compile(mode: str) -> None:
    chosen = replace(InstanceSettings.defaults(mode, THINGS), score_threshold=1.0)
    instance.warm_up(chosen)
    before = len(instance.find_mask.__globals__["_find_runs"].signatures)
    instance_segments(*decoder_outputs(0, (16, 16)), ImageGeometry((64, 64), (60, 64), (64, 64)), REFERENCE)
    if mode == "reference":
        assert before == len(instance.find_mask.__globals__["_find_runs"].signatures) > 0
