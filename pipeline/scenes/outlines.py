"""Outlines of the things in synthetic scenes (`pipeline/scenes/draw.py`).

An outline is a function from coordinates to signed distances, negative inside. The circle of radius 1 around the origin
encloses the outline; coordinates and distances are in units of this radius. Legend: h w of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pipeline.scenes.textures import Floats


def _disc(u_hw: Floats, v_hw: Floats) -> Floats:
    return np.hypot(u_hw, v_hw) - 1


def _square(u_hw: Floats, v_hw: Floats) -> Floats:
    return np.maximum(abs(u_hw), abs(v_hw)) - math.sqrt(0.5)


def _ring(u_hw: Floats, v_hw: Floats) -> Floats:
    """The hole has half the diameter, and shows the ground below."""
    return abs(np.hypot(u_hw, v_hw) - 0.75) - 0.25


def _cross(u_hw: Floats, v_hw: Floats) -> Floats:
    """Four arms, 0.6 wide."""
    u_hw, v_hw = abs(u_hw), abs(v_hw)
    return np.maximum(np.maximum(u_hw, v_hw) - 0.95, np.minimum(u_hw, v_hw) - 0.3)


def _pointed(num_points: int, inner_radius: float) -> Callable[[Floats, Floats], Floats]:
    """Straight edges between points on the circle and as many corners on a circle of `inner_radius`."""
    sector = 2 * math.pi / num_points
    corner_u, corner_v = inner_radius * math.cos(sector / 2), inner_radius * math.sin(sector / 2)
    edge_length = math.hypot(1 - corner_u, corner_v)
    normal_u, normal_v = corner_v / edge_length, (1 - corner_u) / edge_length

    def distances(u_hw: Floats, v_hw: Floats) -> Floats:
        # By symmetry one edge is enough: fold every angle into the half sector that begins at a point.
        angles_hw = np.arctan2(v_hw, u_hw)
        folded_hw = abs(angles_hw - np.rint(angles_hw / sector) * sector)
        radii_hw = np.hypot(u_hw, v_hw)
        distances_hw: Floats = (radii_hw * np.cos(folded_hw) - 1) * normal_u + radii_hw * np.sin(folded_hw) * normal_v
        return distances_hw

    return distances


OUTLINES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _pointed(3, 0.5),
    "star": _pointed(5, 0.45),
    "ring": _ring,
    "cross": _cross,
}
