"""Rows of the tables: what the segments say, checked against pycocotools; broken rows stop the run."""

import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from m2f_core.config.labels import Category
from m2f_core.inference.panoptic import PanopticResult, SegmentInfo
from m2f_core.masks.rle import Rle, counts_area, counts_bbox_xywh, encode_mask
from m2f_core.masks.run_map import RunMap
from pipeline.commit.encode import EncodeSpec, _overlap, check_tables, encode_shard
from pipeline.errors import ErrorCode, ImageError, InvalidResultError
from pipeline.schema import FETCHED, IMAGES, SEGMENTED, SEGMENTS
from pipeline.segment.actor import SegmentedImage, segmented_table
from pipeline.segment.postprocess import FoundSegment, found_segments

CATEGORIES = tuple(Category(i, 10 * i + 1, f"c{i}", i % 2 == 0) for i in range(4))
CREATED = datetime(2026, 11, 25, 2, 0, 0, 123456, tzinfo=UTC)
SPEC = EncodeSpec("run1", CREATED, "f00d", 1, "panoptic", CATEGORIES)
MAPS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 4))


def fetched(count, errors=None):
    rows = [
        {
            "image_key": f"file:///{i}.jpg",
            "etag": "e",
            "size_bytes": 3,
            "reason": "new",
            "error_code": (errors or {}).get(i),
            "error_message": "why" if i in (errors or {}) else None,
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in FETCHED if f.name != "data"]))


def run_map(label_map_HW) -> RunMap:
    return RunMap.from_transposed(np.ascontiguousarray(label_map_HW.T), int(label_map_HW.max()))


def segmented(label_map):
    infos = tuple(SegmentInfo(int(i), int(i) % 4, 0.5) for i in np.unique(label_map) if i)
    return SegmentedImage(*label_map.shape, found_segments(PanopticResult(run_map(label_map), infos, len(infos))))


def of_masks(*masks, ids=None):
    """An image of given masks [H, W], all of class 0."""
    rles = []
    for mask in masks:
        counts = encode_mask(mask)
        rles.append(Rle(1, counts, counts_area(counts), counts_bbox_xywh(counts, *mask.shape)))
    numbers = ids or range(1, len(masks) + 1)
    segments = tuple(FoundSegment(n, 0, 0.5, rle) for n, rle in zip(numbers, rles, strict=True))
    return SegmentedImage(*masks[0].shape, segments)


def segment_rows(image, task="panoptic"):
    return encode_shard(0, segmented_table(fetched(1), [image]), replace(SPEC, task=task))["segments"].to_pylist()


@given(st.lists(MAPS, min_size=1, max_size=4))
def test_rows_are_what_pycocotools_makes_of_the_map(maps):
    images = segmented_table(fetched(len(maps)), [segmented(m) for m in maps])
    assert images.schema.equals(SEGMENTED)
    tables = encode_shard(7, images, SPEC)
    assert tables["images"].schema.equals(IMAGES) and tables["segments"].schema.equals(SEGMENTS)
    rows = tables["segments"].to_pylist()
    expected = []
    for index, label_map in enumerate(maps):
        for label in np.unique(label_map[label_map > 0]):
            mask = coco.encode(np.asfortranarray(label_map == label, dtype=np.uint8))
            category = CATEGORIES[label % 4]
            expected.append(
                {
                    "image_key": f"file:///{index}.jpg",
                    "segment_id": label,
                    "category_id": category.category_id,
                    "category_name": category.name,
                    "isthing": category.isthing,
                    "score": 0.5,
                    "area": int(coco.area(mask)),
                    "bbox": coco.toBbox(mask).tolist(),
                    "segmentation": {"size": list(label_map.shape), "counts": mask["counts"].decode()},
                    "run_id": "run1",
                    "shard": 7,
                    "embedding": None,
                }
            )
    assert rows == expected
    assert tables["images"].column("num_segments").to_pylist() == [len(np.unique(m[m > 0])) for m in maps]


def test_embeddings_are_lists_of_numbers():
    halves = [np.array(values, "<f2") for values in ([1.5, -2.0, 65504.0], [0.1, 0.2, 0.3])]
    label_map = np.array([[1, 2]], np.uint8)
    found = tuple(replace(s, embedding=h.tobytes()) for s, h in zip(segmented(label_map).segments, halves, strict=True))
    images = segmented_table(fetched(2), [replace(segmented(label_map), segments=found), segmented(label_map)])
    embeddings = encode_shard(0, images, SPEC)["segments"]["embedding"].to_pylist()
    assert embeddings == [*(half.astype(float).tolist() for half in halves), None, None]


def test_no_python_object_is_made_of_a_number_of_an_embedding():
    """They cost more time and memory than all else of the rows."""
    numbers, label_map = 50_000, np.array([[1, 2]], np.uint8)
    half = np.ones(numbers, "<f2").tobytes()
    found = tuple(replace(s, embedding=half) for s in segmented(label_map).segments)
    images = segmented_table(fetched(4), [replace(segmented(label_map), segments=found)] * 4)
    tracemalloc.start()
    tables = encode_shard(0, images, SPEC)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tables["segments"].num_rows == 8
    assert peak < 8 * numbers * 16  # a float and its place in a list are 32 bytes


