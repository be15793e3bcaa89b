"""Merging the segments of tiles: the answer comes back from its pieces, and runs of pixels agree with drawn masks.

The oracle draws every mask as an array of the image and follows the text of `m2f_core.inference.merge_tiles`.
"""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_core.inference.merge_tiles import (
    MIN_CONTAINED,
    MIN_CONTAINED_IOU,
    MIN_IOU,
    MergedSegment,
    MergeRule,
    TileSegment,
    merge_tiles,
)
from m2f_core.inference.tiling import Tile, Tiling
from m2f_core.masks import rle
from pipeline.scenes.draw import CATEGORIES, draw_scene
from tests.core.masks.test_rle import blobs

RULES = {
    "panoptic": MergeRule(frozenset({0, 1}), may_overlap=False),
    "semantic": MergeRule(None, may_overlap=False),
    "instance": MergeRule(frozenset(), may_overlap=True),
}


def part(array: np.ndarray, box) -> np.ndarray:
    return array[box.top : box.bottom, box.left : box.right]


def is_grid_neighbour(one: Tile, other: Tile) -> bool:
    return max(abs(a - b) for a, b in zip(one.place, other.place, strict=True)) == 1


# ------------------------------------------------------------------------------------------------- an answer in pieces


@given(st.integers(0, 10**6), st.integers(33, 120), st.integers(33, 120), st.integers(32, 50), st.integers(1, 16))
@settings(max_examples=30)
def test_tiles_of_a_known_answer_give_the_answer(seed: int, height: int, width: int, size: int, overlap: int) -> None:
    """Rectangles over each other: each label is one thing, which a tile may show in several parts."""
    answer, tiling = blobs(seed, height, width, 6), Tiling(size, overlap)
    answer = np.where(is_connected_enough(answer, tiling), answer, 0)
    tiles = tiling.tiles(height, width)
    found = [
        [
            TileSegment(class_of(r.label), r.label / 10, r.counts)
            for r in rle.encode_runs(rle.label_runs(np.ascontiguousarray(part(answer, tile.box))), *tile.box.size_hw)
        ]
        for tile in tiles
    ]
    for rule in (RULES["panoptic"], RULES["instance"]):
        merged = merge_tiles(tiles, found, (height, width), rule)
        masks = {s.mask.counts: s for s in merged}
        wanted = {}
        for label in np.unique(answer[answer > 0]):
            same = [other for other in np.unique(answer[answer > 0]) if class_of(other) == class_of(label)]
            mask = np.isin(answer, same) if rule.fuses(class_of(label)) else answer == label
            wanted[rle.encode_mask(mask)] = class_of(label)
        assert {counts: s.class_id for counts, s in masks.items()} == wanted
        assert len(merged) == len(wanted)
    merged = merge_tiles(tiles, found, (height, width), RULES["semantic"])
    assert {s.class_id: s.mask.counts for s in merged} == {
        c: rle.encode_mask((answer > 0) & (class_map(answer) == c)) for c in np.unique(class_map(answer)[answer > 0])
    }


def class_of(label: int) -> int:
    return int(label) // 2  # labels 1 to 5: classes 0, 1, 1, 2, 2


def class_map(answer: np.ndarray) -> np.ndarray:
    return answer // 2


