"""A mask as one closed outline, for formats that have one polygon per object: holes and parts are joined by bridges.

Corners are pixels (x, y), and the outline runs through the outermost pixels of the mask, as OpenCV's contours do:
`cv2.fillPoly`, which draws the outline and fills by the even-odd rule, gives the mask back. Three rules:

1. The border of each part, and of each hole, is followed from pixel to pixel (Suzuki and Abe, 1985). Parts are
   connected over corners, holes are not.
2. A hole is joined to the border on its left: from the first pixel of its top row, a bridge goes left through pixels of
   the mask to the next border. The bridge adds no pixel.
3. Parts are joined by the shortest bridges that reach all of them, diagonal first, then straight. Pixels of these
   bridges do not belong to the mask: they are what is lost.

The outline goes around a border, over each bridge, around the border there, and back over the bridge.

Legend: H, W pixels of the mask; K corners.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from m2f_core.jit import compiled

# Neighbours clockwise on the screen, from the left one: (dy, dx).
_AROUND = np.array([(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)], np.int64)
_LEFT, _RIGHT = 0, 4
Pixel = tuple[int, int]  # y, x


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed outline; `num_added` pixels of its bridges do not belong to the mask."""

    corners: NDArray[np.int64]  # [K, 2]: x, y
    num_added: int


class _Bridge(NamedTuple):
    """A bridge as one of its ends sees it: the pixels between (corners suffice), and the border at the other end."""

    number: int
    between: list[Pixel]
    border: "_Border"
    arrives_at: Pixel


@dataclass(eq=False)
class _Border:
    pixels: list[Pixel]  # in order
    bridges: dict[Pixel, list[_Bridge]] = field(default_factory=dict)


def one_outline(mask_HW: NDArray[np.bool_]) -> Outline:
    """The outline of a mask of at least one pixel."""
    ys, xs = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, left = int(ys[0]), int(xs[0])
    # With a margin, so that all outside is one region and no neighbour is missing.
    borders = _Borders(np.pad(mask_HW[top : ys[-1] + 1, left : xs[-1] + 1], 1))
    borders.join_holes()
    num_added = borders.join_parts()
    corners_K2 = _without_straight(np.array(_walk(borders.first), np.int64))
    return Outline(corners_K2[:, ::-1] + np.array([left - 1, top - 1]), num_added)


