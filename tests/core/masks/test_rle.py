"""RLE: properties on random maps, byte identity with pycocotools, literal bytes, real strings, refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_core.masks import rle
from tests.support.places import SHARED_DATA

REAL_STRINGS = SHARED_DATA / "coco_rle"

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
label_maps = st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64]).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes, elements=st.integers(0, 4))
)


def blobs(seed: int, height: int, width: int, num_labels: int) -> np.ndarray:
    """A map of rectangles that cover one another, so that runs of all lengths and labels in several parts occur."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    for _ in range(3 * num_labels):
        y, x = rng.integers(0, height), rng.integers(0, width)
        labels[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = rng.integers(0, num_labels)
    return labels


def assert_equals_pycocotools(label_map: np.ndarray) -> None:
    """Every label of the map: bytes, area and box, through the map's runs and through its own mask."""
    coco = pytest.importorskip("pycocotools.mask")
    height, width = label_map.shape
    rles = rle.encode_runs(rle.label_runs(label_map), height, width)
    assert [r.label for r in rles] == [label for label in np.unique(label_map).tolist() if label != 0]
    for r in rles:
        mask = label_map == r.label
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert r.counts == rle.encode_mask(mask) == theirs["counts"]
        assert r.area == rle.counts_area(r.counts) == int(coco.area(theirs))
        assert r.bbox_xywh == rle.counts_bbox_xywh(r.counts, height, width) == tuple(coco.toBbox(theirs).tolist())


@given(label_maps)
@settings(deadline=None)
def test_runs_are_maximal_and_rebuild_the_map(label_map: np.ndarray) -> None:
    runs = rle.label_runs(label_map)
    assert runs.values.dtype == np.int32 and runs.lengths.dtype == np.uint32
    assert runs.lengths.min() > 0 and np.all(runs.values[1:] != runs.values[:-1])
    np.testing.assert_array_equal(rle.runs_to_label_map(runs, *label_map.shape), label_map)


@given(label_maps)
@settings(deadline=None)
def test_encoding_a_map_equals_encoding_each_of_its_masks(label_map: np.ndarray) -> None:
    rles = rle.encode_runs(rle.label_runs(label_map), *label_map.shape)
    assert sum(r.area for r in rles) == np.count_nonzero(label_map)
    for r in rles:
        mask = label_map == r.label
        assert r.counts == rle.encode_mask(mask)
        np.testing.assert_array_equal(rle.decode(r.counts, *mask.shape), mask)
    assert_equals_pycocotools(label_map)


@given(hnp.arrays(bool, shapes))
@settings(deadline=None)
def test_mask_round_trip(mask: np.ndarray) -> None:
    counts = rle.encode_mask(mask)
    np.testing.assert_array_equal(rle.decode(counts, *mask.shape), mask)
    assert rle.counts_area(counts) == mask.sum()


@given(st.lists(st.integers(0, rle.MAX_PIXELS), min_size=1, max_size=30))
@settings(deadline=None)
def test_run_length_round_trip(lengths: list[int]) -> None:
    assert rle.decode_counts(rle.encode_counts(np.array(lengths))).tolist() == lengths


@given(st.binary(max_size=40) | st.text(st.characters(min_codepoint=48, max_codepoint=111)).map(str.encode))
@settings(deadline=None)
def test_any_bytes_decode_to_a_mask_or_are_refused(counts: bytes) -> None:
    try:
        lengths = rle.decode_counts(counts)
    except ValueError as error:
        assert "malformed RLE counts" in str(error)
    else:
        assert lengths.min() >= 0
        np.testing.assert_array_equal(rle.decode_counts(rle.encode_counts(lengths)), lengths)


@pytest.mark.parametrize(
    ("rows", "counts", "bbox_xywh"),
    [
        (["0"], b"1", (0, 0, 0, 0)),
        (["1"], b"01", (0, 0, 1, 1)),
        (["010", "011"], b"221O", (1, 0, 2, 2)),  # the example of the module docstring
        (["000", "000", "000"], b"9", (0, 0, 0, 0)),
        (["111", "111", "111"], b"09", (0, 0, 3, 3)),
        (["1" * 16], b"0`0", (0, 0, 16, 1)),  # 16 is the first length of two characters
        (["0" * 16 + "1"], b"`01", (16, 0, 1, 1)),
        (["10101"], b"011000", (0, 0, 5, 1)),
    ],
)
def test_literal_bytes(rows: list[str], counts: bytes, bbox_xywh: tuple[int, ...]) -> None:
    mask = np.array([[pixel == "1" for pixel in row] for row in rows])
    assert rle.encode_mask(mask) == counts
    assert rle.counts_bbox_xywh(counts, *mask.shape) == bbox_xywh
    np.testing.assert_array_equal(rle.decode(counts, *mask.shape), mask)
    if mask.any():
        (r,) = rle.encode_runs(rle.label_runs(mask.astype(np.int32) * 7), *mask.shape)
        assert r == rle.Rle(label=7, counts=counts, area=int(mask.sum()), bbox_xywh=bbox_xywh)


@pytest.mark.parametrize("shape", [(1, 1), (1, 57), (57, 1), (2, 2), (31, 17), (240, 320)])
def test_pycocotools_identity_on_random_maps(shape: tuple[int, int]) -> None:
    for seed in range(8):
        assert_equals_pycocotools(blobs(seed, *shape, num_labels=9))
        assert_equals_pycocotools(np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8))


