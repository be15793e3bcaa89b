"""Masks painted as runs are the masks painted pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.masks.paint import paint_counts, painted_runs
from m2f_core.masks.rle import encode_mask, label_runs

SIZE = st.tuples(st.integers(1, 25), st.integers(1, 25))


def disjoint_masks(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Masks of blocks or of single pixels; some pixels have none."""
    coarse = rng.integers(0, count + 1, (-(-size[0] // 4), -(-size[1] // 4)))
    of_pixel = np.kron(coarse, np.ones((4, 4), int))[: size[0], : size[1]] if rng.random() < 0.5 else None
    of_pixel = rng.integers(0, count + 1, size) if of_pixel is None else of_pixel
    return [of_pixel == n for n in range(count)]


@given(SIZE, st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_disjoint_masks(size, count, seed):
    rng = np.random.default_rng(seed)
    masks = disjoint_masks(rng, size, count)
    values, background = rng.integers(0, 2**24, count).tolist(), int(rng.integers(0, 3))
    expected_HW = np.full(size, background, np.int64)
    for mask, value in zip(masks, values, strict=True):
        expected_HW[mask] = value
    found = painted_runs([(encode_mask(m), v) for m, v in zip(masks, values, strict=True)], *size, background)
    expected = label_runs(expected_HW)
    assert np.array_equal(found.values, expected.values) and np.array_equal(found.lengths, expected.lengths)


@given(SIZE, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_pixel_of_two_masks(size, count, seed):
    rng = np.random.default_rng(seed)
    masks = disjoint_masks(rng, size, count)
    extra = rng.random(size) < 0.2
    before = np.any(masks, axis=0)
    counts = [encode_mask(mask) for mask in (*masks, extra)]
    map_WH = np.zeros(size[::-1], np.uint8)
    taken = [paint_counts(map_WH, one, 1) for one in counts]
    assert taken == [*[0] * count, int((before & extra).sum())]
    if any(taken):
        with pytest.raises(ValueError, match="share pixels"):
            painted_runs([(one, 1) for one in counts], *size)
    else:
        painted_runs([(one, 1) for one in counts], *size)


@pytest.mark.parametrize("counts", [b"", b"~", b"04", b"0102", b"9", b"0", b"5"])
def test_malformed_counts_and_masks_of_another_size(counts):
    whole = encode_mask(np.zeros((2, 3), bool))
    for masks in ([(counts, 1)], [(whole, 1), (counts, 2)], [(counts, 1), (whole, 2)]):
        with pytest.raises(ValueError, match="the masks are damaged"):
            painted_runs(masks, 2, 3)
