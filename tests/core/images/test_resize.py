"""Resizing against Pillow itself, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.images import resize
from m2f_core.images.resize import RESAMPLES, resize_by_kernel, resize_by_torch

LENGTHS = st.one_of(st.integers(1, 12), st.integers(1, 150))


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.sampled_from(sorted(RESAMPLES)), st.booleans(), st.integers(0, 2**32 - 1))
@example(90, 40, 20, 35, 2, False, 0)  # loses rows: Pillow 13 filters the columns first
@example(90, 40, 20, 60, 3, True, 0)
@example(3000, 2, 7, 2, 2, False, 0)  # many taps along one axis, none along the other
def test_every_way_gives_what_pillow_gives(height, width, new_height, new_width, resample, extreme, seed) -> None:
    image_hw3 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if extreme:  # where cubic filters overshoot
        image_hw3 = (image_hw3 > 127).astype(np.uint8) * 255
    size_hw = (new_height, new_width)
    expected = np.asarray(Image.fromarray(image_hw3).resize(size_hw[::-1], Image.Resampling(resample)))
    assert np.array_equal(resize_by_kernel(image_hw3, size_hw, resample), expected)
    assert np.array_equal(resize_by_torch(torch.from_numpy(image_hw3)[None], size_hw, resample)[0].numpy(), expected)


@pytest.mark.parametrize("size_hw", [(800, 1067), (512, 683), (375, 500), (120, 160), (480, 640)])
def test_real_sizes(size_hw) -> None:
    image_hw3 = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image_hw3).resize(size_hw[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(resize_by_kernel(image_hw3, size_hw, 2), expected)


def test_both_orders_of_the_passes_are_the_same_in_both_ways(monkeypatch) -> None:
    """Only one of them is what the installed Pillow does."""
    image_hw3 = np.random.default_rng(0).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    results = []
    for may_be_first in (True, False):
        monkeypatch.setattr(resize, "_COLUMNS_MAY_BE_FIRST", may_be_first)
        results.append(resize_by_kernel(image_hw3, (20, 35), 2))
        assert np.array_equal(resize_by_torch(torch.from_numpy(image_hw3)[None], (20, 35), 2)[0].numpy(), results[-1])
    assert not np.array_equal(*results)
