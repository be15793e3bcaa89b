"""Many masks measured at once: as pycocotools and as rle.py measure one, and every fault is found."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_core.masks import measure as module
from m2f_core.masks.measure import FAULTS, Measured, measure, shared_pixels
from m2f_core.masks.rle import (
    MAX_PIXELS,
    counts_area,
    counts_bbox_xywh,
    decode,
    decode_counts,
    encode_counts,
    encode_mask,
)

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def measured(counts: list[bytes], sizes: list[tuple[int, int]]) -> Measured:
    offsets = np.cumsum([0, *map(len, counts)])
    heights, widths = (np.array([size[axis] for size in sizes], np.int32) for axis in (0, 1))
    return measure(np.frombuffer(b"".join(counts), np.uint8), offsets, heights, widths)


@given(st.lists(masks, max_size=6))
@settings(deadline=None)
def test_sound_masks_measure_as_pycocotools_measures_each(drawn: list[np.ndarray]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in drawn]
    found = measured([rle["counts"] for rle in theirs], [mask.shape for mask in drawn])
    assert not found.faults.any()
    assert found.areas.tolist() == [int(coco.area(rle)) for rle in theirs]
    assert found.boxes_xywh.tolist() == [coco.toBbox(rle).tolist() for rle in theirs]
    for n, mask in enumerate(drawn):
        runs = slice(found.firsts[n], found.firsts[n + 1])
        again = np.zeros(mask.size, bool)
        for start, stop in zip(found.starts[runs], found.stops[runs], strict=True):
            again[start:stop] = True
        np.testing.assert_array_equal(again.reshape(mask.shape[::-1]).T, mask)


def is_sound(counts: bytes, height: int, width: int) -> bool:
    """By the functions for one mask."""
    try:
        return height >= 1 and width >= 1 and encode_mask(decode(counts, height, width)) == counts
    except ValueError:
        return False


@given(
    st.binary(max_size=12) | st.text("0123NOPQ`ao\x7f", max_size=6).map(str.encode),
    st.integers(0, 5),
    st.integers(0, 5),
)
@example(b"", 2, 2)
@example(b"`04", 2, 2)  # 0 in two characters
@example(b"oo14", 2, 2)  # -1 in two characters
@example(b"040", 2, 2)  # empty runs at the end
@settings(deadline=None, max_examples=8 * settings.default.max_examples)
def test_a_mask_is_sound_if_encoding_it_gives_the_same_characters(counts: bytes, height: int, width: int) -> None:
    found = measured([b"04", counts, b"13"], [(2, 2), (height, width), (2, 2)])
    assert (found.faults[1] == 0) == is_sound(counts, height, width)
    assert found.faults[[0, 2]].tolist() == [0, 0] and found.areas[[0, 2]].tolist() == [4, 3], "neighbours are measured"
    if found.faults[1]:
        assert int(found.faults[1]) in FAULTS and found.areas[1] == 0 and found.firsts[1] == found.firsts[2]
    else:
        assert found.areas[1] == counts_area(counts)
        assert tuple(found.boxes_xywh[1].tolist()) == counts_bbox_xywh(counts, height, width)


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        (b"", module._EMPTY),
        (b"0p4", module._BAD_CHARACTER),
        (b"oooooooo", module._TOO_LONG),
        (b"0O", module._OUT_OF_RANGE),
        (b"04P", module._TRUNCATED),
        (b"04`", module._TRUNCATED),
        (b"03", module._WRONG_TOTAL),
        (b"05", module._WRONG_TOTAL),
        (b"0T0", module._NOT_SHORTEST),  # 4 in two characters
        (b"040", module._NOT_SHORTEST),  # an empty run at the end
    ],
)
def test_each_fault_has_its_name(counts, fault):
    found = measured([counts], [(2, 2)])
    assert FAULTS[int(found.faults[0])] == FAULTS[fault]


def test_an_image_of_the_most_pixels():
    lengths = np.array([MAX_PIXELS - 5, 5])
    found = measured([encode_counts(lengths)], [(MAX_PIXELS // 5, 5)])
    assert found.areas.tolist() == [5] and found.stops.tolist() == [MAX_PIXELS] and not found.faults.any()
    assert decode_counts(encode_counts(lengths)).tolist() == lengths.tolist()
    assert measured([b"0"], [(2**31 - 1, 2**31 - 1)]).faults.tolist() == [module._WRONG_TOTAL]


@given(st.lists(st.lists(hnp.arrays(bool, (13, 7)), max_size=4), max_size=4), st.data())
@settings(deadline=None)
def test_masks_share_pixels_if_their_sum_says_so(images: list[list[np.ndarray]], data: st.DataObject) -> None:
    """By bits and, as for large images, by sorting; without the masks that do not count."""
    drawn = [mask for image in images for mask in image]
    counted = np.array([data.draw(st.booleans()) for _ in drawn], bool)
    found = measured([encode_mask(mask) for mask in drawn], [(13, 7)] * len(drawn))
    firsts, num_pixels = np.cumsum([0, *map(len, images)]), np.full(len(images), 13 * 7)
    expected = []
    for first, image in zip(firsts.tolist(), images, strict=False):
        those = [mask for n, mask in enumerate(image) if counted[first + n]]
        expected.append(bool(those and np.sum(those, axis=0).max() > 1))
    assert shared_pixels(found, firsts, num_pixels, counted).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_BITS", 90)
        assert shared_pixels(found, firsts, num_pixels, counted).tolist() == expected
    if counted.all():
        assert shared_pixels(found, firsts, num_pixels).tolist() == expected


def test_a_mask_beyond_the_pixels_of_its_image_is_refused():
    found = measured([b"04", b"04"], [(2, 2), (2, 2)])
    with pytest.raises(ValueError, match="image 0 has 3 pixels, and a mask that goes beyond them"):
        shared_pixels(found, np.array([0, 2]), np.array([3]))


@pytest.mark.parametrize("offsets", [[0, 9], [-1, 2], [2, 1]])
def test_offsets_outside_of_the_characters_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        measure(np.frombuffer(b"04", np.uint8), np.array(offsets), np.array([2]), np.array([2]))
