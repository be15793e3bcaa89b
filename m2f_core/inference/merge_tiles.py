"""The segments of overlapping tiles -> the segments of the whole image, on runs of pixels alone.

Each tile was segmented as an image of its own. Two questions remain.

Which segments of different tiles are the same thing? Those whose masks agree in the strip that two neighbouring tiles
share, where each pixel was seen by both. In that strip, two segments of one class match if their IoU is at least
MIN_IOU, or if at least MIN_CONTAINED of the smaller one lies in the other (one tile sees more of a thing than the other
tile). Matches are joined in order of IoU, the best of the whole image first. Two segments that one tile holds apart
stay apart: a match is refused if it would put two segments of one tile into one thing. Segments of a fused class
(stuff; every class of semantic segmentation) need no matching: they become one segment.

Which tile decides a pixel that several tiles show? In general, the tile whose edge is farthest away: each tile has a
core (`inference.tiling`), and the cores share no pixel. Near its edge, a tile shows things cut off and without their
surroundings. So a thing that one tile shows whole, and that lies in the core of this tile at least in part, keeps its
whole mask, also in the cores of other tiles, which may see it cut. For masks that must be disjoint, panoptic and
semantic, a pixel goes to the first of these that claims it:

1. a thing that the pixel's own tile shows whole
2. a thing that another tile shows whole, the one of the highest score
3. whatever else the pixel's own tile says: a thing that its edge cuts off, or stuff

Masks of instance segmentation may overlap others, so such a mask is the union of the masks of all its tiles. A thing
of which no piece reaches into the core of its tile is dropped: another tile shows the same pixels better.

The score of a thing is the highest score of its pieces: one tile shows the thing best, and that tile scores highest. No
tile shows a fused segment best; the score of a fused segment is the mean of its pieces' scores, weighted by the pixels
that the pieces contribute.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from m2f_core.inference.tiling import Tile, neighbours
from m2f_core.masks.box import Box
from m2f_core.masks.intervals import Intervals, bounds, num_common, num_pixels, painted, placed, to_rle, united
from m2f_core.masks.rle import Rle

MIN_IOU = 0.5  # as in PQ: above this, a segment of disjoint segments matches at most one other
MIN_CONTAINED = 0.8  # of the smaller of two segments in a strip
MIN_CONTAINED_IOU = 0.25  # of the same two: the rim of a thing may lie in the thing beside it
# A mask may end a few pixels before the edge that cuts the thing off. The part of the way from the core to the edge:
_NEAR_EDGE = 0.25


@dataclass(frozen=True)
class TileSegment:
    """A segment of one tile; `counts` are the compressed counts of its mask, in the frame of the tile."""

    class_id: int
    score: float
    counts: bytes


@dataclass(frozen=True)
class MergedSegment:
    """A segment of the whole image. The label of the mask is 1.

    `best` is the piece that scores highest or, of a fused segment, has most pixels, as (index of a tile, index of a
    segment of this tile).
    """

    class_id: int
    score: float
    mask: Rle
    best: "Piece"


@dataclass(frozen=True)
class MergeRule:
    """What differs between the tasks."""

    fused_class_ids: frozenset[int] | None  # classes of which an image has one segment; None: all classes
    may_overlap: bool  # whether two segments of an image may share pixels

    def fuses(self, class_id: int) -> bool:
        return self.fused_class_ids is None or class_id in self.fused_class_ids


Piece = tuple[int, int]  # index of a tile, index of a segment of this tile


def merge_tiles(
    tiles: tuple[Tile, ...], found: Sequence[Sequence[TileSegment]], image_hw: tuple[int, int], rule: MergeRule
) -> list[MergedSegment]:
    """The segments of an image, in the order in which their first pieces stand in `found`, which has a list per tile.

    `tiles` are those that `Tiling.tiles` gives for the image. Unless masks may overlap, the segments of a tile must be
    disjoint; then the segments of the image are disjoint too.
    """
    pieces = [(t, s) for t, segments in enumerate(found) for s in range(len(segments))]
    groups = _Groups(pieces)
    first_of_class: dict[int, Piece] = {}
    for t, s in pieces:
        if rule.fuses(class_id := found[t][s].class_id):
            groups.join(first_of_class.setdefault(class_id, (t, s)), (t, s))
    for _, _, one, other in sorted(_matches(tiles, found, image_hw, rule)):
        groups.join_if_of_other_tiles(one, other)
    masks = _Masks(tiles, found, image_hw)
    parts = _whole_masks(masks, groups) if rule.may_overlap else _disjoint_masks(masks, pieces, rule)
    merged = []
    for group in groups.all():
        group = [piece for piece in group if piece in parts]
        if not group:
            continue
        class_id, scores = masks.segment(group[0]).class_id, [masks.segment(piece).score for piece in group]
        weights = [num_pixels(parts[piece]) for piece in group]
        is_fused = rule.fuses(class_id)
        score = float(np.average(scores, weights=weights)) if is_fused else max(scores)
        best = group[int(np.argmax(weights if is_fused else scores))]
        mask = to_rle(united([parts[piece] for piece in group]), image_hw, label=1)
        merged.append(MergedSegment(class_id, score, mask, best))
    return merged


@dataclass(frozen=True)
class _Masks:
    """The masks of all pieces, in the frame of the image."""

    tiles: tuple[Tile, ...]
    found: Sequence[Sequence[TileSegment]]
    image_hw: tuple[int, int]

    def segment(self, piece: Piece) -> TileSegment:
        return self.found[piece[0]][piece[1]]

    def whole(self, piece: Piece) -> Intervals:
        return self._within(piece, self.tiles[piece[0]].box)

    def core(self, piece: Piece) -> Intervals:
        """The pixels in the core of the piece's tile."""
        return self._within(piece, self.tiles[piece[0]].core)

    def _within(self, piece: Piece, within: Box) -> Intervals:
        return placed(self.segment(piece).counts, self.tiles[piece[0]].box, within, self.image_hw)

    def is_cut(self, piece: Piece) -> bool:
        """Whether the mask reaches an edge of its tile that is not an edge of the image."""
        tile, (height, width) = self.tiles[piece[0]], self.image_hw
        (top, left, bottom, right), core = tile.box, tile.core
        mask = bounds(self.whole(piece), self.image_hw)
        return (
            (top > 0 and mask.top <= top + _NEAR_EDGE * (core.top - top))
            or (left > 0 and mask.left <= left + _NEAR_EDGE * (core.left - left))
            or (bottom < height and mask.bottom >= bottom - _NEAR_EDGE * (bottom - core.bottom))
            or (right < width and mask.right >= right - _NEAR_EDGE * (right - core.right))
        )


