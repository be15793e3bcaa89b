"""A map as its runs: both ways to find them, joining, and the way back."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.masks.on_device import Parcel, fetch_at_once, start_runs
from m2f_core.masks.rle import label_runs
from m2f_core.masks.run_map import RunMap


def on_device(planes_WH, runs_per_column, weights_WH=None, fetched=None):
    """As for a batch on a device; `fetched` gets the number of bytes of each copy."""

    def fetch(sent: torch.Tensor):
        if fetched is not None:
            fetched.append(sent.numel())
        return fetch_at_once(sent)

    parcel = Parcel()
    before = parcel.add(torch.tensor([0.5, 1.5], dtype=torch.float64))
    weights = weights_WH and [torch.from_numpy(weight) for weight in weights_WH]
    finish = start_runs([torch.from_numpy(plane) for plane in planes_WH], parcel, fetch, runs_per_column, weights)
    arrays = parcel.send(fetch)()
    assert arrays[before].tolist() == [0.5, 1.5]
    return finish(arrays)


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
    [found] = [one.runs for one in on_device([labels_WH.astype(np.int32)], runs_per_column=99)]
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


@given(st.lists(maps(), min_size=1, max_size=4), st.sampled_from([0, 1, 5, 99]), st.integers(0, 2**32 - 1))
def test_runs_of_many_maps_are_those_of_each_in_one_copy_or_two(planes_WH, runs_per_column, seed) -> None:
    generator = np.random.default_rng(seed)
    planes_WH = [plane.astype(np.int32) for plane in planes_WH]
    weights_WH = [generator.integers(0, 2**40, plane.shape) for plane in planes_WH]
    expected = [label_runs(plane.T) for plane in planes_WH]
    fetched: list[int] = []
    found = on_device(planes_WH, runs_per_column, weights_WH, fetched)
    size, columns = (sum(number(plane) for plane in planes_WH) for number in (np.size, len))
    room = min(size, runs_per_column * columns + len(planes_WH))
    assert len(fetched) == (1 if sum(runs.values.size for runs in expected) <= room else 2)
    assert fetched[0] == 16 + 8 + room * (4 + 4 + 8)
    for one, runs, weight in zip(found, expected, weights_WH, strict=True):
        assert np.array_equal(one.runs.values, runs.values) and np.array_equal(one.runs.lengths, runs.lengths)
        firsts = np.cumsum(runs.lengths) - runs.lengths
        assert np.array_equal(one.sums, np.add.reduceat(weight.reshape(-1), firsts.astype(np.int64)))


def test_no_maps_have_no_runs() -> None:
    assert on_device([], 99) == []
