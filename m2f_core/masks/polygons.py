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

That code stores the outline, however long it is. Here each edge is asked where it crosses the columns of the image, so
that memory and time do not depend on how far outside the corners lie.

Legend: H, W pixels of the image; K corners, and as many edges; X crossings of an edge and a pixel column.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FINE = 5  # fine pixels per pixel
_MIDDLE = _FINE // 2
FEWEST_NUMBERS = 6  # a polygon has at least three corners
MAX_COORDINATE = 100_000  # pixels; corners further outside are typing errors
_CROSSINGS_AT_ONCE = 1 << 18


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
    except (TypeError, ValueError, OverflowError):
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
    edges = _Edges(corners_K2)
    first_K, stop_K = (np.clip(-((_MIDDLE - x_K) // _FINE), 0, width) for x_K in (edges.left_K, edges.right_K))
    num_K = stop_K - first_K  # pixel columns whose two middle fine columns lie between the ends of the edge
    switches = np.empty(0, np.int64)
    for part in np.split(np.arange(len(num_K)), _breaks(num_K)):
        edge_X = np.repeat(part, num_K[part])
        starts = np.cumsum(num_K[part]) - num_K[part]
        column_X = np.arange(edge_X.size) - np.repeat(starts - first_K[part], num_K[part])
        rows_X = edges.crossing_rows(edge_X, _FINE * column_X + _MIDDLE)
        first_rows_X = np.clip(-((_MIDDLE - rows_X) // _FINE), 0, height)
        switches = _odd_ones(np.concatenate([switches, column_X * height + first_rows_X]))
    lengths = np.diff(switches, prepend=0, append=height * width)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height)


def _breaks(num_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where to part the edges, so that about `_CROSSINGS_AT_ONCE` crossings, and those of an edge, are in a part."""
    parts_K = (np.cumsum(num_K) - num_K) // _CROSSINGS_AT_ONCE
    return np.flatnonzero(np.diff(parts_K)) + 1


def _odd_ones(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers that occur an odd number of times, ascending: two switches at one pixel change nothing."""
    values, counts = np.unique(numbers, return_counts=True)
    return values[counts % 2 == 1]


class _Edges:
    """The edges of a polygon on the fine grid, each walked from its lower end in the direction in which it is longer.

    In whatever direction the outline runs, an edge is rounded from the same end, so that neighbours share outlines.
    """

    def __init__(self, corners_K2: NDArray[np.int64]) -> None:
        ends_K2 = np.roll(corners_K2, -1, axis=0)
        self.left_K, self.right_K = np.minimum(corners_K2, ends_K2)[:, 0], np.maximum(corners_K2, ends_K2)[:, 0]
        num_steps_K2 = np.abs(ends_K2 - corners_K2)
        self.walks_x_K = num_steps_K2[:, 0] >= num_steps_K2[:, 1]
        k, along_K = np.arange(len(corners_K2)), np.where(self.walks_x_K, 0, 1)
        self.num_steps_K = num_steps_K2[k, along_K]
        backwards_K1 = (corners_K2[k, along_K] > ends_K2[k, along_K])[:, None]
        self.low_K2 = np.where(backwards_K1, ends_K2, corners_K2)
        high_K2 = np.where(backwards_K1, corners_K2, ends_K2)
        self.slope_K = (high_K2 - self.low_K2)[k, 1 - along_K] / np.maximum(self.num_steps_K, 1)

    def crossing_rows(self, edge_X: NDArray[np.int64], x_X: NDArray[np.int64]) -> NDArray[np.int64]:
        """The upper one of the two fine rows between which edge `edge_X` steps from fine column `x_X` to the next."""
        rows_X = np.empty_like(x_X)
        walks_x_X = self.walks_x_K[edge_X]
        edges, x = edge_X[walks_x_X], x_X[walks_x_X]
        steps = x - self.low_K2[edges, 0]
        rows_X[walks_x_X] = np.minimum(self._other(edges, steps, 1), self._other(edges, steps + 1, 1))
        edges, x = edge_X[~walks_x_X], x_X[~walks_x_X]
        rows_X[~walks_x_X] = self.low_K2[edges, 1] + self._steps_past(edges, x) - 1
        return rows_X

    def _other(self, edges: NDArray[np.int64], steps: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        """The coordinate across the walk after so many steps."""
        return _round(self.low_K2[edges, axis] + self.slope_K[edges] * steps)

    def _steps_past(self, edges: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first step down an edge that lies on the other side of the line between x and x + 1 than the start."""
        rises = self.slope_K[edges] > 0

        def is_past(steps: NDArray[np.int64]) -> NDArray[np.bool_]:
            return (self._other(edges, steps, 0) > x) == rises

        guess = np.ceil((x + 0.5 - self.low_K2[edges, 0]) / self.slope_K[edges])
        steps = np.clip(guess.astype(np.int64), 1, self.num_steps_K[edges])
        while (early := ~is_past(steps)).any():  # the division has rounded
            steps += early
        while (late := (steps > 1) & is_past(steps - 1)).any():
            steps -= late
        return steps


def _round(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.trunc(numbers + 0.5).astype(np.int64)