def is_connected_enough(answer: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Whether the pixel's label is one that reaches from tile to tile by strips alone: only those come back whole."""
    tiles = tiling.tiles(*answer.shape)
    good = [0]
    for label in np.unique(answer):
        here = [i for i, tile in enumerate(tiles) if (part(answer, tile.box) == label).any()]
        reached, todo = {here[0]}, [here[0]]
        while todo:
            i = todo.pop()
            for j in here:
                strip = tiles[i].box.common(tiles[j].box) if is_grid_neighbour(tiles[i], tiles[j]) else None
                if j not in reached and strip and (part(answer, strip) == label).any():
                    reached.add(j)
                    todo.append(j)
        if len(reached) == len(here):
            good.append(label)
    return np.isin(answer, good)


def test_a_mosaic_of_scenes_comes_back_from_its_tiles() -> None:
    """Six synthetic scenes side by side, whose seams lie elsewhere than those of the tiles."""
    scenes = [[draw_scene(5, 3 * row + column, 128, 128) for column in range(3)] for row in range(2)]
    answer = np.zeros((256, 384), np.int32)
    class_ids: dict[int, int] = {}
    for row, column in np.ndindex(2, 3):
        scene = scenes[row][column]
        answer[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)] = scene.ids_HW + len(class_ids)
        class_ids |= {len(class_ids) + number: category_id for number, category_id in scene.segments}
    tiling = Tiling(100, 30)
    tiles = tiling.tiles(256, 384)
    assert len(tiles) == 4 * 6
    found = [
        [
            TileSegment(class_ids[r.label], 1.0, r.counts)
            for r in rle.encode_runs(rle.label_runs(np.ascontiguousarray(part(answer, tile.box))), *tile.box.size_hw)
        ]
        for tile in tiles
    ]
    stuff = frozenset(category["id"] for category in CATEGORIES if not category["isthing"])
    merged = merge_tiles(tiles, found, (256, 384), MergeRule(stuff, may_overlap=False))
    connected = is_connected_enough(answer, tiling)
    wanted = []
    for number, class_id in class_ids.items():
        if class_id not in stuff and connected[answer == number].all():
            wanted.append((class_id, rle.encode_mask(answer == number)))
    for class_id in stuff & set(class_ids.values()):
        same = [number for number, other in class_ids.items() if other == class_id]
        wanted.append((class_id, rle.encode_mask(np.isin(answer, same))))
    assert len(wanted) > 15
    assert set(wanted) <= {(segment.class_id, segment.mask.counts) for segment in merged}
    assert len(merged) - len(wanted) <= 2 * sum(not connected[answer == number].all() for number in class_ids)


# ----------------------------------------------------------------------------------------- any opinions of the tiles


@st.composite
def opinions(draw: st.DrawFn) -> tuple[tuple[Tile, ...], list[list[TileSegment]], tuple[int, int]]:
    """Tiles that agree in part: each sees the same rectangles, moved a little, and some of its own."""
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    image_hw = draw(st.tuples(st.integers(33, 90), st.integers(20, 90)))
    tiles = Tiling(32 + draw(st.integers(0, 10)), draw(st.integers(1, 16))).tiles(*image_hw)
    answer, noise = blobs(seed, *image_hw, 8), draw(st.sampled_from([0.0, 0.3, 1.0]))
    found = []
    for tile in tiles:
        seen = part(np.roll(answer, rng.integers(-2, 3, 2), (0, 1)), tile.box).copy()
        if rng.random() < noise:
            seen[rng.integers(0, seen.shape[0]) :, rng.integers(0, seen.shape[1]) :] = 1 + rng.integers(0, 9)
        found.append(
            [
                TileSegment(int(r.label) % 5, round(float(rng.random()), 1), r.counts)
                for r in rle.encode_runs(rle.label_runs(np.ascontiguousarray(seen)), *seen.shape)
            ]
        )
    return tiles, found, image_hw


@given(opinions(), st.sampled_from(sorted(RULES)))
@settings(max_examples=60)
def test_runs_agree_with_drawn_masks(example: tuple, task: str) -> None:
    tiles, found, image_hw = example
    merged = merge_tiles(tiles, found, image_hw, RULES[task])
    assert [as_values(segment) for segment in merged] == merged_by_drawing(tiles, found, image_hw, RULES[task])
    if task != "instance":
        assert np.sum([rle.decode(s.mask.counts, *image_hw) for s in merged], axis=0).max(initial=0) <= 1


def as_values(segment: MergedSegment) -> tuple:
    return segment.class_id, pytest.approx(segment.score), segment.mask.counts, segment.mask.area


