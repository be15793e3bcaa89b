"""Training targets: properties on random maps, COCO ground truth of both kinds against pycocotools, refusals.

Legend: N targets; H W pixels.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from m2f_core.config.labels import LabelMap
from m2f_core.masks import rle
from m2f_core.masks.panoptic_png import panoptic_ids
from m2f_core.training.targets import (
    annotation_mask,
    instance_targets,
    map_targets,
    pad_masks,
    panoptic_targets,
)

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)
maps = st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64]).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes, elements=st.integers(0, 5))
)


@pytest.fixture(scope="module")
def coco_things(shared_data: Path) -> Path:
    return shared_data / "coco_things"


def to_png(ids_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as the COCO panoptic API writes ids."""
    return np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], axis=-1).astype(np.uint8)


# Segmentation maps


@given(maps, st.none() | st.integers(0, 5))
def test_masks_divide_the_map_among_its_values(map_HW: np.ndarray, ignore_index: int | None) -> None:
    masks_NHW, class_ids_N = map_targets(map_HW, ignore_index=ignore_index)
    assert masks_NHW.dtype == torch.bool and class_ids_N.dtype == torch.int64
    assert masks_NHW.shape == (len(class_ids_N), *map_HW.shape)
    assert class_ids_N.tolist() == sorted(set(map_HW.ravel().tolist()) - {ignore_index})
    counted = map_HW != (-1 if ignore_index is None else ignore_index)
    np.testing.assert_array_equal(masks_NHW.sum(0).numpy(), counted)
    rebuilt = (masks_NHW * class_ids_N[:, None, None]).sum(0).numpy()
    np.testing.assert_array_equal(rebuilt[counted], map_HW[counted])


@given(maps, st.dictionaries(st.integers(0, 5), st.integers(0, 3), min_size=6, max_size=6))
def test_instances_of_one_class_stay_separate(map_HW: np.ndarray, classes: dict[int, int]) -> None:
    by_instance = map_targets(map_HW)
    masks_NHW, class_ids_N = map_targets(map_HW, classes)
    assert torch.equal(masks_NHW, by_instance.mask_labels)
    assert class_ids_N.tolist() == [classes[i] for i in by_instance.class_labels.tolist()]


@given(maps)
def test_reduced_labels_count_from_one_and_zero_is_background(map_HW: np.ndarray) -> None:
    reduced = map_targets(map_HW, ignore_index=255, do_reduce_labels=True)
    plain = map_targets(map_HW, ignore_index=0)
    assert torch.equal(reduced.mask_labels, plain.mask_labels)
    assert torch.equal(reduced.class_labels, plain.class_labels - 1)


def test_reduced_labels_look_instances_up_as_they_were() -> None:
    map_HW = np.array([[0, 4, 9]], np.uint8)
    masks_NHW, class_ids_N = map_targets(map_HW, {4: 20, 9: 1}, ignore_index=255, do_reduce_labels=True)
    assert class_ids_N.tolist() == [19, 0]
    assert masks_NHW.tolist() == [[[False, True, False]], [[False, False, True]]]


def test_nothing_but_ignored_pixels_are_no_targets() -> None:
    masks_NHW, class_ids_N = map_targets(np.full((4, 6), 255, np.uint8), ignore_index=255)
    assert masks_NHW.shape == (0, 4, 6) and masks_NHW.dtype == torch.bool
    assert class_ids_N.shape == (0,) and class_ids_N.dtype == torch.int64


@pytest.mark.parametrize("mode", ["L", "P", "I", "I;16"])
def test_maps_may_be_images(mode: str) -> None:
    values = np.array([[0, 7], [7, 200]])
    dtype = {"L": np.uint8, "P": np.uint8, "I": np.int32, "I;16": np.uint16}[mode]
    image = Image.fromarray(values.astype(dtype))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    assert image.mode == mode
    expected = map_targets(values)
    for map_ in (image, torch.from_numpy(values), values[None]):
        masks_NHW, class_ids_N = map_targets(map_)
        assert torch.equal(masks_NHW, expected.mask_labels) and torch.equal(class_ids_N, expected.class_labels)


