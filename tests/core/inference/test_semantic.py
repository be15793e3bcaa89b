"""Semantic classes in reference mode: the kernel and the plain way against a naive oracle; properties; refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import semantic
from m2f_core.inference.semantic import SemanticResult, semantic_segments
from m2f_core.inference.settings import SemanticSettings
from tests.support.decoder_scenes import decoder_outputs
from tests.support.device_reduction import reduce_as_on_device
from tests.support.geometries import FULL_SIZE, GEOMETRIES, SMALL

torch.set_num_threads(1)

RESIZES = ("masks", "scores")
MARGIN = 1e-5  # between the scores of two classes: below this, rounding may decide a pixel
BORDERLINE_SHARE = 1e-5  # of the pixels of all scenes together
SCORE_ERROR = 2e-5
ANY = ImageGeometry((64, 64), (64, 64), (64, 64))


def resized(planes_Chw: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes_Chw[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def oracle(logits_QC1: torch.Tensor, masks_Qhw: torch.Tensor, geometry: ImageGeometry, resize: str) -> torch.Tensor:
    """Scores [C, H, W] of the original's semantic inference (`maskformer_model.py`, `semantic_inference`).

    `forward` resizes mask logits to the padded size; `sem_seg_postprocess` cuts the padding off and resizes to the
    original size, before semantic inference (sem_seg_postprocess_before_inference) or after it.
    """
    height, width = geometry.resized_hw
    scores_QC = F.softmax(logits_QC1, dim=-1)[:, :-1]
    planes = resized(masks_Qhw, geometry.padded_hw)
    if resize == "masks":
        planes = resized(planes[:, :height, :width], geometry.original_hw)
        return torch.einsum("qc,qhw->chw", scores_QC, planes.sigmoid())
    scores_Chw = torch.einsum("qc,qhw->chw", scores_QC, planes.sigmoid())
    return resized(scores_Chw[:, :height, :width], geometry.original_hw)


def both_ways(
    scene: tuple[torch.Tensor, torch.Tensor], geometry: ImageGeometry, resize: str
) -> tuple[SemanticResult, SemanticResult]:
    """The result by the numba kernel, and by the torch way that other devices take."""
    chosen = SemanticSettings.defaults("reference", resize)
    [plain] = reduce_as_on_device([scene], [geometry], chosen)
    return semantic_segments(*scene, geometry, chosen), plain


def assert_equals_oracle(
    scene: tuple[torch.Tensor, torch.Tensor], geometry: ImageGeometry, resize: str
) -> tuple[int, int]:
    """Equal but for pixels that rounding decides; returns their number and that of all pixels, of both ways."""
    scores_CHW = oracle(*scene, geometry, resize)
    expected_HW = scores_CHW.argmax(0).numpy()
    num_differing = 0
    for result in both_ways(scene, geometry, resize):
        found_HW = result.label_map_HW.astype(np.int64) - 1
        assert found_HW.shape == geometry.original_hw and found_HW.min() >= 0
        score_of_found_HW = scores_CHW.gather(0, torch.from_numpy(found_HW)[None])[0]
        differing_HW = found_HW != expected_HW
        behind_HW = (scores_CHW.amax(0) - score_of_found_HW).numpy()
        assert np.all(behind_HW[differing_HW] < MARGIN), "a clear pixel was decided otherwise"
        num_differing += int(differing_HW.sum())
        class_ids = np.unique(found_HW).tolist()
        assert [(info.segment_id, info.class_id) for info in result.infos] == [(c + 1, c) for c in class_ids]
        for info in result.infos:
            pixels_HW = torch.from_numpy(found_HW == info.class_id)
            mean = score_of_found_HW.clamp(max=1)[pixels_HW].double().mean()
            assert info.score == pytest.approx(float(mean), abs=SCORE_ERROR)
    return num_differing, 2 * expected_HW.size


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_ways_equal_the_oracle_in_every_geometry(name: str, resize: str) -> None:
    mask_hw, geometry = GEOMETRIES[name]
    differing = pixels = 0
    for seed, num_kept in enumerate([0, 1, 7, 20]):
        found = assert_equals_oracle(decoder_outputs(seed, mask_hw, num_kept, 40), geometry, resize)
        differing, pixels = differing + found[0], pixels + found[1]
    assert differing <= max(1, BORDERLINE_SHARE * pixels)


@pytest.mark.thorough
@pytest.mark.parametrize("resize", RESIZES)
def test_both_ways_equal_the_oracle_at_the_size_of_a_photograph(resize: str) -> None:
    mask_hw, geometry = FULL_SIZE
    differing, pixels = assert_equals_oracle(decoder_outputs(3, mask_hw, 20, 40), geometry, resize)
    assert differing <= BORDERLINE_SHARE * pixels


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("noise", [0.0, 5.0, 30.0])
def test_noisy_masks_and_smooth_masks(noise: float, resize: str) -> None:
    geometry = ImageGeometry((300, 200), (240, 160), (256, 160))
    assert_equals_oracle(decoder_outputs(3, (64, 40), 20, 60, noise), geometry, resize)


@given(
    seed=st.integers(0, 2**31),
    mask_hw=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    original_hw=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    padding_hw=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    num_queries=st.integers(1, 9),
    num_classes=st.integers(1, 6),
    resize=st.sampled_from(RESIZES),
)
def test_random_geometries_equal_the_oracle(
    seed: int,
    mask_hw: tuple[int, int],
    original_hw: tuple[int, int],
    padding_hw: tuple[int, int],
    num_queries: int,
    num_classes: int,
    resize: str,
) -> None:
    padded_hw = (4 * mask_hw[0], 4 * mask_hw[1])
    resized_hw = (max(1, padded_hw[0] - padding_hw[0]), max(1, padded_hw[1] - padding_hw[1]))
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_queries, num_classes + 1, generator=rng)
    masks = 4 * torch.randn(num_queries, *mask_hw, generator=rng) + 3 * torch.randn(num_queries, 1, 1, generator=rng)
    assert_equals_oracle((logits, masks), ImageGeometry(original_hw, resized_hw, padded_hw), resize)


@pytest.mark.parametrize("resize", RESIZES)
def test_strips_of_the_plain_way_change_nothing(monkeypatch: pytest.MonkeyPatch, resize: str) -> None:
    mask_hw, geometry = SMALL
    scene = decoder_outputs(1, mask_hw, 15, 40)
    _, whole = both_ways(scene, geometry, resize)
    monkeypatch.setattr(semantic, "_STRIP_FLOATS", 1)  # a row each
    _, in_strips = both_ways(scene, geometry, resize)
    np.testing.assert_array_equal(in_strips.label_map_HW, whole.label_map_HW)
    assert in_strips.infos == whole.infos


@pytest.mark.parametrize("resize", RESIZES)
def test_the_two_resizes_are_not_the_same(resize: str) -> None:
    """Else the tests above could not tell one from the other."""
    mask_hw, geometry = GEOMETRIES["original 4x the padded size"]
    scene = decoder_outputs(2, mask_hw, 20, 40, noise=5.0)
    [other] = set(RESIZES) - {resize}
    found_HW = both_ways(scene, geometry, resize)[0].label_map_HW
    assert (found_HW != both_ways(scene, geometry, other)[0].label_map_HW).any()


@pytest.mark.parametrize("resize", RESIZES)
def test_of_equal_scores_the_lowest_class_wins(resize: str) -> None:
    logits, masks = torch.zeros(3, 5), torch.ones(3, 8, 8)
    for result in both_ways((logits, masks), ImageGeometry((9, 9), (32, 32), (32, 32)), resize):
        assert (result.label_map_HW == 1).all() and [info.class_id for info in result.infos] == [0]


def test_more_than_255_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    scene = torch.randn(20, 401, generator=rng) * 5, torch.randn(20, 16, 16, generator=rng) * 4
    geometry = ImageGeometry((50, 60), (64, 64), (64, 64))
    for result in both_ways(scene, geometry, "masks"):
        assert result.label_map_HW.dtype == np.uint16 and result.label_map_HW.max() > 255
    assert_equals_oracle(scene, geometry, "masks")


def test_several_sure_queries_of_one_class_count_as_a_score_of_one() -> None:
    logits, masks = torch.tensor([[20.0, 0.0, 0.0]] * 3), torch.full((3, 8, 8), 20.0)
    for result in both_ways((logits, masks), ANY, "masks"):
        assert [info.score for info in result.infos] == pytest.approx([1.0], abs=SCORE_ERROR)


@pytest.mark.parametrize("mode", ["reference", "hf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value: float, mode: str) -> None:
    logits, masks = decoder_outputs(0, (16, 16))
    chosen = SemanticSettings.defaults(mode)
    with pytest.raises(ValueError, match="mask logits are not finite"):
        semantic_segments(logits, masks.index_fill(1, torch.tensor([3]), value), ANY, chosen)
    with pytest.raises(ValueError, match="class logits are not finite"):
        semantic_segments(logits.index_fill(1, torch.tensor([3]), value), masks, ANY, chosen)


def test_impossible_settings_are_refused() -> None:
    chosen = SemanticSettings.defaults("reference")
    for wrong in ({"mode": "paper"}, {"resize": "images"}, {"mode": "hf"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            replace(chosen, **wrong)
    assert SemanticSettings.defaults("hf") == SemanticSettings("hf", "scores")


@pytest.mark.parametrize("resize", RESIZES)
def test_warm_up_leaves_nothing_to_compile(resize: str) -> None:
    chosen = SemanticSettings.defaults("reference", resize)
    semantic.warm_up(chosen)
    before = len(semantic.find_classes.__globals__["_fill_classes"].signatures)
    semantic_segments(*decoder_outputs(0, (16, 16)), ImageGeometry((64, 64), (60, 64), (64, 64)), chosen)
    assert before == len(semantic.find_classes.__globals__["_fill_classes"].signatures) > 0
