"""Panoptic segments in reference mode: both ways of computing them against a naive oracle; properties; refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_core.config.labels import LabelMap
from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import panoptic_kernel
from m2f_core.inference.panoptic import PanopticResult, SegmentInfo, panoptic_segments
from m2f_core.inference.resize_taps import axis_taps
from m2f_core.inference.settings import FamilyRules, PanopticSettings
from m2f_core.masks import rle
from tests.support.decoder_scenes import NUM_CLASSES, STUFF_CLASS_IDS, decoder_outputs
from tests.support.device_reduction import reduce_as_on_device
from tests.support.geometries import FULL_SIZE
from tests.support.geometries import GEOMETRIES as SHARED_GEOMETRIES

torch.set_num_threads(1)

REFERENCE = PanopticSettings.defaults("reference", STUFF_CLASS_IDS)
KEEPS_ALL = replace(REFERENCE, rules=FamilyRules(winners_keep_all=True))
MARGIN = 1e-5  # of a score or a probability: below this, rounding may decide a pixel
BORDERLINE_SHARE = 1e-5  # of the pixels of all scenes together


class Oracle:
    """The original's panoptic inference, row by row of facts/mask2former.md section 2, with full Q x H x W floats.

    `margin_HW` says how clear each pixel's decision is: the smaller of the lead of the winner's score over the second
    best, and the distance of the winner's probability from the mask threshold.
    """

    def __init__(
        self, logits_QC1: torch.Tensor, masks_Qhw: torch.Tensor, geometry: ImageGeometry, chosen: PanopticSettings
    ) -> None:
        # Row 1: logits to the padded size, crop, original size, sigmoid - for all queries.
        padded = F.interpolate(masks_Qhw[None], size=geometry.padded_hw, mode="bilinear", align_corners=False)
        valid = padded[:, :, : geometry.resized_hw[0], : geometry.resized_hw[1]]
        probs_QHW = F.interpolate(valid, size=geometry.original_hw, mode="bilinear", align_corners=False)[0].sigmoid()

        scores_Q, classes_Q = F.softmax(logits_QC1, dim=-1).max(-1)
        keep_Q = classes_Q.ne(logits_QC1.shape[-1] - 1) & (scores_Q > chosen.score_threshold)
        scores, classes, probs = scores_Q[keep_Q], classes_Q[keep_Q], probs_QHW[keep_Q]

        self.label_map_HW = torch.zeros(geometry.original_hw, dtype=torch.int32)
        self.margin_HW = torch.full(geometry.original_hw, torch.inf)
        self.infos: list[SegmentInfo] = []
        if scores.numel() == 0:
            return
        weighted = scores.view(-1, 1, 1) * probs
        winner_HW = weighted.argmax(0)
        stuff_ids: dict[int, int] = {}
        current_id = 0
        for k in range(scores.numel()):
            class_id = int(classes[k])
            wins = winner_HW == k
            inside = probs[k] >= chosen.mask_threshold  # Row 3: unweighted
            final = wins if chosen.rules.winners_keep_all else wins & inside  # Row 2; MaskFormer's has no such step
            if wins.sum() == 0 or inside.sum() == 0 or final.sum() == 0:
                continue
            if int(wins.sum()) / int(inside.sum()) < chosen.overlap_threshold:  # Row 5
                continue
            if class_id in chosen.fuse_class_ids:  # Row 6
                if class_id in stuff_ids:
                    self.label_map_HW[final] = stuff_ids[class_id]
                    continue
                stuff_ids[class_id] = current_id + 1
            current_id += 1  # Row 4
            self.label_map_HW[final] = current_id
            self.infos.append(SegmentInfo(current_id, class_id, float(scores[k])))

        winner_prob = probs.gather(0, winner_HW[None])[0]
        if not chosen.rules.winners_keep_all:
            self.margin_HW = (winner_prob - chosen.mask_threshold).abs()
        if scores.numel() > 1:
            best_two = weighted.topk(2, dim=0).values
            self.margin_HW = torch.minimum(self.margin_HW, best_two[0] - best_two[1])


def both_ways(
    monkeypatch: pytest.MonkeyPatch,
    logits: torch.Tensor,
    masks: torch.Tensor,
    geometry: ImageGeometry,
    chosen: PanopticSettings,
) -> tuple[PanopticResult, PanopticResult]:
    """The result by the numba kernel, and by the torch way that other devices take."""
    [plain] = reduce_as_on_device([(logits, masks)], [geometry], chosen)
    return panoptic_segments(logits, masks, geometry, chosen), plain


def same_rows(ours: tuple[SegmentInfo, ...], expected: list[SegmentInfo]) -> bool:
    """Ids and classes equal, scores equal to rounding (softmax of Q rows or of all at once)."""
    return [(i.segment_id, i.class_id) for i in ours] == [(i.segment_id, i.class_id) for i in expected] and all(
        abs(a.score - b.score) < 1e-6 for a, b in zip(ours, expected, strict=True)
    )


def assert_equals_oracle(
    monkeypatch: pytest.MonkeyPatch,
    scene: tuple[torch.Tensor, torch.Tensor],
    geometry: ImageGeometry,
    chosen: PanopticSettings = REFERENCE,
) -> tuple[int, int]:
    """Plain way: equal. Kernel: equal but for pixels that rounding decides. Returns their number and all pixels'."""
    oracle = Oracle(*scene, geometry, chosen)
    by_kernel, plain = both_ways(monkeypatch, *scene, geometry, chosen)
    expected = oracle.label_map_HW.numpy()
    np.testing.assert_array_equal(plain.label_map_HW, expected)
    assert same_rows(plain.infos, oracle.infos) and same_rows(by_kernel.infos, oracle.infos)
    differing = by_kernel.label_map_HW != expected
    assert np.all(oracle.margin_HW.numpy()[differing] < MARGIN), "the kernel decided a clear pixel otherwise"
    return int(differing.sum()), differing.size