@pytest.mark.parametrize("order", ["C", "F"])
def test_pycocotools_identity_on_a_large_image(order: str) -> None:
    """Runs longer than 2**15 and 2**20 pixels; both memory orders of the map."""
    label_map = blobs(0, 3000, 2000, num_labels=6)
    label_map[:, 500:1200] = 5
    assert rle.label_runs(label_map).lengths.max() > 2**20
    assert_equals_pycocotools(np.asarray(label_map, order=order))
    assert_equals_pycocotools(np.full((3000, 2000), 3, np.uint8, order=order))


def test_an_empty_map_has_no_masks() -> None:
    runs = rle.label_runs(np.zeros((3, 4), np.uint8))
    assert rle.encode_runs(runs, 3, 4) == []


def test_labels_may_be_large_or_negative() -> None:
    label_map = np.array([[0, 2**31 - 1], [-5, 2**24]], np.int64)
    rles = rle.encode_runs(rle.label_runs(label_map), 2, 2)
    assert [(r.label, r.area) for r in rles] == [(-5, 1), (2**24, 1), (2**31 - 1, 1)]


def test_real_strings_of_the_coco_api() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    path = REAL_STRINGS / "instances_val2014_fakesegm100_results.json"
    if not path.is_file():
        pytest.skip(f"no real strings at {path}")
    segmentations = [row["segmentation"] for row in json.loads(path.read_text())]
    assert len(segmentations) == 734
    for segmentation in segmentations:
        counts, (height, width) = segmentation["counts"].encode(), segmentation["size"]
        assert rle.encode_counts(rle.decode_counts(counts)) == counts
        assert rle.encode_mask(rle.decode(counts, height, width)) == counts
        assert rle.counts_area(counts) == int(coco.area(segmentation))
        assert rle.counts_bbox_xywh(counts, height, width) == tuple(coco.toBbox(segmentation).tolist())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "empty"),
        (b"22 1", "outside '0' to 'o' at byte 2"),
        (b"22\x00", "outside '0' to 'o'"),
        (b"22\xff", "outside '0' to 'o'"),
        (b"22P", "cut off"),
        (b"PPPPPPP0", "more than 7 characters"),
        (b"O", "below 0"),
        (b"22oooooo7", "above 4294967295"),
        (b"220L", "below 0"),
    ],
)
def test_malformed_counts_are_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode_counts(counts)


@pytest.mark.parametrize("counts", [b"221", b"222O", b"9", b"0"])
def test_counts_of_another_size_are_refused(counts: bytes) -> None:
    for read in (rle.decode, rle.counts_bbox_xywh):
        with pytest.raises(ValueError, match="add up to"):
            read(counts, 2, 3)


def test_inconsistent_runs_are_refused() -> None:
    def runs(values: list[int], lengths: list[int]) -> rle.LabelRuns:
        return rle.LabelRuns(np.array(values, np.int32), np.array(lengths, np.uint32))

    for bad, message in [
        (runs([1, 2], [3]), "equal vectors"),
        (runs([1, 2], [6, 0]), "at least one pixel"),
        (runs([1, 1], [3, 3]), "differ"),
        (runs([1, 2], [3, 4]), "add up to 7"),
        (runs([], []), "add up to 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            rle.encode_runs(bad, 2, 3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2), bool),
        np.full((2, 2), 2**31, np.int64),
    ],
)
def test_maps_that_are_no_label_maps_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"label"):
        rle.label_runs(bad)
