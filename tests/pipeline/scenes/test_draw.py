"""Synthetic scenes: what each one keeps whatever its seed and size, and that its pixels show what its ids say.

Legend: H W pixels; N segments.
"""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import ndimage

from m2f_core.config.labels import LabelMap
from pipeline.scenes import draw as drawing
from pipeline.scenes.draw import CATEGORIES, MIN_IMAGE_SHARE, MIN_VISIBLE_SHARE, Scene, draw_scene
from pipeline.scenes.outlines import OUTLINES

THING_IDS = {category["id"] for category in CATEGORIES if category["isthing"]}

# Of outlines that the circle of radius 1 encloses; stretching does not change them.
AREAS = {
    "disc": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * 0.45 * math.sin(math.pi / 5),
    "ring": math.pi * (1 - 0.5**2),
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
}

ROUNDING = 1e-3  # pixels: the generator computes distances in float32

seeds = st.integers(0, 2**40)
indices = st.integers(0, 10**6)
names = st.sampled_from(sorted(AREAS))


@st.composite
def sizes_hw(draw: st.DrawFn) -> tuple[int, int]:
    shorter = draw(st.integers(drawing.MIN_SIDE, 100))
    longer = draw(st.integers(shorter, min(160, drawing.MAX_ASPECT * shorter)))
    return draw(st.sampled_from([(shorter, longer), (longer, shorter)]))


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [draw_scene(0, index, 128, 128) for index in range(200)]


def same(one: Scene, other: Scene) -> bool:
    return (
        one.segments == other.segments
        and np.array_equal(one.ids_HW, other.ids_HW)
        and np.array_equal(one.pixels_HW3, other.pixels_HW3)
    )


def things(scene: Scene) -> list[int]:
    return [segment_id for segment_id, category_id in scene.segments if category_id in THING_IDS]


# What holds for every scene


@given(seeds, indices, sizes_hw())
def test_every_pixel_has_a_segment_and_every_segment_enough_pixels(seed, index, size_hw):
    scene = draw_scene(seed, index, *size_hw)
    assert scene.pixels_HW3.shape == (*size_hw, 3) and scene.pixels_HW3.dtype == np.uint8
    assert scene.ids_HW.shape == size_hw and scene.ids_HW.dtype == np.int32
    ids, areas = np.unique(scene.ids_HW, return_counts=True)
    assert [segment_id for segment_id, _ in scene.segments] == ids.tolist() == list(range(1, len(ids) + 1))
    assert areas.min() >= MIN_IMAGE_SHARE * scene.ids_HW.size


@given(seeds, indices, sizes_hw())
def test_there_are_things_on_a_ground_of_different_stuff(seed, index, size_hw):
    scene = draw_scene(seed, index, *size_hw)
    category_ids = [category_id for _, category_id in scene.segments]
    stuff = [category_id for category_id in category_ids if category_id not in THING_IDS]
    assert set(category_ids) <= {category["id"] for category in CATEGORIES}
    assert 1 <= len(stuff) == len(set(stuff)) <= drawing.MAX_STUFF
    assert 1 <= len(things(scene)) <= drawing.MAX_THINGS
    assert category_ids[: len(stuff)] == stuff, "painted first"


def distances_to_outline(pose: drawing._Pose, y_H1: np.ndarray, x_1W: np.ndarray) -> np.ndarray:
    """Signed distances in pixels of the points (y, x) to a thing's outline, in float64, negative inside."""
    y_H1, x_1W = (y_H1 - pose.y) / pose.radius, (x_1W - pose.x) / pose.radius
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    u_HW = (x_1W * cos + y_H1 * sin) / pose.stretch
    v_HW = (y_H1 * cos - x_1W * sin) * pose.stretch
    return OUTLINES[pose.name](u_HW, v_HW) * pose.radius


# A cross turned by 45 degrees: its edges run along the pixels' diagonals, where many centres lie on one line.
@example(seed=752, index=484, size_hw=(128, 71))
@given(seeds, indices, sizes_hw())
def test_a_thing_keeps_its_share_of_what_its_outline_encloses(seed, index, size_hw):
    """Pixel by pixel: a thing has the pixels whose centres its outline encloses, but for those that later things hide,
    and never fewer than its share of all, those beyond the image's edge included.
    """
    poses = []

    def noted(canvas, pose, patch, rng):
        poses.append(pose)
        paint_thing(canvas, pose, patch, rng)

    paint_thing = drawing._paint_thing
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(drawing, "_paint_thing", noted)
        scene = draw_scene(seed, index, *size_hw)
    height, width = size_hw
    shorter = min(size_hw)
    beyond = math.ceil(1.15 * drawing.DIAMETERS[1] * shorter / 2) + 1  # how far a centred outline reaches
    y_H1 = np.arange(-beyond, height + beyond)[:, None] + 0.5  # a pixel's centre decides
    x_1W = np.arange(-beyond, width + beyond)[None, :] + 0.5
    image = slice(beyond, -beyond), slice(beyond, -beyond)
    for segment_id, pose in zip(things(scene), poses, strict=True):
        distances_HW = distances_to_outline(pose, y_H1, x_1W)
        assert (scene.ids_HW >= segment_id)[distances_HW[image] < -ROUNDING].all(), "a hole"
        has_HW = scene.ids_HW == segment_id
        assert (distances_HW[image] < ROUNDING)[has_HW].all(), "a pixel beyond the outline"
        assert np.count_nonzero(has_HW) >= MIN_VISIBLE_SHARE * np.count_nonzero(distances_HW < -ROUNDING)
        assert drawing.DIAMETERS[0] * shorter <= 2 * pose.radius <= drawing.DIAMETERS[1] * shorter