GEOMETRIES = {**SHARED_GEOMETRIES, "coco portrait": ((84, 50), ImageGeometry((160, 107), (300, 200), (336, 200)))}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_ways_equal_the_oracle_in_every_geometry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask_hw, geometry = GEOMETRIES[name]
    differing = pixels = 0
    for seed, num_kept in enumerate([1, 2, 7, 20, 40]):
        found = assert_equals_oracle(monkeypatch, decoder_outputs(seed, mask_hw, num_kept, 60), geometry)
        differing, pixels = differing + found[0], pixels + found[1]
    assert differing <= max(1, BORDERLINE_SHARE * pixels)


@pytest.mark.thorough
def test_both_ways_equal_the_oracle_at_the_size_of_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    mask_hw, geometry = FULL_SIZE
    differing, pixels = assert_equals_oracle(monkeypatch, decoder_outputs(3, mask_hw, 20, 60), geometry)
    assert differing <= BORDERLINE_SHARE * pixels


@pytest.mark.parametrize(
    "chosen",
    [
        replace(REFERENCE, fuse_class_ids=frozenset()),
        replace(REFERENCE, score_threshold=0.0),
        replace(REFERENCE, overlap_threshold=0.0),
        replace(REFERENCE, overlap_threshold=1.0),
        replace(REFERENCE, mask_threshold=0.2),
        replace(REFERENCE, mask_threshold=0.9),
        replace(REFERENCE, mask_threshold=0.0),
        replace(REFERENCE, mask_threshold=1.0),
        KEEPS_ALL,
        replace(KEEPS_ALL, overlap_threshold=0.0, score_threshold=0.0),
        replace(KEEPS_ALL, mask_threshold=0.9),
    ],
)
def test_both_ways_equal_the_oracle_for_every_setting(
    chosen: PanopticSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask_hw, geometry = GEOMETRIES["padding in both axes"]
    pixels = differing = 0
    for seed in range(4):
        found = assert_equals_oracle(monkeypatch, decoder_outputs(seed, mask_hw, 15, 60), geometry, chosen)
        differing, pixels = differing + found[0], pixels + found[1]
    assert differing <= max(1, BORDERLINE_SHARE * pixels)


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_noisy_masks_and_smooth_masks(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise makes most tiles contested; without any, most are filled."""
    geometry = ImageGeometry((300, 200), (240, 160), (256, 160))
    assert_equals_oracle(monkeypatch, decoder_outputs(3, (64, 40), 20, 60, noise), geometry)


def test_winners_that_keep_all_leave_no_pixel_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel has a segment, if no query is dropped; with the mask threshold some have none."""
    scene, geometry = decoder_outputs(2, (64, 40), 12, 60), ImageGeometry((300, 200), (240, 160), (256, 160))
    chosen = replace(KEEPS_ALL, overlap_threshold=0.0)
    for result in both_ways(monkeypatch, *scene, geometry, chosen):
        assert result.label_map_HW.all()
    for result in both_ways(monkeypatch, *scene, geometry, replace(chosen, rules=FamilyRules())):
        assert not result.label_map_HW.all()


@given(
    seed=st.integers(0, 2**31),
    mask_hw=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    original_hw=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    padding_hw=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    num_kept=st.integers(0, 9),
    chosen=st.sampled_from([REFERENCE, KEEPS_ALL]),
)
@settings(deadline=None, max_examples=60)
def test_random_geometries_equal_the_oracle(
    seed: int,
    mask_hw: tuple[int, int],
    original_hw: tuple[int, int],
    padding_hw: tuple[int, int],
    num_kept: int,
    chosen: PanopticSettings,
) -> None:
    padded_hw = (4 * mask_hw[0], 4 * mask_hw[1])
    resized_hw = (max(1, padded_hw[0] - padding_hw[0]), max(1, padded_hw[1] - padding_hw[1]))
    geometry = ImageGeometry(original_hw, resized_hw, padded_hw)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert_equals_oracle(monkeypatch, decoder_outputs(seed, mask_hw, num_kept, 16), geometry, chosen)


def test_taps_are_the_two_interpolations() -> None:
    """The composed weights, written out as a matrix, do to random numbers what PyTorch does in two steps."""
    for num_low, num_padded, num_resized, num_original in [
        (200, 800, 750, 480),
        (336, 1344, 1333, 1920),
        (50, 32, 30, 9),
    ]:
        taps = axis_taps(num_low, num_padded, num_resized, num_original)
        values = torch.randn(num_low, generator=torch.Generator().manual_seed(0))
        padded = F.interpolate(values[None, None, :, None], size=(num_padded, 1), mode="bilinear")
        expected = F.interpolate(padded[:, :, :num_resized], size=(num_original, 1), mode="bilinear")[0, 0, :, 0]
        ours = (taps.weights * values.numpy()[taps.indices]).sum(1)
        np.testing.assert_allclose(ours, expected.numpy(), atol=2e-6)
        np.testing.assert_allclose(taps.weights.sum(1), 1, atol=1e-6)
        assert taps.weights.min() >= 0


def test_kernel_sigmoid_is_accurate_and_saturates() -> None:
    values = np.concatenate([np.linspace(-120, 120, 100_001), [0.0, -1e-30, 3e38, -3e38]]).astype(np.float32)
    out = np.empty_like(values)
    panoptic_kernel._sigmoids(values, out, np.empty(values.size, np.int32))
    expected = 1 / (1 + np.exp(-values.astype(np.float64).clip(-700, 700)))
    np.testing.assert_allclose(out, expected, atol=1e-37, rtol=4e-7)


def test_one_stuff_class_becomes_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = decoder_outputs(0, (40, 40), 12, 40)
    confident = logits[:, :-1].max(-1).values > logits[:, -1]
    logits[confident, 90] = 30.0
    geometry = ImageGeometry((150, 160), (160, 160), (160, 160))
    assert_equals_oracle(monkeypatch, (logits, masks), geometry)
    result = panoptic_segments(logits, masks, geometry, REFERENCE)
    assert [(info.segment_id, info.class_id) for info in result.infos] == [(1, 90)]
    assert set(np.unique(result.label_map_HW)) <= {0, 1}


def test_of_equal_queries_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same score and same mask, different class: argmax takes the first, so the second has no pixel."""
    logits = torch.zeros(2, NUM_CLASSES + 1)
    logits[0, 7], logits[1, 8] = 30.0, 30.0
    scores = logits.softmax(-1).max(-1).values
    assert scores[0] == scores[1]
    masks = decoder_outputs(6, (40, 48), 1, 1)[1].repeat(2, 1, 1)
    geometry = ImageGeometry((140, 180), (150, 192), (160, 192))
    for result in both_ways(monkeypatch, logits, masks, geometry, REFERENCE):
        assert result.num_kept_queries == 2
        assert [(info.segment_id, info.class_id) for info in result.infos] == [(1, 7)]


def test_a_query_that_wins_only_outside_its_mask_is_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strong query takes the weak one's mask; elsewhere the weak one wins, but with a probability under 0.5."""
    logits = torch.zeros(2, NUM_CLASSES + 1)
    logits[0, 7], logits[1, 8] = 12.0, 8.0
    masks = torch.tensor([-8.0, -3.0])[:, None, None].repeat(1, 16, 16)
    masks[:, :, :4] = torch.tensor([5.0, 1.0])[:, None, None]
    geometry = ImageGeometry((64, 64), (64, 64), (64, 64))
    for result in both_ways(monkeypatch, logits, masks, geometry, REFERENCE):
        assert [(info.segment_id, info.class_id) for info in result.infos] == [(1, 7)]
        assert (
            result.num_kept_queries == 2 and result.label_map_HW[:, :12].all() and not result.label_map_HW[:, 20:].any()
        )


def test_order_of_queries_changes_ids_only() -> None:
    logits, masks = decoder_outputs(5, (64, 64), 20, 60)
    geometry = ImageGeometry((200, 250), (205, 256), (256, 256))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    first = panoptic_segments(logits, masks, geometry, REFERENCE)
    second = panoptic_segments(logits[order], masks[order], geometry, REFERENCE)
    partner = dict(zip(first.label_map_HW.flat, second.label_map_HW.flat, strict=True))
    np.testing.assert_array_equal(np.vectorize(partner.get)(first.label_map_HW), second.label_map_HW)
    classes = {info.segment_id: info.class_id for info in second.infos}
    assert {i.segment_id: i.class_id for i in first.infos} == {i: classes[partner[i]] for i in partner if i}


def test_map_and_rows_agree_and_the_map_is_ready_for_rle() -> None:
    mask_hw, geometry = FULL_SIZE
    result = panoptic_segments(*decoder_outputs(2, mask_hw), geometry, REFERENCE)
    assert result.label_map_HW.shape == geometry.original_hw
    assert result.label_map_HW.flags.f_contiguous and result.label_map_HW.dtype == np.uint8
    rles = rle.encode_runs(rle.label_runs(result.label_map_HW), *geometry.original_hw)
    assert [r.label for r in rles] == [info.segment_id for info in result.infos] == list(range(1, len(rles) + 1))


@pytest.mark.parametrize("mode", ["reference", "hf"])
def test_no_kept_query_is_all_void(mode: str) -> None:
    geometry = ImageGeometry((12, 34), (32, 32), (32, 32))
    result = panoptic_segments(*decoder_outputs(0, (8, 8), 0), geometry, PanopticSettings.defaults(mode))
    assert result.infos == () and result.num_kept_queries == 0
    assert result.label_map_HW.shape == (12, 34) and not result.label_map_HW.any()


def test_more_queries_than_a_byte_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = decoder_outputs(1, (48, 48), 300, 400)
    geometry = ImageGeometry((192, 180), (192, 180), (192, 192))
    assert_equals_oracle(monkeypatch, scene, geometry, replace(REFERENCE, overlap_threshold=0.0))
    result = panoptic_segments(*scene, geometry, REFERENCE)
    assert result.num_kept_queries > 255 and result.label_map_HW.dtype == np.uint16


def test_half_precision_and_strided_masks_are_accepted() -> None:
    logits, masks = decoder_outputs(0, (32, 32))
    geometry = ImageGeometry((100, 100), (128, 128), (128, 128))
    strided = masks.transpose(1, 2).contiguous().transpose(1, 2)
    expected = panoptic_segments(logits, masks, geometry, REFERENCE)
    np.testing.assert_array_equal(
        panoptic_segments(logits, strided, geometry, REFERENCE).label_map_HW, expected.label_map_HW
    )
    half = panoptic_segments(logits.bfloat16(), masks.bfloat16(), geometry, REFERENCE)
    assert np.mean(half.label_map_HW == expected.label_map_HW) > 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    logits, masks = decoder_outputs(0, (16, 16))
    geometry = ImageGeometry((64, 64), (64, 64), (64, 64))
    with pytest.raises(ValueError, match="mask logits are not finite"):
        panoptic_segments(logits, masks.index_fill(1, torch.tensor([3]), value), geometry, REFERENCE)
    with pytest.raises(ValueError, match="class logits are not finite"):
        panoptic_segments(logits.index_fill(1, torch.tensor([3]), value), masks, geometry, REFERENCE)


def test_impossible_inputs_are_refused() -> None:
    logits, masks = decoder_outputs(0, (16, 16))
    with pytest.raises(ValueError, match="disagree"):
        panoptic_segments(logits[:-1], masks, ImageGeometry((64, 64), (64, 64), (64, 64)), REFERENCE)
    with pytest.raises(ValueError, match="within padded size"):
        panoptic_segments(logits, masks, ImageGeometry((64, 64), (65, 64), (64, 64)), REFERENCE)
    for wrong in ({"mode": "paper"}, {"score_threshold": 1.5}, {"overlap_threshold": -0.1}, {"mask_threshold": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(REFERENCE, **wrong)


def test_defaults_of_the_modes() -> None:
    fused = frozenset({90})
    assert PanopticSettings.defaults("reference", fused) == PanopticSettings("reference", 0.8, 0.8, 0.5, fused)
    assert PanopticSettings.defaults("hf") == PanopticSettings("hf", 0.5, 0.8, 0.5, frozenset())
    assert NUM_CLASSES - 1 in STUFF_CLASS_IDS


@pytest.mark.parametrize("name", ["coco", "ade20k", "cityscapes", "mapillary"])
def test_thresholds_are_those_of_the_dataset(name):
    """The original's configs have OBJECT_MASK_THRESHOLD 0.8, that of Mapillary Vistas 0.0."""
    labels = LabelMap.of_dataset(f"{name}-panoptic")
    # As after a training, which numbers things first and keeps the files' names.
    trained = LabelMap.from_coco_categories([{**entry, "name": entry["name"].upper()} for entry in labels.to_list()])
    for of_checkpoint in (labels, trained):
        reference = PanopticSettings.for_labels("reference", of_checkpoint)
        score = 0.0 if name == "mapillary" else 0.8
        assert reference == PanopticSettings("reference", score, 0.8, 0.5, of_checkpoint.stuff_class_ids)
        hf = PanopticSettings.for_labels("hf", of_checkpoint)
        assert hf == PanopticSettings.defaults("hf", of_checkpoint.stuff_class_ids)
    fewer = LabelMap(labels.categories[:-1])
    assert PanopticSettings.for_labels("reference", fewer).score_threshold == 0.8