@pytest.mark.parametrize(
    ("map_", "options", "message"),
    [
        (np.full((2, 2), 0.5), {}, "must hold whole numbers"),
        (np.full((2, 2), np.nan), {}, "must hold whole numbers"),
        (np.full((2, 2), np.inf), {}, "must hold whole numbers"),
        (np.full((2, 2), 2.0**40), {}, "int32"),
        (np.zeros((2, 2, 3), np.uint8), {}, "panoptic_ids"),
        (np.zeros((0, 2), np.uint8), {}, "shape"),
        (np.full((2, 2), 2**31), {}, "int32"),
        (np.full((2, 2), -1), {}, "class -1"),
        (np.ones((2, 2), np.uint8), {"do_reduce_labels": True}, "ignore_index"),
        (np.full((2, 2), 7), {"instance_id_to_semantic_id": {1: 1}}, "instance 7 is not in"),
        (
            np.full((2, 2), 7),
            {"instance_id_to_semantic_id": {6: 1}, "ignore_index": 255, "do_reduce_labels": True},
            "instance 7 is not in",
        ),
    ],
)
def test_broken_maps_are_refused(map_: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_targets(map_, **options)


# Padding


@given(maps, st.integers(0, 9), st.integers(0, 9))
def test_padding_belongs_to_no_mask(map_HW: np.ndarray, bottom: int, right: int) -> None:
    masks_NHW, _ = map_targets(map_HW)
    height, width = map_HW.shape
    padded_NHW = pad_masks(masks_NHW, (height + bottom, width + right))
    assert padded_NHW.dtype == torch.bool and padded_NHW.shape == (len(masks_NHW), height + bottom, width + right)
    assert torch.equal(padded_NHW[:, :height, :width], masks_NHW)
    assert padded_NHW.sum() == masks_NHW.sum()


def test_padding_no_masks() -> None:
    assert pad_masks(torch.zeros((0, 2, 3), dtype=torch.bool), (4, 8)).shape == (0, 4, 8)


# COCO panoptic


@given(hnp.arrays(np.int64, shapes, elements=st.integers(0, 2**24 - 1)))
def test_panoptic_ids_are_read_back(ids_HW: np.ndarray) -> None:
    ids = panoptic_ids(to_png(ids_HW))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, ids_HW)


@given(hnp.arrays(np.int64, shapes, elements=st.sampled_from([0, 1, 256, 65_536, 70_000])), st.data())
def test_panoptic_targets_are_the_segments_without_crowds(ids_HW: np.ndarray, data: st.DataObject) -> None:
    segments = [
        {"id": i, "category_id": data.draw(st.sampled_from([10, 20])), "iscrowd": data.draw(st.integers(0, 1))}
        for i in data.draw(st.permutations([1, 256, 65_536, 70_000]))
    ]
    masks_NHW, class_ids_N = panoptic_targets(to_png(ids_HW), segments, {10: 0, 20: 1})
    kept = sorted((s for s in segments if not s["iscrowd"] and (ids_HW == s["id"]).any()), key=lambda s: s["id"])
    assert class_ids_N.tolist() == [{10: 0, 20: 1}[s["category_id"]] for s in kept]
    assert masks_NHW.shape == (len(kept), *ids_HW.shape)
    for mask_HW, segment in zip(masks_NHW, kept, strict=True):
        np.testing.assert_array_equal(mask_HW.numpy(), ids_HW == segment["id"])


def test_panoptic_targets_of_real_files(coco_things: Path) -> None:
    content = json.loads((coco_things / "panoptic.json").read_text(encoding="utf-8"))
    class_ids = LabelMap.from_coco_categories(content["categories"]).class_id_of_category
    category_ids = {class_id: category_id for category_id, class_id in class_ids.items()}
    assert len(content["annotations"]) == 13
    for annotation in content["annotations"]:
        png = Image.open(coco_things / "panoptic" / annotation["file_name"])
        masks_NHW, class_ids_N = panoptic_targets(png, annotation["segments_info"], class_ids)
        segments = sorted(annotation["segments_info"], key=lambda s: s["id"])
        assert masks_NHW.sum((1, 2)).tolist() == [s["area"] for s in segments]
        assert [category_ids[i] for i in class_ids_N.tolist()] == [s["category_id"] for s in segments]
        assert (masks_NHW.sum(0) <= 1).all()


SEGMENT = {"id": 5, "category_id": 10, "iscrowd": 0}


