"""Synthetic scenes of things and stuff with exact panoptic annotation: to train and test small models without data.

The ground has one to three regions of stuff, which differ in texture and palette. On the ground lie one to six things,
which differ in outline and have any colour that contrasts with the ground. Things hide parts of each other, touch, and
are cut off by the image's edge, but every segment keeps at least `MIN_VISIBLE_SHARE` of its area and
`MIN_IMAGE_SHARE` of the image.

A scene depends only on its seed, index and size, so any part of a data set can be drawn on any machine in any order.

Legend: H W pixels of the scene; h w of the window in which something is painted; K candidates, M tones below; 2 tones
of a texture; 3 of RGB, 0 to 1 and channels first while painting, which is twice as fast. Signed distances are in
pixels, negative inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes import textures
from pipeline.scenes.outlines import OUTLINES
from pipeline.scenes.textures import Floats

Window = tuple[slice, slice]

MIN_SIDE = 32  # pixels; in smaller images, outlines look alike
MAX_ASPECT = 4  # longer side / shorter side; above, most things are smaller than MIN_IMAGE_SHARE
MIN_VISIBLE_SHARE = 0.4  # of a segment's pixels if it were not hidden or cut off
MIN_IMAGE_SHARE = 0.01
MAX_STUFF, MAX_THINGS = 3, 6
DIAMETERS = (0.22, 0.5)  # of things, as a share of the image's shorter side

_TRIES = 40  # number of places to try in one scene
_STRAIGHT_SHARE = 0.5  # share of the borders between regions that are straight
_COMPANION_SHARE = 0.35  # share of things that are put beside a thing of the same class
_CANDIDATES = 24  # pairs of tones to draw for a thing
_MIN_CONTRAST = 0.4  # distance in RGB between a thing's tones and those below
_SHADOW_SHARE = 0.12  # width of a thing's soft shadow, in radii


def _category(category_id: int, name: str, isthing: int) -> dict[str, Any]:
    return {"id": category_id, "name": name, "supercategory": ("ground", "shape")[isthing], "isthing": isthing}


# In COCO's form; the ids have gaps, as in most data sets.
CATEGORIES: tuple[dict[str, Any], ...] = (
    _category(2, "disc", 1),
    _category(3, "square", 1),
    _category(5, "triangle", 1),
    _category(8, "star", 1),
    _category(11, "ring", 1),
    _category(13, "cross", 1),
    _category(21, "grass", 0),
    _category(25, "water", 0),
    _category(26, "sand", 0),
    _category(30, "bricks", 0),
)
_ID_OF_NAME: dict[str, int] = {category["name"]: category["id"] for category in CATEGORIES}
_THING_NAMES = tuple(OUTLINES)
_STUFF_NAMES = tuple(textures.STUFF)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its segments. Every pixel belongs to a segment, every segment has pixels; ids count from 1."""

    pixels_HW3: NDArray[np.uint8]  # noqa: N815
    ids_HW: NDArray[np.int32]  # noqa: N815
    segments: tuple[tuple[int, int], ...]  # (segment_id, category_id), ascending


def draw_scene(seed: int, index: int, height: int, width: int, *, unit: int | None = None) -> Scene:
    """Draw scene `index` of the endless series `seed`. ValueError for unusable numbers.

    `unit`, in pixels, makes a landscape: its things and textures are as large as those of a scene of unit x unit
    pixels, and there are as many things on each area of that size. By default the shorter side is the unit.
    """
    check_size(height, width)
    if unit is not None and not MIN_SIDE <= unit <= min(height, width):
        raise ValueError(f"the unit must have {MIN_SIDE} to {min(height, width)} pixels, got {unit}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be at least 0, got {seed} and {index}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    canvas = _Canvas(height, width, unit)
    _paint_ground(canvas, rng)
    _paint_things(canvas, rng)
    pixels_HW3 = _photograph(canvas.colours_3HW, rng)
    return Scene(pixels_HW3, canvas.ids_HW, tuple(enumerate(canvas.category_ids, 1)))


def check_size(height: int, width: int) -> None:
    """Raise ValueError if scenes cannot have this size in pixels."""
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"a scene needs sides of at least {MIN_SIDE} pixels, the longer at most {MAX_ASPECT} times the shorter; "
            f"got {height} x {width} (height x width)"
        )