# What decides a scene


@given(seeds, indices, st.lists(indices, max_size=3), st.integers(0, 2**32 - 1))
def test_a_scene_depends_on_seed_and_index_alone(seed, index, drawn_before, global_seed):
    scene = draw_scene(seed, index, 48, 64)
    np.random.seed(global_seed)
    state = np.random.get_state()[1].copy()
    for other in drawn_before:
        draw_scene(seed, other, 48, 64)
    assert same(draw_scene(seed, index, 48, 64), scene)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@given(st.tuples(seeds, indices), st.tuples(seeds, indices))
def test_other_seeds_and_indices_give_other_scenes(one, other):
    assume(one != other)
    assert not same(draw_scene(*one, 32, 32), draw_scene(*other, 32, 32))


@pytest.mark.parametrize(("seed", "index", "size_hw"), [(-1, 0, (64, 64)), (0, -1, (64, 64))])
def test_numbers_below_zero_are_refused(seed, index, size_hw):
    with pytest.raises(ValueError, match="at least 0"):
        draw_scene(seed, index, *size_hw)


@pytest.mark.parametrize("size_hw", [(31, 64), (64, 31), (0, 0), (32, 129), (129, 32)])
def test_sizes_without_scenes_are_refused(size_hw):
    with pytest.raises(ValueError, match=f"{size_hw[0]} x {size_hw[1]}"):
        draw_scene(0, 0, *size_hw)


# Outlines


@given(names, *[st.floats(-2, 2) for _ in range(4)])
def test_an_outline_lies_in_its_circle_and_its_distances_are_none_too_long(name, u, v, other_u, other_v):
    first, second = OUTLINES[name](np.array([u, other_u], np.float32), np.array([v, other_v], np.float32))
    assert abs(first - second) <= math.hypot(u - other_u, v - other_v) + 1e-5
    if math.hypot(u, v) > 1:
        assert first > -1e-5


@pytest.mark.parametrize("name", sorted(AREAS))
def test_an_outline_encloses_the_area_that_geometry_gives_it(name):
    """By two million points, a hundredth of which lie in cells that the outline crosses."""
    points = (np.arange(1500) + 0.5) / 750 - 1
    inside = np.count_nonzero(OUTLINES[name](points[None, :], points[:, None]) < 0)
    assert inside / 750**2 == pytest.approx(AREAS[name], rel=2e-3)


@given(names, st.floats(20, 60), st.floats(0, 7), st.floats(1, 1.15), st.floats(0, 1), st.floats(0, 1))
def test_an_outline_has_its_area_however_it_is_turned_and_stretched(name, radius, angle, stretch, y, x):
    patch = drawing._patch_of(drawing._Pose(name, 100 + y, 100 + x, radius, angle, stretch), (200, 200))
    # Edges may run through the centres of a whole row of pixels: such centres count half.
    inside, near = (np.count_nonzero(which) for which in (patch.distances_hw < -1e-3, abs(patch.distances_hw) <= 1e-3))
    assert inside + near / 2 == pytest.approx(AREAS[name] * radius**2, rel=0.05)
    assert inside <= patch.num_whole <= inside + near
    assert np.count_nonzero(patch.distances_hw < 0) == patch.num_whole, "nothing lies beyond the patch"


@given(names, st.floats(-40, 60), st.floats(-40, 60))
def test_what_lies_beyond_the_edge_counts_but_is_not_painted(name, y, x):
    patch = drawing._patch_of(drawing._Pose(name, y, x, 8.3, 0.4, 1.1), (20, 30))
    whole = drawing._patch_of(drawing._Pose(name, y + 100, x + 100, 8.3, 0.4, 1.1), (300, 300))
    assert abs(patch.num_whole - whole.num_whole) <= 4  # rounding of float32 coordinates
    image_HW = np.zeros((20, 30))
    assert image_HW[patch.window].shape == patch.distances_hw.shape == patch.u_hw.shape
    expected_HW = np.zeros((300, 300), bool)
    expected_HW[whole.window] = whole.distances_hw < 0
    image_HW[patch.window] = patch.distances_hw < 0
    assert np.count_nonzero(image_HW != expected_HW[100:120, 100:130]) <= 4


# What a data set of them holds