def merged_by_drawing(tiles, found, image_hw, rule) -> list[tuple]:
    """The oracle."""
    pieces = [(t, s) for t, segments in enumerate(found) for s in range(len(segments))]
    whole = {}
    for t, s in pieces:
        whole[t, s] = np.zeros(image_hw, bool)
        part(whole[t, s], tiles[t].box)[:] = rle.decode(found[t][s].counts, *tiles[t].box.size_hw)
    class_of = {(t, s): found[t][s].class_id for t, s in pieces}
    group_of = {piece: frozenset([piece]) for piece in pieces}

    def join(one, other) -> None:
        both = group_of[one] | group_of[other]
        group_of.update(dict.fromkeys(both, both))

    for one, other in combinations(pieces, 2):
        if class_of[one] == class_of[other] and rule.fuses(class_of[one]):
            join(one, other)
    for _, _, one, other in sorted(matches_by_drawing(tiles, pieces, whole, class_of, rule)):
        if {t for t, _ in group_of[one]}.isdisjoint({t for t, _ in group_of[other]}):
            join(one, other)

    parts = {}
    cores = {(t, s): part(whole[t, s], tiles[t].core).any() for t, s in pieces}
    if rule.may_overlap:
        parts = {piece: whole[piece] for piece in pieces if any(cores[p] for p in group_of[piece])}
    else:
        owner = np.zeros(image_hw, int)
        for t, tile in enumerate(tiles):
            part(owner, tile.core)[:] = t
        shows_whole = {
            piece: not rule.fuses(class_of[piece]) and not is_cut_by_drawing(tiles[piece[0]], whole[piece], image_hw)
            for piece in pieces
        }
        for piece in pieces:
            parts[piece] = np.zeros(image_hw, bool)
        for y, x in np.ndindex(image_hw):
            claims = [
                (1 if mine and shows_whole[p] else 2 if shows_whole[p] else 3, -found[p[0]][p[1]].score, p)
                for p in pieces
                if whole[p][y, x] and cores[p] and ((mine := owner[y, x] == p[0]) or shows_whole[p])
            ]
            if claims:
                parts[min(claims)[2]][y, x] = True
        parts = {piece: mask for piece, mask in parts.items() if mask.any()}

    merged = []
    for group in sorted({tuple(sorted(group)) for group in group_of.values()}):
        kept = [piece for piece in group if piece in parts]
        if kept:
            mask, scores = np.any([parts[p] for p in kept], axis=0), [found[t][s].score for t, s in kept]
            fused = rule.fuses(class_of[kept[0]])
            score = np.average(scores, weights=[parts[p].sum() for p in kept]) if fused else max(scores)
            merged.append((class_of[kept[0]], pytest.approx(score), rle.encode_mask(mask), mask.sum()))
    return merged


def matches_by_drawing(tiles, pieces, whole, class_of, rule):
    for one, other in combinations(pieces, 2):
        strip = tiles[one[0]].box.common(tiles[other[0]].box)
        if one[0] == other[0] or strip is None or not is_grid_neighbour(tiles[one[0]], tiles[other[0]]):
            continue
        if class_of[one] != class_of[other] or rule.fuses(class_of[one]):
            continue
        a, b = part(whole[one], strip), part(whole[other], strip)
        common = (a & b).sum()
        if not common:
            continue
        iou, contained = common / (a | b).sum(), common / min(a.sum(), b.sum())
        if iou >= MIN_IOU or (contained >= MIN_CONTAINED and iou >= MIN_CONTAINED_IOU):
            yield -iou, -contained, one, other