def _whole_masks(masks: _Masks, groups: "_Groups") -> dict[Piece, Intervals]:
    """The mask of each piece of a thing of which at least one piece reaches into the core of its tile."""
    kept = [group for group in groups.all() if any(masks.core(piece).size for piece in group)]
    return {piece: masks.whole(piece) for group in kept for piece in group}


def _disjoint_masks(masks: _Masks, pieces: Sequence[Piece], rule: MergeRule) -> dict[Piece, Intervals]:
    """The pixels that each piece gets, by the order in the text above; pieces that get none are left out."""
    claims: list[tuple[tuple[int, float, Piece], Intervals]] = []
    for piece in pieces:
        core, segment = masks.core(piece), masks.segment(piece)
        if not core.size:
            continue
        is_whole = not rule.fuses(segment.class_id) and not masks.is_cut(piece)
        claims.append(((1 if is_whole else 3, -segment.score, piece), core))
        if is_whole:
            claims.append(((2, -segment.score, piece), masks.whole(piece)))
    claims.sort(key=lambda claim: claim[0])
    intervals, sources = painted([mask for _, mask in claims])
    order = np.argsort(sources, kind="stable")
    parts: dict[Piece, list[Intervals]] = defaultdict(list)
    for part in np.split(order, np.flatnonzero(np.diff(sources[order])) + 1):
        if part.size:
            parts[claims[sources[part[0]]][0][2]].append(intervals[:, part])
    return {piece: np.concatenate(of_piece, axis=1) for piece, of_piece in parts.items()}


def _matches(
    tiles: tuple[Tile, ...], found: Sequence[Sequence[TileSegment]], image_hw: tuple[int, int], rule: MergeRule
) -> Iterator[tuple[float, float, Piece, Piece]]:
    """(-IoU, -contained share, piece, piece) of each pair of segments that match."""
    for t, u, strip in neighbours(tiles):
        ones, others = (_things_in(strip, tiles[i].box, found[i], image_hw, rule) for i in (t, u))
        for (s, class_id, one), (r, other_class_id, other) in product(ones, others):
            if class_id != other_class_id or (common := num_common(one, other)) == 0:
                continue
            areas = num_pixels(one), num_pixels(other)
            iou, contained = common / (sum(areas) - common), common / min(areas)
            if iou >= MIN_IOU or (contained >= MIN_CONTAINED and iou >= MIN_CONTAINED_IOU):
                yield -iou, -contained, (t, s), (u, r)


def _things_in(
    strip: Box, box: Box, segments: Sequence[TileSegment], image_hw: tuple[int, int], rule: MergeRule
) -> list[tuple[int, int, Intervals]]:
    """(index, class, pixels in the strip) of those segments that have pixels there and may need a partner."""
    inside = (
        (s, segment.class_id, placed(segment.counts, box, strip, image_hw))
        for s, segment in enumerate(segments)
        if not rule.fuses(segment.class_id)
    )
    return [thing for thing in inside if thing[2].size]


class _Groups:
    """Disjoint sets of pieces, in the order of their first pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._group_of = {piece: [piece] for piece in pieces}
        self._tiles_of = {piece: {piece[0]} for piece in pieces}  # by the first piece of a group

    def join(self, one: Piece, other: Piece) -> None:
        """Put both groups into one."""
        groups = self._group_of[one], self._group_of[other]
        if groups[0] is groups[1]:
            return
        large, small = sorted(groups, key=len, reverse=True)
        tiles = self._tiles_of.pop(large[0]) | self._tiles_of.pop(small[0])
        large.extend(small)
        for piece in small:
            self._group_of[piece] = large
        self._tiles_of[large[0]] = tiles

    def join_if_of_other_tiles(self, one: Piece, other: Piece) -> None:
        """Join both groups if that leaves them at most one piece of each tile."""
        if self._tiles_of[self._group_of[one][0]].isdisjoint(self._tiles_of[self._group_of[other][0]]):
            self.join(one, other)

    def all(self) -> list[list[Piece]]:
        """The groups, each in the order of its pieces."""
        groups = {id(group): group for group in self._group_of.values()}
        return sorted(sorted(group) for group in groups.values())