class _Canvas:
    """A scene while it is painted, back to front, and the number of pixels that each segment must keep."""

    def __init__(self, height: int, width: int, unit: int | None = None) -> None:
        self.unit = min(height, width) if unit is None else unit
        # Of how many scenes' things there is room.
        self.num_scenes = 1 if unit is None else max(1, round(height * width / unit**2))
        self.colours_3HW: Floats = np.zeros((3, height, width), np.float32)
        self.ids_HW = np.zeros((height, width), np.int32)
        self.category_ids: list[int] = []  # of segments 1, 2, ...
        self.tones: list[Floats] = []  # [2, 3] each
        self.num_required: list[float] = []  # pixels
        self.num_pixels = np.zeros(0, np.int64)  # of segments 1, 2, ...

    def required(self, num_whole: int) -> float:
        """Pixels that a segment of `num_whole` pixels must keep."""
        return max(MIN_VISIBLE_SHARE * num_whole, MIN_IMAGE_SHARE * self.ids_HW.size / self.num_scenes)

    def paint(self, window: Window, distances_hw: Floats, shade_hw: Floats, tones_23: Floats, name: str) -> None:
        """Paint a new segment over all others: ids inside the outline, colours with smooth edges."""
        self.category_ids.append(_ID_OF_NAME[name])
        self.tones.append(tones_23)
        inside_hw = distances_hw < 0
        num_taken = np.bincount(self.ids_HW[window][inside_hw], minlength=len(self.category_ids))[1:]
        self.num_pixels = np.append(self.num_pixels - num_taken, inside_hw.sum())
        self.ids_HW[window][inside_hw] = len(self.category_ids)
        # A pixel's centre decides its id. Colours mix by the covered share of the pixel, one half at the outline.
        cover_hw = np.clip(0.5 - distances_hw, 0, 1)
        first_311, second_311 = tones_23[:, :, None, None]
        below_3hw = self.colours_3HW[:, window[0], window[1]]
        below_3hw += cover_hw * (first_311 + shade_hw * (second_311 - first_311) - below_3hw)

    def light(self, window: Window, factors_hw: Floats) -> None:
        """Make the painted pixels of the window brighter or darker."""
        self.colours_3HW[:, window[0], window[1]] *= factors_hw


# --------------------------------------------------------------------------------------------------------------- stuff


