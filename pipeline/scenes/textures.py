"""Surfaces of synthetic scenes (`pipeline/scenes/draw.py`): textures, palettes, fills.

A texture is a map of shades, 0 for the first of two tones and 1 for the second. `scale` is pixels per unit of the
texture's own lengths; a pixel of a 128-pixel image at the usual zoom is one unit.

Legend: H W pixels of the scene; h w of a window; K candidates; 2 tones of a texture, 3 of RGB, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]  # float32, although numpy's stubs say that a Python float turns it into float64


def pixel_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Coordinates in pixels of pixel centres: y [H, 1] and x [1, W]."""
    y_H1 = np.arange(height, dtype=np.float32)[:, None] + 0.5
    x_1W = np.arange(width, dtype=np.float32)[None, :] + 0.5
    return y_H1, x_1W


def smooth_noise(height: int, width: int, cell_hw: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Noise [H, W] between 0 and 1 that varies over about `cell_hw` pixels."""
    coarse_hw = max(2, round(height / cell_hw[0])), max(2, round(width / cell_hw[1]))
    coarse = Image.fromarray(rng.random(coarse_hw, np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


# --------------------------------------------------------------------------------------------------------------- stuff


def _grass(height: int, width: int, scale: float, rng: np.random.Generator) -> Floats:
    """Upright blades in patches."""
    blades_HW = smooth_noise(height, width, (7 * scale, 1.6 * scale), rng)
    patches_HW = smooth_noise(height, width, (30 * scale, 30 * scale), rng)
    return 0.75 * blades_HW + 0.25 * patches_HW


def _water(height: int, width: int, scale: float, rng: np.random.Generator) -> Floats:
    """Level waves that wander up and down, with crests."""
    y_H1, _ = pixel_grid(height, width)
    wander_HW = smooth_noise(height, width, (14 * scale, 22 * scale), rng)
    waves_HW = np.sin(y_H1 * (2 * math.pi / (9 * scale)) + 7 * wander_HW)
    return np.square(0.5 + 0.5 * waves_HW)


def _sand(height: int, width: int, scale: float, rng: np.random.Generator) -> Floats:
    """Grains on soft dunes."""
    grains_HW = smooth_noise(height, width, (1.3 * scale, 1.3 * scale), rng)
    dunes_HW = smooth_noise(height, width, (20 * scale, 45 * scale), rng)
    return 0.55 * grains_HW + 0.45 * dunes_HW


def _bricks(height: int, width: int, scale: float, rng: np.random.Generator) -> Floats:
    """Courses of bricks, every other one shifted by half a brick; each brick has its own shade, joints have tone 1."""
    y_H1, x_1W = pixel_grid(height, width)
    brick_h, brick_w, joint = 9 * scale, 20 * scale, 1.6 * scale
    y_H1, x_1W = y_H1 + rng.uniform(0, brick_h), x_1W + rng.uniform(0, brick_w)
    course_H1 = (y_H1 // brick_h).astype(np.int64)
    x_HW = x_1W + (course_H1 % 2).astype(np.float32) * (brick_w / 2)
    place_HW = (x_HW // brick_w).astype(np.int64)
    shades = rng.random((course_H1.max() + 1, place_HW.max() + 1), np.float32) * 0.35
    to_joint_HW = np.minimum(y_H1 % brick_h, x_HW % brick_w)
    joint_HW = np.clip(joint + 0.5 - to_joint_HW, 0, 1)
    shade_HW = shades[course_H1, place_HW]
    return shade_HW + joint_HW * (1 - shade_HW)


@dataclass(frozen=True, eq=False)
class Stuff:
    """The look of a class of stuff; scenes vary the tones a little."""

    texture: Callable[[int, int, float, np.random.Generator], Floats]
    tones_23: Floats


def _tones(*rows: tuple[float, float, float]) -> Floats:
    return np.array(rows, np.float32)


STUFF: dict[str, Stuff] = {
    "grass": Stuff(_grass, _tones((0.10, 0.30, 0.08), (0.48, 0.72, 0.28))),
    "water": Stuff(_water, _tones((0.08, 0.28, 0.52), (0.55, 0.78, 0.90))),
    "sand": Stuff(_sand, _tones((0.68, 0.55, 0.36), (0.96, 0.87, 0.66))),
    "bricks": Stuff(_bricks, _tones((0.55, 0.22, 0.15), (0.72, 0.66, 0.60))),
}


def vary(tones_23: Floats, rng: np.random.Generator) -> Floats:
    """The same palette in another light: brighter or darker, and of a slightly different hue."""
    tinted_23 = tones_23 * rng.uniform(0.8, 1.2) + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    return np.clip(tinted_23, 0, 1)


# -------------------------------------------------------------------------------------------------------------- things


def random_tones(num: int, rng: np.random.Generator) -> Floats:
    """Pairs of tones [K, 2, 3]: the first has any hue, the second has a near hue and is lighter or darker."""
    hue_K2 = rng.random((num, 1)) + rng.uniform(-0.08, 0.08, (num, 2)) * [0, 1]
    saturation_K11 = rng.uniform(0.25, 1.0, (num, 1, 1))
    value_K2 = rng.uniform(0.25, 1.0, (num, 1)) + rng.choice([-0.3, 0.3], (num, 1)) * [0, 1]
    rgb_K23 = np.clip(abs((hue_K2[..., None] * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)  # the pure hues
    tones_K23 = np.clip(value_K2, 0.05, 1)[..., None] * (1 - saturation_K11 * (1 - rgb_K23))
    return tones_K23.astype(np.float32)


def draw_fill(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    """Shades of a thing's surface in its own frame, whose coordinates are in radii."""
    return _FILLS[rng.integers(len(_FILLS))](u_hw, v_hw, rng)


def _plain(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    return np.zeros_like(u_hw)


def _striped(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    stripes_hw = np.sin(v_hw * (2 * math.pi * rng.uniform(1.5, 3)))
    return np.clip(0.5 + 2 * stripes_hw, 0, 1)


def _dotted(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    per_radius = rng.uniform(2, 3)
    to_dot_hw = np.hypot((u_hw * per_radius) % 1 - 0.5, (v_hw * per_radius) % 1 - 0.5)
    return np.clip((0.38 - to_dot_hw) * 6, 0, 1)


def _gradient(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    return np.clip(0.5 + 0.5 * u_hw, 0, 1)


def _noisy(u_hw: Floats, v_hw: Floats, rng: np.random.Generator) -> Floats:
    height, width = u_hw.shape
    return smooth_noise(height, width, (height / 9, width / 9), rng)


_FILLS = (_plain, _striped, _dotted, _gradient, _noisy)