@pytest.mark.parametrize(
    ("png", "segments", "message"),
    [
        (np.zeros((2, 2), np.uint8), [SEGMENT], r"\[H, W, 3\]"),
        (np.zeros((2, 2, 4), np.uint8), [SEGMENT], r"\[H, W, 3\]"),
        (np.zeros((2, 2, 3), np.int32), [SEGMENT], "uint8"),
        (to_png(np.full((2, 2), 6)), [SEGMENT], "segment 6, which is not in"),
        (to_png(np.full((2, 2), 5)), [SEGMENT, SEGMENT], "must differ"),
        (to_png(np.full((2, 2), 0)), [{**SEGMENT, "id": 0}], "void"),
        (to_png(np.full((2, 2), 5)), [{**SEGMENT, "category_id": 11}], "segment 5 has category 11"),
        (to_png(np.full((2, 2), 5)), [{"id": 5}], "segment 5 has no category_id"),
        (to_png(np.full((2, 2), 5)), [{"category_id": 10}], "a segment has no id"),
    ],
)
def test_broken_panoptic_annotations_are_refused(png: np.ndarray, segments: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panoptic_targets(png, segments, {10: 0})


# COCO instances


def test_instance_targets_of_real_files(coco_things: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    content = json.loads((coco_things / "instances.json").read_text(encoding="utf-8"))
    class_ids = LabelMap.of_dataset("coco-instance").class_id_of_category
    num_overlaps = 0
    for image in content["images"]:
        height, width = image["height"], image["width"]
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        masks_NHW, class_ids_N = instance_targets(annotations, height, width, class_ids)
        assert masks_NHW.shape == (len(annotations), height, width) and masks_NHW.dtype == torch.bool
        assert class_ids_N.tolist() == [class_ids[a["category_id"]] for a in annotations]
        for mask_HW, annotation in zip(masks_NHW.numpy(), annotations, strict=True):
            theirs = coco.merge(coco.frPyObjects(annotation["segmentation"], height, width))
            assert rle.encode_mask(mask_HW) == theirs["counts"]
        num_overlaps += int((masks_NHW.sum(0) > 1).sum())
    assert num_overlaps > 0


@given(hnp.arrays(bool, shapes))
def test_all_forms_of_a_segmentation_give_one_mask(mask_HW: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    size = list(mask_HW.shape)
    counts = rle.encode_mask(mask_HW)
    run_lengths = rle.decode_counts(counts).tolist()
    for form in (counts, counts.decode(), run_lengths, tuple(run_lengths)):
        np.testing.assert_array_equal(annotation_mask({"size": size, "counts": form}, *size), mask_HW)
    theirs = coco.frPyObjects({"size": size, "counts": run_lengths}, *size)
    np.testing.assert_array_equal(coco.decode(theirs), mask_HW)


BOX = {"id": 1, "category_id": 10, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}


def test_crowds_and_objects_without_pixels_are_no_targets() -> None:
    annotations = [
        {**BOX, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [0, 48]}},
        {**BOX, "segmentation": [[1.0, 1.0, 1.1, 1.0, 1.1, 1.1]]},
        {**BOX, "category_id": 20},
    ]
    masks_NHW, class_ids_N = instance_targets(annotations, 6, 8, {10: 0, 20: 1})
    assert masks_NHW.shape == (1, 6, 8) and class_ids_N.tolist() == [1]
    assert masks_NHW[0, :4, :4].all() and masks_NHW.sum() == 16
    masks_NHW, class_ids_N = instance_targets(annotations[:2], 6, 8, {10: 0})
    assert masks_NHW.shape == (0, 6, 8) and class_ids_N.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 11}, "annotation 1 has category 11"),
        ({"segmentation": []}, "annotation 1: a segmentation must be"),
        ({"segmentation": None}, "annotation 1: a segmentation must be"),
        ({"segmentation": "221O"}, "annotation 1: a segmentation must be"),
        ({"segmentation": {"counts": [48]}}, "annotation 1: a segmentation must be"),
        ({"segmentation": [[0, 0, 4, 4]]}, "annotation 1: a polygon must have"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"annotation 1: the RLE has size \[8, 6\]"),
        ({"segmentation": {"size": [6, 8], "counts": [47]}}, "annotation 1: runs add up to 47"),
        ({"segmentation": {"size": [6, 8], "counts": [47.0, 1.0]}}, "annotation 1: the counts of an uncompressed"),
        ({"segmentation": {"size": [6, 8], "counts": []}}, "annotation 1: run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": [10**30]}}, "annotation 1: run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": [2**32]}}, "annotation 1: run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": [2**32 - 1, 1]}}, "annotation 1: runs add up to 4294967296"),
        ({"segmentation": {"size": [6, 8], "counts": "oooooo3" * 9}}, "annotation 1: malformed RLE"),
        ({"segmentation": [[0, 0, 10**400, 4, 4, 4]]}, "annotation 1: a polygon must be a flat list of numbers"),
        ({"segmentation": {"size": [6, 8], "counts": "~~"}}, "annotation 1: malformed RLE"),
        ({"segmentation": {"size": [6, 8], "counts": "é"}}, "annotation 1: malformed RLE"),
        ({"segmentation": {"size": [6, 8], "counts": None}}, "annotation 1: the counts of an RLE"),
        ({"segmentation": {"size": 48, "counts": [48]}}, "annotation 1: the RLE has size 48"),
    ],
    ids=str,
)
def test_broken_annotations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instance_targets([{**BOX, **changes}], 6, 8, {10: 0})
    with pytest.raises(ValueError, match="annotation 1 has no segmentation"):
        instance_targets([{"id": 1, "category_id": 10}], 6, 8, {10: 0})
