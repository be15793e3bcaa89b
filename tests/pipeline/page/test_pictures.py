"""Masks at the size of a picture against pixels, and images that cannot be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.masks.rle import decode, encode_counts, encode_mask
from pipeline.errors import RunError
from pipeline.page.images.pictures import small_counts, small_size


def segment(counts: bytes, height: int, width: int) -> dict:
    return {
        "segment_id": 3,
        "image_key": "s3://b/x.jpg",
        "segmentation": {"size": [height, width], "counts": counts.decode()},
    }


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_small_mask_has_the_pixels_at_the_centres(data, height, width, share, seed):
    to_height, to_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    mask_HW = np.random.default_rng(seed).random((height, width)) < share
    counts = small_counts(segment(encode_mask(mask_HW), height, width), to_height, to_width)
    rows = ((np.arange(to_height) + 0.5) * height / to_height).astype(int)
    columns = ((np.arange(to_width) + 0.5) * width / to_width).astype(int)
    assert counts == encode_mask(mask_HW[rows][:, columns])


def test_a_mask_of_billions_of_pixels_is_made_small_without_them():
    """Whoever may write tables could otherwise fill the memory."""
    side = 60_000
    half = side * (side // 2)
    counts = small_counts(segment(encode_counts(np.array([half, side * side - half])), side, side), 20, 20)
    small_hw = decode(counts, 20, 20)
    assert not small_hw[:, :10].any() and small_hw[:, 10:].all()


@pytest.mark.parametrize(
    ("counts", "size"),
    [(b"0102", (4, 4)), (b"~", (2, 2)), (b"", (2, 2)), (b"04", (-2, -2)), (b"04", (0, 4)), (b"01", (1, 1))],
)
def test_a_damaged_mask_is_one_line(counts, size):
    with pytest.raises(RunError, match=r"segment 3 of s3://b/x\.jpg is damaged: "):
        small_counts(segment(counts, *size), 2, 2)


def test_a_picture_keeps_the_aspect_and_is_never_larger_than_the_image():
    assert small_size(3000, 4000, 512) == (512, 384)
    assert small_size(10, 20, 512) == (20, 10)
    assert small_size(1, 100_000, 512) == (512, 1)