def _paint_ground(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Paint regions of different stuff, side by side along a random direction."""
    height, width = canvas.ids_HW.shape
    everything = (slice(None), slice(None))
    names = rng.permutation(_STUFF_NAMES)[: rng.integers(1, MAX_STUFF + 1)]
    for name, distances_HW in zip(names, _region_distances(canvas, len(names), rng), strict=True):
        stuff = textures.STUFF[name]
        shade_HW = stuff.texture(height, width, canvas.unit / 128 * rng.uniform(0.8, 1.5), rng)
        canvas.paint(everything, distances_HW, shade_HW, textures.vary(stuff.tones_23, rng), name)
    canvas.num_required = [canvas.required(int(num)) for num in canvas.num_pixels]


def _region_distances(canvas: _Canvas, num_regions: int, rng: np.random.Generator) -> list[Floats]:
    """For each region, signed distances [H, W] to its first border; it ends where the next one begins."""
    y_H1, x_1W = textures.pixel_grid(*canvas.ids_HW.shape)
    angle = rng.uniform(0, 2 * math.pi)
    across_HW = x_1W * math.cos(angle) + y_H1 * math.sin(angle)
    along_HW = y_H1 * math.cos(angle) - x_1W * math.sin(angle)
    low, high = float(across_HW.min()), float(across_HW.max())
    distances: list[Floats] = [np.full(across_HW.shape, -1, np.float32)]  # the first region is everywhere
    for region in range(1, num_regions):
        border = low + (high - low) * (region + rng.uniform(-0.2, 0.2)) / num_regions
        if rng.random() < _STRAIGHT_SHARE:
            distances.append(border - across_HW)
        else:
            amplitude, period = (canvas.unit * rng.uniform(*bounds) for bounds in ((0.03, 0.06), (0.3, 0.8)))
            wave_HW = np.sin(along_HW * (2 * math.pi / period) + rng.uniform(0, 2 * math.pi))
            distances.append(border + amplitude * wave_HW - across_HW)
    return distances


# -------------------------------------------------------------------------------------------------------------- things


@dataclass(frozen=True)
class _Pose:
    """A thing before it is painted."""

    name: str
    y: float  # of the centre, in pixels
    x: float
    radius: float  # of the circle around the outline, in pixels
    angle: float
    stretch: float  # factor by which one axis is longer and the other shorter


@dataclass(frozen=True, eq=False)
class _Patch:
    """The part of the image that a thing and its shadow touch."""

    window: Window  # in the image
    y_h1: Floats  # distance from the thing's centre, in radii
    x_1w: Floats
    u_hw: Floats  # the same in the thing's own frame, which is turned and stretched
    v_hw: Floats
    distances_hw: Floats
    num_whole: int  # pixels inside the outline, including those beyond the image's edge


def _paint_things(canvas: _Canvas, rng: np.random.Generator) -> None:
    num_wanted = rng.integers(1, MAX_THINGS + 1, canvas.num_scenes).sum()
    placed: list[_Pose] = []
    for _ in range(_TRIES * canvas.num_scenes):
        if len(placed) == num_wanted:
            break
        pose = _draw_pose(canvas, placed, rng)
        patch = _patch_of(pose, canvas.ids_HW.shape)
        if _leaves_enough(canvas, patch):
            _paint_thing(canvas, pose, patch, rng)
            placed.append(pose)


def _draw_pose(canvas: _Canvas, placed: list[_Pose], rng: np.random.Generator) -> _Pose:
    """A random thing at a random place, or one of an existing thing's class that touches or overlaps that thing."""
    height, width = canvas.ids_HW.shape
    name = _THING_NAMES[rng.integers(len(_THING_NAMES))]
    radius = canvas.unit * rng.uniform(*DIAMETERS) / 2
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    if placed and rng.random() < _COMPANION_SHARE:
        other = placed[rng.integers(len(placed))]
        name = other.name
        gap, direction = rng.uniform(0.7, 1.0) * (radius + other.radius), rng.uniform(0, 2 * math.pi)
        y, x = other.y + gap * math.sin(direction), other.x + gap * math.cos(direction)
    return _Pose(name, y, x, radius, rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 1.15))


def _patch_of(pose: _Pose, image_hw: tuple[int, ...]) -> _Patch:
    margin = pose.radius * (pose.stretch + _SHADOW_SHARE) + 1
    top, left, side = int(pose.y - margin), int(pose.x - margin), int(2 * margin) + 2
    y_h1, x_1w = textures.pixel_grid(side, side)
    y_h1, x_1w = (y_h1 + (top - pose.y)) / pose.radius, (x_1w + (left - pose.x)) / pose.radius
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    u_hw = (x_1w * cos + y_h1 * sin) / pose.stretch
    v_hw = (y_h1 * cos - x_1w * sin) * pose.stretch
    distances_hw = OUTLINES[pose.name](u_hw, v_hw) * pose.radius
    rows, seen_rows = _overlap(top, side, image_hw[0])
    columns, seen_columns = _overlap(left, side, image_hw[1])
    seen = seen_rows, seen_columns
    return _Patch(
        (rows, columns),
        y_h1[seen_rows],
        x_1w[:, seen_columns],
        u_hw[seen],
        v_hw[seen],
        distances_hw[seen],
        int((distances_hw < 0).sum()),
    )