def test_failed_images_have_a_row_and_no_segments():
    label_map = np.ones((2, 3), np.uint8)
    results = [None, ImageError(ErrorCode.DECODE_FAILED, "cut off"), segmented(label_map)]
    tables = encode_shard(0, segmented_table(fetched(3, {0: "not_found"}), results), SPEC)
    rows = tables["images"].to_pylist()
    assert [(r["status"], r["error_code"], r["error_message"], r["num_segments"]) for r in rows] == [
        ("failed", "not_found", "why", 0),
        ("failed", "decode_failed", "cut off", 0),
        ("ok", None, None, 1),
    ]
    assert [r["height"] for r in rows] == [None, None, 2]


def test_a_shard_where_everything_failed_has_an_empty_segments_table_with_the_schema():
    tables = encode_shard(0, segmented_table(fetched(1, {0: "not_found"}), [None]), SPEC)
    assert tables["segments"].num_rows == 0 and tables["segments"].schema.equals(SEGMENTS)


def test_repeated_ids_of_hf_mode_give_a_row_each():
    infos = (SegmentInfo(1, 0, 0.9), SegmentInfo(1, 3, 0.6))
    segments = found_segments(PanopticResult(run_map(np.ones((2, 2), np.uint8)), infos, 2))
    rows = segment_rows(SegmentedImage(2, 2, segments))
    assert [(r["segment_id"], r["category_id"]) for r in rows] == [(1, 1), (1, 31)]
    assert rows[0]["segmentation"] == rows[1]["segmentation"]


LEFT, ALL, RIGHT = (np.array([row] * 2, bool) for row in ([1, 0, 0], [1, 1, 1], [0, 1, 1]))


def test_a_mask_travels_once_however_many_segments_have_it():
    image = segmented_table(fetched(1), [of_masks(LEFT, ALL, LEFT, LEFT)])
    assert len(image.column("masks")[0]) == 2
    rows = encode_shard(0, image, replace(SPEC, task="instance"))["segments"].to_pylist()
    assert [coco.decode(row["segmentation"]).tolist() for row in rows] == [m.tolist() for m in (LEFT, ALL, LEFT, LEFT)]


def test_only_instances_may_overlap():
    assert [row["area"] for row in segment_rows(of_masks(LEFT, ALL), "instance")] == [2, 6]
    for task in ("panoptic", "semantic"):
        assert [row["area"] for row in segment_rows(of_masks(LEFT, RIGHT), task)] == [2, 4]
        with pytest.raises(InvalidResultError, match="share pixels"):
            segment_rows(of_masks(LEFT, ALL), task)


def test_a_semantic_map_has_no_holes():
    """Also where everything is one hole, but not where the image has failed."""
    for image in (of_masks(RIGHT), SegmentedImage(2, 3, ())):
        assert len(segment_rows(image, "panoptic")) == len(image.segments)
        with pytest.raises(InvalidResultError, match=r"cover \d of 6 pixels"):
            segment_rows(image, "semantic")
    failed = segmented_table(fetched(1, {0: "not_found"}), [None])
    assert encode_shard(0, failed, replace(SPEC, task="semantic"))["segments"].num_rows == 0


def test_a_semantic_map_of_some_classes_may_have_holes():
    image = segmented_table(fetched(1, {}), [of_masks(RIGHT)])
    of_some = replace(SPEC, task="semantic", all_classes=False)
    assert encode_shard(0, image, of_some)["segments"].num_rows == 1


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_two_masks_of_one_id_are_a_bug(task):
    with pytest.raises(InvalidResultError, match="segment 1 has two masks"):
        segment_rows(of_masks(LEFT, RIGHT, ids=[1, 1]), task)


def broken(tables, table, column, value):
    index = tables[table].column_names.index(column)
    field = tables[table].schema.field(column)
    return {**tables, table: tables[table].set_column(index, field, pa.array([value], field.type))}


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("images", "num_segments", 2, "does not equal"),
        ("images", "image_key", "file:///other", "do not match the images of the shard"),
        ("images", "height", 9, "runs add up to"),
        ("segments", "area", 5, "area"),
        ("segments", "bbox", [0.0, 0.0, 2.0, 1.0], "area"),
        ("segments", "segmentation", {"size": [2, 2], "counts": "11"}, "runs add up to"),
        ("segments", "segmentation", {"size": [1, 4], "counts": "04"}, "has size"),
    ],
)
def test_broken_rows_are_refused(table, column, value, message):
    images = segmented_table(fetched(1), [segmented(np.ones((2, 2), np.uint8))])
    tables = encode_shard(0, images, SPEC)
    check_tables(images, tables, "panoptic")
    with pytest.raises(InvalidResultError, match=message):
        check_tables(images, broken(tables, table, column, value), "panoptic")


@given(MAPS, st.integers(0, 3))
def test_overlap_is_found_by_runs_as_by_pixels(label_map, more):
    masks = [label_map == label for label in np.unique(label_map)]
    extra = np.zeros_like(masks[0])
    extra.flat[:more] = True
    masks.append(extra)
    found = _overlap([encode_mask(mask) for mask in masks])
    assert found == bool((np.sum(masks, axis=0) > 1).any())