class _Borders:
    """All borders of a mask, and the bridges between them."""

    def __init__(self, mask: NDArray[np.bool_]):
        self.mask = mask
        self.parts, self.num_parts = ndimage.label(mask, np.ones((3, 3)))
        self.num_bridges = 0
        self.at: dict[Pixel, _Border] = {}  # a border that goes through the pixel
        places = np.flatnonzero(mask)
        _, firsts = np.unique(self.parts.reshape(-1)[places], return_index=True)
        outer = [self._follow(divmod(int(places[first]), mask.shape[1]), _LEFT) for first in firsts]
        self.first = outer[0]

    def _follow(self, start: Pixel, towards: int) -> _Border:
        """The border from `start`, whose neighbour `towards` is outside of the mask."""
        pixels = list(map(tuple, _followed(self.mask, *start, towards, _AROUND).tolist()))
        border = _Border(pixels)
        for pixel in pixels:
            self.at.setdefault(pixel, border)
        return border

    def _join(self, one: Pixel, between: list[Pixel], other: Pixel, here: _Border, there: _Border) -> None:
        here.bridges.setdefault(one, []).append(_Bridge(self.num_bridges, between, there, other))
        there.bridges.setdefault(other, []).append(_Bridge(self.num_bridges, between[::-1], here, one))
        self.num_bridges += 1

    def join_holes(self) -> None:
        """Follow the border of each hole, and join it to the border on its left."""
        outside, _ = ndimage.label(~self.mask)
        regions, firsts = np.unique(outside, return_index=True)  # the first pixel in reading order: top row, then left
        starts = [divmod(int(f), self.mask.shape[1]) for r, f in zip(regions, firsts, strict=True) if r and r != 1]
        for y, x in sorted(starts):
            begin = int(np.flatnonzero(~self.mask[y, :x])[-1]) + 1  # of the run of pixels that ends at the hole
            # The border there is that of the part, or of a hole that was followed before this one.
            beside = self.at[y, begin]
            self._join((y, begin), [], (y, x - 1), beside, self._follow((y, x - 1), _RIGHT))

    def join_parts(self) -> int:
        """Join the parts by bridges; how many pixels these add."""
        if self.num_parts == 1:
            return 0
        added: set[Pixel] = set()
        for one, other in self._shortest_ways():
            diagonal = min(abs(other[0] - one[0]), abs(other[1] - one[1]))
            corner = (
                one[0] + diagonal * int(np.sign(other[0] - one[0])),
                one[1] + diagonal * int(np.sign(other[1] - one[1])),
            )
            added.update(pixel for pixel in (*_line(one, corner), *_line(corner, other)) if not self.mask[pixel])
            self._join(one, [corner], other, self.at[one], self.at[other])
        return len(added)

    def _shortest_ways(self) -> list[tuple[Pixel, Pixel]]:
        """Pairs of pixels whose bridges join all parts.

        Every pixel outside belongs to the nearest part; where such neighbourhoods touch, two parts may be joined.
        """
        near_y, near_x = ndimage.distance_transform_edt(~self.mask, return_distances=False, return_indices=True)
        owner = self.parts[near_y, near_x]
        ends = []
        for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :])):
            meet = owner[a] != owner[b]
            ends.append(np.stack([near[meet] for near in (near_y[a], near_x[a], near_y[b], near_x[b])]))
        y0, x0, y1, x1 = np.concatenate(ends, axis=1)
        steps = np.maximum(np.abs(y0 - y1), np.abs(x0 - x1))
        order = np.argsort(steps, kind="stable")
        low, high = np.sort(np.stack([self.parts[y0, x0], self.parts[y1, x1]])[:, order], axis=0)
        pairs, first = np.unique(low.astype(np.int64) * (self.num_parts + 1) + high, return_index=True)
        best = order[first]
        graph = coo_array(
            (steps[best].astype(float), (pairs // (self.num_parts + 1) - 1, pairs % (self.num_parts + 1) - 1)),
            (self.num_parts, self.num_parts),
        )
        tree = minimum_spanning_tree(graph.tocsr()).tocoo()
        chosen = (tree.row + 1).astype(np.int64) * (self.num_parts + 1) + tree.col + 1
        found = best[np.searchsorted(pairs, chosen)]
        return [((int(y0[n]), int(x0[n])), (int(y1[n]), int(x1[n]))) for n in found]


def _line(start: Pixel, end: Pixel) -> list[Pixel]:
    """The pixels behind `start` on a straight or diagonal way."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    dy, dx = int(np.sign(end[0] - start[0])), int(np.sign(end[1] - start[1]))
    return [(start[0] + n * dy, start[1] + n * dx) for n in range(1, steps + 1)]


@compiled
def _followed(mask, y, x, towards, around):  # type: ignore[no-untyped-def]
    """Pixels [K, 2] of a border (y, x), in order; it begins at (y, x), whose neighbour `towards` is outside."""
    pixels = [(y, x)]
    direction = -1
    for step in range(1, 8):  # clockwise
        place = (towards + step) % 8
        if mask[y + around[place, 0], x + around[place, 1]]:
            direction = place
            break
    if direction >= 0:
        last = (y + around[direction, 0], x + around[direction, 1])
        here_y, here_x = y, x
        while True:
            for step in range(1, 9):  # counter-clockwise, from the pixel that the border came from
                place = (direction - step) % 8
                if mask[here_y + around[place, 0], here_x + around[place, 1]]:
                    break
            next_y, next_x = here_y + around[place, 0], here_x + around[place, 1]
            if next_y == y and next_x == x and here_y == last[0] and here_x == last[1]:
                break
            here_y, here_x = next_y, next_x
            pixels.append((here_y, here_x))
            direction = (place + 4) % 8
    found = np.empty((len(pixels), 2), np.int64)
    for n in range(len(pixels)):
        found[n, 0], found[n, 1] = pixels[n]
    return found


def _walk(first: _Border) -> list[Pixel]:
    """Around all borders and over all bridges, each in both directions; without recursion, for chains of holes."""
    outline: list[Pixel] = []
    stack = [_around(first, first.pixels[0], -1, [])]
    while stack:
        for step in stack[-1]:
            if isinstance(step, _Bridge):
                outline += step.between
                stack.append(_around(step.border, step.arrives_at, step.number, step.between[::-1]))
                break
            outline.append(step)
        else:
            stack.pop()
    return outline


def _around(border: _Border, start: Pixel, came_by: int, back: list[Pixel]):  # type: ignore[no-untyped-def]
    """Pixels of a border from `start` back to it, a bridge wherever one leaves, then the pixels of the way back."""
    place = border.pixels.index(start)
    left = dict(border.bridges)
    for pixel in (*border.pixels[place:], *border.pixels[:place], start):
        yield pixel
        for bridge in left.pop(pixel, ()):
            if bridge.number != came_by:
                yield bridge
                yield pixel
    yield from back


def _without_straight(pixels_K2: NDArray[np.int64]) -> NDArray[np.int64]:
    """The closed way without pixels at which its direction stays the same."""
    moved = np.any(pixels_K2 != np.roll(pixels_K2, 1, axis=0), axis=1)
    pixels_K2 = pixels_K2[moved] if moved.any() else pixels_K2[:1]
    before, after = np.roll(pixels_K2, 1, axis=0), np.roll(pixels_K2, -1, axis=0)
    turns = np.any(np.sign(pixels_K2 - before) != np.sign(after - pixels_K2), axis=1)
    # A bridge's straight ends may have any length, but all ways are straight or diagonal, so signs are directions.
    return pixels_K2[turns] if turns.any() else pixels_K2