def test_categories_are_a_label_map():
    label_map = LabelMap.from_coco_categories(list(CATEGORIES))
    assert [category.isthing for category in label_map.categories] == [True] * 6 + [False] * 4
    names_of_things = {category.name for category in label_map.categories if category.isthing}
    assert names_of_things == set(AREAS) == set(OUTLINES)


def test_every_class_is_common(many):
    scenes_with = Counter(category_id for scene in many for category_id in {c for _, c in scene.segments})
    assert set(scenes_with) == {category["id"] for category in CATEGORIES}
    assert min(scenes_with.values()) > 40, scenes_with


def test_numbers_of_regions_and_things_vary(many):
    assert {len(things(scene)) for scene in many} == set(range(1, drawing.MAX_THINGS + 1))
    assert {len(scene.segments) - len(things(scene)) for scene in many} == set(range(1, drawing.MAX_STUFF + 1))


def neighbours(ids_HW: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of segments, the lower id first, with pixels side by side."""
    pairs = []
    for one, other in ((ids_HW[:, :-1], ids_HW[:, 1:]), (ids_HW[:-1], ids_HW[1:])):
        pairs += np.unique(np.minimum(one, other) * 100 + np.maximum(one, other)).tolist()
    return {divmod(pair, 100) for pair in pairs if pair // 100 != pair % 100}


def test_things_of_one_class_often_touch(many):
    def touching(scene: Scene) -> Iterator[tuple[int, int]]:
        category_of = dict(scene.segments)
        for one, other in neighbours(scene.ids_HW):
            if category_of[one] == category_of[other]:
                yield one, other

    assert sum(any(touching(scene)) for scene in many) > len(many) / 5


def test_many_things_are_cut_off_by_the_edge_or_hidden_in_part(many):
    edge = Counter()
    for scene in many:
        border = np.concatenate([scene.ids_HW[0], scene.ids_HW[-1], scene.ids_HW[:, 0], scene.ids_HW[:, -1]])
        edge.update(segment_id in border for segment_id in things(scene))
    assert 0.2 < edge[True] / edge.total() < 0.8


# What the pixels show


def contrast(scene: Scene, one: int, other: int) -> float | None:
    """Distance of the mean colours of two segments where they meet, or None where they hardly do."""
    near = [ndimage.binary_dilation(scene.ids_HW == segment_id, iterations=3) for segment_id in (one, other)]
    means = []
    for segment_id in (one, other):
        meeting = near[0] & near[1] & (scene.ids_HW == segment_id)
        if np.count_nonzero(meeting) < 30:
            return None
        means.append(scene.pixels_HW3[meeting].mean(0))
    return float(np.linalg.norm(means[0] - means[1]))


def test_things_stand_out_from_what_they_lie_on(many):
    contrasts = [
        value
        for scene in many[:60]
        for one, other in neighbours(scene.ids_HW)
        if other in things(scene) and (value := contrast(scene, one, other)) is not None
    ]
    assert len(contrasts) > 200
    assert np.mean(np.array(contrasts) > 50) > 0.95
    assert min(contrasts) > 20


def test_colours_change_where_ids_do(many):
    """More than two pixels to the side of every border: masks are not shifted against the picture."""

    def change(scene: Scene, dy: int, dx: int) -> float:
        ids_HW = np.roll(scene.ids_HW, (dy, dx), (0, 1))
        pixels_HW3 = scene.pixels_HW3.astype(float)
        sums = [np.abs(np.diff(pixels_HW3, axis=axis)).sum(-1)[np.diff(ids_HW, axis=axis) != 0] for axis in (0, 1)]
        return float(np.concatenate(sums).mean())

    here = np.mean([change(scene, 0, 0) for scene in many[:40]])
    for dy, dx in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        assert here > 1.5 * np.mean([change(scene, dy, dx) for scene in many[:40]])
    for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        assert here > 1.1 * np.mean([change(scene, dy, dx) for scene in many[:40]])


def test_a_landscape_has_things_of_the_size_and_number_of_its_unit():
    landscape, scenes = draw_scene(3, 0, 512, 640, unit=128), [draw_scene(3, index, 128, 128) for index in range(20)]
    assert landscape.ids_HW.shape == (512, 640)
    things = {category["id"] for category in CATEGORIES if category["isthing"]}

    def areas(scene: Scene) -> list[int]:
        return [int((scene.ids_HW == number).sum()) for number, category_id in scene.segments if category_id in things]

    alone = [area for scene in scenes for area in areas(scene)]
    assert len(areas(landscape)) == pytest.approx(len(alone), rel=0.5), "20 units in both"
    assert np.mean(areas(landscape)) == pytest.approx(np.mean(alone), rel=0.3)
    assert min(areas(landscape)) >= MIN_IMAGE_SHARE * 128**2
    assert draw_scene(3, 0, 128, 200).segments == draw_scene(3, 0, 128, 200, unit=None).segments


@pytest.mark.parametrize("unit", [31, 129])
def test_a_unit_outside_of_the_image_is_refused(unit):
    with pytest.raises(ValueError, match=f"32 to 128 pixels, got {unit}"):
        draw_scene(0, 0, 128, 200, unit=unit)
