"""Polygons against pycocotools bit for bit, their properties, refusals."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2f_core.masks.polygons import MAX_COORDINATE, fill_polygons

coordinates = st.one_of(
    st.integers(-5, 45).map(float),
    st.integers(-50, 450).map(lambda tenths: tenths / 10),  # ties of the rounding to fifths
    st.floats(-20, 60, allow_nan=False),
)
corners = st.tuples(coordinates, coordinates)
polygons = st.lists(corners, min_size=3, max_size=10).map(lambda pairs: [number for pair in pairs for number in pair])
far_polygons = st.lists(
    st.tuples(*[st.one_of(st.integers(-2000, 2000).map(float), st.floats(-3000, 3000), coordinates)] * 2),
    min_size=3,
    max_size=6,
).map(lambda pairs: [number for pair in pairs for number in pair])
lengths = st.integers(1, 40)


def pycocotools_mask(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    coco = pytest.importorskip("pycocotools.mask")
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)


@given(st.lists(polygons, min_size=1, max_size=4), lengths, lengths)
@example([[3.0, 3.0] * 3], 8, 8)  # no extent at all
@example([[2.0, 1.0, 2.0, 1.0, 7.0, 1.0, 7.0, 6.0, 2.0, 6.0]], 8, 8)  # a corner twice
@example([[-3.0, -2.0, 20.0, -2.0, 20.0, 30.0, -3.0, 30.0]], 8, 9)  # the image and more
@example([[0.0, 0.0, 8.0, 8.0, 8.0, 0.0, 0.0, 8.0]], 8, 8)  # crosses itself
@settings(max_examples=5 * settings.default.max_examples)
def test_equals_pycocotools(polygons: list[list[float]], height: int, width: int) -> None:
    mask = fill_polygons(polygons, height, width)
    assert mask.shape == (height, width) and mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, pycocotools_mask(polygons, height, width))


@given(far_polygons, lengths, lengths, st.sampled_from([1, 50, 1 << 18]))
@settings(max_examples=5 * settings.default.max_examples)
def test_equals_pycocotools_far_outside_of_the_image(polygon: list[float], height: int, width: int, most: int) -> None:
    """Whether crossings are looked for in one part or in many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m2f_core.masks.polygons._CROSSINGS_AT_ONCE", most)
        mask = fill_polygons([polygon], height, width)
    np.testing.assert_array_equal(mask, pycocotools_mask([polygon], height, width))


def test_equals_pycocotools_at_the_largest_coordinates() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        polygon = rng.uniform(-MAX_COORDINATE, MAX_COORDINATE, 8).tolist()
        np.testing.assert_array_equal(fill_polygons([polygon], 30, 40), pycocotools_mask([polygon], 30, 40))


@pytest.mark.parametrize(("num_corners", "extent"), [(40, MAX_COORDINATE), (20_000, 100), (20_000, MAX_COORDINATE)])
def test_memory_is_bounded_by_image_and_corners(num_corners: int, extent: int) -> None:
    """40 corners took 2.2 GiB: the outline was made, point by point."""
    polygon = np.random.default_rng(0).uniform(-extent, extent, 2 * num_corners).tolist()
    fill_polygons([polygon[:80]], 10, 10)
    tracemalloc.start()
    try:
        fill_polygons([polygon], 10, 10)
        assert tracemalloc.get_traced_memory()[1] < (100_000 if num_corners == 40 else 20_000_000)
    finally:
        tracemalloc.stop()


def test_equals_pycocotools_on_real_annotations(shared_data: Path) -> None:
    content = json.loads((shared_data / "coco_things" / "instances.json").read_text(encoding="utf-8"))
    size_of = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    assert len(content["annotations"]) == 93
    for annotation in content["annotations"]:
        mask = fill_polygons(annotation["segmentation"], *size_of[annotation["image_id"]])
        expected = pycocotools_mask(annotation["segmentation"], *size_of[annotation["image_id"]])
        np.testing.assert_array_equal(mask, expected)
        assert mask.any()


def test_equals_pycocotools_on_long_edges() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygon = rng.uniform(-200, 2200, 40).tolist()
        np.testing.assert_array_equal(fill_polygons([polygon], 1500, 2000), pycocotools_mask([polygon], 1500, 2000))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))
def test_a_box_on_pixel_borders_is_its_pixels(x: int, y: int, box_width: int, box_height: int) -> None:
    right, bottom = x + box_width, y + box_height
    expected = np.zeros((24, 24), np.bool_)
    expected[y:bottom, x:right] = True
    np.testing.assert_array_equal(fill_polygons([[x, y, right, y, right, bottom, x, bottom]], 24, 24), expected)


@given(st.lists(polygons, min_size=1, max_size=3), lengths, lengths, st.integers(0, 9), st.booleans())
def test_start_and_direction_of_the_outline_do_not_matter(
    polygons: list[list[float]], height: int, width: int, start: int, reverse: bool
) -> None:
    turned = [np.roll(np.reshape(p, (-1, 2)), start, axis=0)[:: -1 if reverse else 1].reshape(-1) for p in polygons]
    # Outside of the image to the left, rounding towards zero depends on the direction, but nothing is drawn there.
    np.testing.assert_array_equal(fill_polygons(turned, height, width), fill_polygons(polygons, height, width))


@given(st.lists(polygons, min_size=1, max_size=3), lengths, lengths)
def test_several_polygons_are_a_union(polygons: list[list[float]], height: int, width: int) -> None:
    each = [fill_polygons([polygon], height, width) for polygon in polygons]
    np.testing.assert_array_equal(fill_polygons(polygons, height, width), np.logical_or.reduce(each))
    np.testing.assert_array_equal(fill_polygons(polygons * 2, height, width), np.logical_or.reduce(each))


@given(polygons, st.integers(20, 40), st.integers(20, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_smaller_image_is_a_crop(polygon: list[float], height: int, width: int, less_y: int, less_x: int) -> None:
    small_hw = max(1, height - less_y), max(1, width - less_x)
    crop = fill_polygons([polygon], height, width)[: small_hw[0], : small_hw[1]]
    np.testing.assert_array_equal(fill_polygons([polygon], *small_hw), crop)


def test_no_polygons_are_an_empty_mask() -> None:
    assert not fill_polygons([], 3, 5).any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([], "three x, y pairs"),
        ([1, 2, 3, 4], "three x, y pairs"),  # pycocotools takes four numbers for a box
        ([1, 2, 3, 4, 5, 6, 7], "three x, y pairs"),
        ([[1, 2], [3, 4], [5, 6]], "three x, y pairs"),
        (7.0, "three x, y pairs"),
        ([1, 2, 3, 4, 5, "x"], "flat list of numbers"),
        ([1, 2, 3, [4], 5, 6], "flat list of numbers"),
        ([1, 2, 3, 4, 5, float("nan")], "pixels between"),
        ([1, 2, 3, 4, 5, float("inf")], "pixels between"),
        ([1, 2, 3, 4, 5, -MAX_COORDINATE - 1.0], "pixels between"),
    ],
    ids=str,
)
def test_broken_polygons_are_refused(polygon: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill_polygons([polygon], 8, 8)