def _overlap(first: int, length: int, total: int) -> tuple[slice, slice]:
    """The part of `first` .. `first + length` that lies in 0 .. `total`, counted from 0 and from `first`."""
    start = max(first, 0)
    stop = max(min(first + length, total), start)
    return slice(start, stop), slice(start - first, stop - first)


def _leaves_enough(canvas: _Canvas, patch: _Patch) -> bool:
    """Whether the thing, and every segment that it would partly hide, keeps enough visible pixels."""
    num_taken = np.bincount(_ids_below(canvas, patch), minlength=len(canvas.category_ids) + 1)[1:]
    if num_taken.sum() < canvas.required(patch.num_whole):
        return False
    return bool((canvas.num_pixels - num_taken >= canvas.num_required).all())


def _ids_below(canvas: _Canvas, patch: _Patch) -> NDArray[np.int32]:
    """Segment of each pixel inside the outline."""
    below: NDArray[np.int32] = canvas.ids_HW[patch.window][patch.distances_hw < 0]
    return below


def _paint_thing(canvas: _Canvas, pose: _Pose, patch: _Patch, rng: np.random.Generator) -> None:
    below = [canvas.tones[segment_id - 1] for segment_id in np.unique(_ids_below(canvas, patch))]
    tones_23 = _contrasting_tones(below, rng)
    shade_hw = textures.draw_fill(patch.u_hw, patch.v_hw, rng)
    canvas.light(patch.window, _shadow(patch.distances_hw / (_SHADOW_SHARE * pose.radius)))
    canvas.paint(patch.window, patch.distances_hw, shade_hw, tones_23, pose.name)
    canvas.light(patch.window, _relief(patch))
    canvas.num_required.append(canvas.required(patch.num_whole))


def _contrasting_tones(below: list[Floats], rng: np.random.Generator) -> Floats:
    """Two tones [2, 3] that contrast with all tones below: the first pair that is far enough, or the farthest pair."""
    candidates_K23 = textures.random_tones(_CANDIDATES, rng)
    below_M3 = np.concatenate(
        [shade for first, second in below for shade in ([first], [(first + second) / 2], [second])]
    )
    contrasts_K = np.linalg.norm(candidates_K23[:, :, None] - below_M3, axis=-1).min((1, 2))
    enough = np.flatnonzero(contrasts_K > _MIN_CONTRAST)
    chosen: Floats = candidates_K23[enough[0] if enough.size else contrasts_K.argmax()]
    return chosen


def _shadow(distances_hw: Floats) -> Floats:
    """Factors that darken the pixels below and around an outline; `distances_hw` in widths of the shadow."""
    return 0.7 + 0.3 * np.clip(distances_hw, 0, 1)


def _relief(patch: _Patch) -> Floats:
    """Factors that light the thing from the upper left; 1 around it."""
    return np.where(patch.distances_hw < 0, 1 - 0.1 * (patch.y_h1 + patch.x_1w), np.float32(1))


# --------------------------------------------------------------------------------------------------------------- light


def _photograph(colours_3HW: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] in light that gets weaker to one side, with a little sensor noise."""
    height, width = colours_3HW.shape[1:]
    y_H1, x_1W = textures.pixel_grid(height, width)
    exposure, fall_off, angle = rng.uniform(0.8, 1.15), rng.uniform(0, 0.25), rng.uniform(0, 2 * math.pi)
    towards_light_HW = (y_H1 / height - 0.5) * math.sin(angle) + (x_1W / width - 0.5) * math.cos(angle)
    noise_3HW = rng.standard_normal(colours_3HW.shape, np.float32) * rng.uniform(1, 5)
    exposed_3HW = colours_3HW * (255 * exposure * (1 + fall_off * towards_light_HW)) + noise_3HW
    pixels_3HW = np.clip(np.rint(exposed_3HW), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0))
