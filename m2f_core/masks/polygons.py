"""COCO polygons to masks, with the same pixels as the COCO API.

A polygon is a list x0, y0, x1, y1, ... in pixels from the upper left corner of the image; it closes itself. The rule:

1. The outline is drawn on a grid that is five times as fine. Corners are rounded to this grid; an edge is walked along
   its longer direction, one fine pixel at a time, and rounded in the other direction.
2. Of the five fine columns of a pixel column, the middle one counts: wherever the outline steps between it and the next
   fine column, the boundary crosses the pixel column, at the upper one of the two fine rows.
3. Down a pixel column, each crossing switches between outside and inside, from the first row on whose middle fine row
   is not above the crossing. Areas that the polygon covers twice are outside (even-odd rule).

This is the behaviour of `maskApi` in https://github.com/cocodataset/cocoapi; the tests compare with pycocotools bit
for bit. As in that code, rounding is towards zero after adding a half, also for corners outside the image.

Legend: H, W pixels of the image; K corners; P points of the outline, in order, on the fine grid.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FINE = 5  # fine pixels per pixel
_MIDDLE = _FINE // 2
FEWEST_NUMBERS = 6  # a polygon has at least three corners
MAX_COORDINATE = 100_000  # pixels; the outline's points are proportional to it


def fill_polygons(polygons: Sequence[ArrayLike], height: int, width: int) -> NDArray[np.bool_]:
    """The union of the polygons of one object; boolean mask [H, W], column-major in memory, one byte a pixel.

    Raises ValueError for a polygon that is not a flat list of at least three x, y pairs of finite numbers.
    """
    mask_WH = np.zeros((width, height), np.bool_)
    for polygon in polygons:
        mask_WH |= _fill(_corners(polygon), height, width)
    return mask_WH.T


def _corners(polygon: ArrayLike) -> NDArray[np.int64]:
    """The corners [K, 2] as x, y on the fine grid."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"a polygon must be a flat list of numbers x0, y0, x1, y1, ..., not {polygon!r:.80}") from None
    if numbers.ndim != 1 or numbers.size < FEWEST_NUMBERS or numbers.size % 2:
        raise ValueError(
            f"a polygon must have at least three x, y pairs in a flat list, got numbers of shape {numbers.shape}"
        )
    if not np.all(np.abs(numbers) <= MAX_COORDINATE):
        raise ValueError(f"a polygon's coordinates must be pixels between -{MAX_COORDINATE} and {MAX_COORDINATE}")
    return _round(_FINE * numbers).reshape(-1, 2)


def _fill(corners_K2: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [W, H]; in this order of axes a pixel's position in memory is column * H + row."""
    x_P, y_P = _outline(corners_K2)
    columns, rows = np.minimum(x_P[1:], x_P[:-1]), np.minimum(y_P[1:], y_P[:-1])
    crosses = (x_P[1:] != x_P[:-1]) & (columns % _FINE == _MIDDLE) & (columns >= 0) & (columns < _FINE * width)
    first_rows = np.clip(-((_MIDDLE - rows[crosses]) // _FINE), 0, height)
    switches = np.sort(columns[crosses] // _FINE * height + first_rows)
    lengths = np.diff(switches, prepend=0, append=height * width)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height)


def _outline(corners_K2: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """x and y [P] of the outline's points; each edge contributes both of its ends."""
    ends_K2 = np.roll(corners_K2, -1, axis=0)
    num_steps_K2 = np.abs(ends_K2 - corners_K2)
    along_K = (num_steps_K2[:, 1] > num_steps_K2[:, 0]).astype(np.int64)  # axis of the walk: 0 is x, 1 is y
    k = np.arange(len(corners_K2))
    num_steps_K = num_steps_K2[k, along_K]
    # An edge is rounded from its lower end in either direction of walking, so that neighbours share their outlines.
    backwards_K = corners_K2[k, along_K] > ends_K2[k, along_K]
    low_K2 = np.where(backwards_K[:, None], ends_K2, corners_K2)
    high_K2 = np.where(backwards_K[:, None], corners_K2, ends_K2)
    slope_K = (high_K2 - low_K2)[k, 1 - along_K] / np.maximum(num_steps_K, 1)

    edge_P = np.repeat(k, num_steps_K + 1)
    step_P = np.arange(edge_P.size) - np.repeat(np.cumsum(num_steps_K + 1) - (num_steps_K + 1), num_steps_K + 1)
    from_low_P = np.where(backwards_K[edge_P], num_steps_K[edge_P] - step_P, step_P)
    walked_P = low_K2[edge_P, along_K[edge_P]] + from_low_P
    other_P = _round(low_K2[edge_P, 1 - along_K[edge_P]] + slope_K[edge_P] * from_low_P)
    walks_x_P = along_K[edge_P] == 0
    return np.where(walks_x_P, walked_P, other_P), np.where(walks_x_P, other_P, walked_P)


def _round(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.trunc(numbers + 0.5).astype(np.int64)
