"""A map as its runs: both ways to find them, joining, and the way back."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.masks.rle import label_runs
from m2f_core.masks.run_map import RunMap, label_runs_by_torch


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """[W, H] with long and short runs."""
    height, width, highest = draw(st.integers(1, 30)), draw(st.integers(1, 30)), draw(st.sampled_from([1, 3, 255, 400]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.integers(0, highest + 1, height * width)
    runs = np.repeat(values, generator.integers(1, draw(st.sampled_from([2, 20])), values.size))[: values.size]
    return runs.reshape(width, height).astype(np.uint8 if highest < 256 else np.uint16)


@given(maps())
def test_both_ways_find_the_same_runs_and_they_give_the_map_back(labels_WH) -> None:
    expected = label_runs(labels_WH.T)
    found = label_runs_by_torch(torch.from_numpy(labels_WH.astype(np.int32)))
    assert np.array_equal(found.values, expected.values) and np.array_equal(found.lengths, expected.lengths)
    assert found.values.dtype == expected.values.dtype and found.lengths.dtype == expected.lengths.dtype
    run_map = RunMap.from_transposed(labels_WH, int(np.iinfo(labels_WH.dtype).max))
    assert np.array_equal(run_map.array, labels_WH.T)
    assert run_map.array.dtype == labels_WH.dtype and run_map.array.flags.f_contiguous


@given(maps(), st.integers(0, 2**32 - 1))
def test_relabelled_runs_are_those_of_the_relabelled_map(labels_WH, seed) -> None:
    new_labels = np.random.default_rng(seed).integers(0, 4, 401)
    found = RunMap.from_transposed(labels_WH, 400).relabelled(new_labels).runs
    expected = label_runs(new_labels[labels_WH].T)
    assert np.array_equal(found.values, expected.values) and np.array_equal(found.lengths, expected.lengths)
    assert found.lengths.dtype == np.uint32