def is_cut_by_drawing(tile: Tile, mask: np.ndarray, image_hw: tuple[int, int]) -> bool:
    """Whether the mask has a pixel in the outer quarter of the rim around the core, or in the outermost pixels."""
    (top, left, bottom, right), core = tile.box, tile.core
    inner = mask.copy()
    inner[
        (top and top + 1 + (core.top - top) // 4) : bottom - (bottom < image_hw[0]) * (1 + (bottom - core.bottom) // 4),
        (left and left + 1 + (core.left - left) // 4) : right - (right < image_hw[1]) * (1 + (right - core.right) // 4),
    ] = False
    return bool(inner.any())


# -------------------------------------------------------------------------------------------------------- one rule each


def segment(tile: Tile, class_id: int, score: float, rows: slice, columns: slice) -> TileSegment:
    """A rectangle, given in pixels of the image."""
    whole = np.zeros((1000, 1000), bool)
    whole[rows, columns] = True
    return TileSegment(class_id, score, rle.encode_mask(part(whole, tile.box)))


def two_tiles() -> tuple[Tile, Tile]:
    """Columns 0 to 63 and 48 to 111: the strip has 16 columns, the border lies at column 56."""
    one, other = Tiling(64, 16).tiles(64, 112)
    assert (one.box.right, other.box.left, one.core.right) == (64, 48, 56)
    return one, other


def masks_of(found: list[list[TileSegment]], task: str) -> list[np.ndarray]:
    return [rle.decode(s.mask.counts, 64, 112) for s in merge_tiles(two_tiles(), found, (64, 112), RULES[task])]


def test_two_things_that_a_tile_holds_apart_stay_apart() -> None:
    """The other tile takes them for one, which matches both: the better match counts."""
    one, other = two_tiles()
    found = [
        [segment(one, 3, 0.9, np.s_[0:30], np.s_[20:64]), segment(one, 3, 0.8, np.s_[30:50], np.s_[20:64])],
        [segment(other, 3, 0.7, np.s_[0:50], np.s_[48:90])],
    ]
    merged = merge_tiles((one, other), found, (64, 112), RULES["panoptic"])
    assert [(s.class_id, s.score) for s in merged] == [(3, 0.9), (3, 0.8)]
    assert [s.mask.bbox_xywh for s in merged] == [(20, 0, 70, 50), (20, 30, 36, 20)]


def test_a_thing_that_a_tile_shows_whole_is_not_cut_at_the_border() -> None:
    """The tile on the left sees only grass there: the thing reaches 4 pixels over the border, far from all edges."""
    one, other = two_tiles()
    grass = [segment(tile, 0, 0.9, np.s_[:64], np.s_[:112]) for tile in (one, other)]
    ground = rle.encode_mask(~rle.decode((thing := segment(other, 3, 0.6, np.s_[20:30], np.s_[54:80])).counts, 64, 64))
    found = [grass[:1], [TileSegment(0, 0.9, ground), thing]]
    for task in ("panoptic", "instance"):
        masks = masks_of(found, task)
        assert [mask.sum() for mask in masks[-1:]] == [10 * 26], task
    assert masks_of(found, "panoptic")[0].sum() == 64 * 112 - 10 * 26


def test_a_thing_that_the_edge_of_its_tile_cuts_off_ends_at_the_border() -> None:
    one, other = two_tiles()
    cut = segment(other, 3, 0.6, np.s_[20:30], np.s_[48:80])
    grass = segment(one, 0, 0.9, np.s_[:64], np.s_[:112])
    assert masks_of([[grass], [cut]], "panoptic")[1].sum() == 10 * (80 - 56)
    assert masks_of([[grass], [cut]], "instance")[1].sum() == 10 * (80 - 48), "an instance may overlap others"


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_a_thing_in_no_core_of_its_tiles_is_dropped(task: str) -> None:
    one, _ = two_tiles()
    assert masks_of([[segment(one, 3, 0.9, np.s_[20:30], np.s_[57:64])], []], task) == []


def test_the_rim_of_a_thing_in_the_thing_beside_it_does_not_join_the_two() -> None:
    """It lies in the other thing as a whole, but is far smaller in the strip."""
    one, other = two_tiles()
    found = [
        [segment(one, 3, 0.9, np.s_[0:30], np.s_[20:51])],
        [segment(other, 3, 0.8, np.s_[0:30], np.s_[48:90])],
    ]
    assert len(masks_of(found, "instance")) == 2
    found[0] = [segment(one, 3, 0.9, np.s_[0:30], np.s_[20:54])]
    assert len(masks_of(found, "instance")) == 1, "more than a quarter of the other thing's pixels in the strip"


def test_scores_are_the_best_of_a_thing_and_the_mean_of_stuff() -> None:
    one, other = two_tiles()
    found = [
        [segment(tile, class_id, score, rows, np.s_[:112]) for class_id, rows in ((0, np.s_[:32]), (3, np.s_[32:]))]
        for tile, score in ((one, 0.6), (other, 0.9))
    ]
    stuff, thing = merge_tiles((one, other), found, (64, 112), RULES["panoptic"])
    assert (stuff.score, thing.score) == (pytest.approx(0.75), 0.9)
    assert (stuff.mask.area, thing.mask.area) == (32 * 112, 32 * 112)
