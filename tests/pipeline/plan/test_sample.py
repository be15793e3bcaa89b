"""Images drawn from a plan: each with the same chance, spread evenly, in order, whatever the shards."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.sample import Sample, is_segmented
from tests.support.listed import PlannedImage, planned_table


def shards(sizes: list[int], removed: int = 0) -> list[pa.Table]:
    """Images 0, 1, ... in shards of these sizes; each `removed`-th is gone from the input."""
    tables, first = [], 0
    for size in sizes:
        numbers = range(first, first + size)
        first += size
        reasons = ["removed" if removed and number % removed == 0 else "new" for number in numbers]
        images = (PlannedImage(f"file:///{n:06d}", "e", 1, reason=r) for n, r in zip(numbers, reasons, strict=True))
        tables.append(planned_table(images))
    return tables


def drawn(size: int, seed: int, tables: list[pa.Table]) -> list[int]:
    num_images = sum(table.filter(is_segmented(table)).num_rows for table in tables)
    sample = Sample(size, seed, num_images)
    sample.draw(tables)
    assert (sample.num_images, sample.num_shards) == (num_images, len(tables))
    return [int(key.removeprefix("file:///")) for key in sample.images()["image_key"].to_pylist()]


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 40), st.integers(0, 3), st.integers(0, 100))
def test_as_many_as_there_are_each_once_in_order(sizes, size, removed, seed):
    there = [number for number in range(sum(sizes)) if not removed or number % removed]
    found = drawn(size, seed, shards(sizes, removed))
    assert len(found) == min(size, len(there)) and set(found) <= set(there) and found == sorted(set(found))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 100))
def test_the_grouping_into_shards_does_not_matter(sizes, seed):
    assert drawn(7, seed, shards(sizes)) == drawn(7, seed, shards([sum(sizes)]))


@pytest.mark.parametrize("size", [10, 28])
def test_each_image_has_the_same_chance(size):
    """Of 40 images, `size` are drawn 1,000 times: each comes 25 * size times, with a standard deviation below 16."""
    tables = shards([3, 17, 1, 19])
    times = [0] * 40
    for seed in range(1000):
        for number in drawn(size, seed, tables):
            times[number] += 1
    assert sum(times) == 1000 * size and min(times) > 25 * size - 6 * 16 and max(times) < 25 * size + 6 * 16


@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 100))
def test_each_stretch_of_the_plan_has_its_share(size, length, seed):
    """Of each `length` neighbours, the sample has as many as is their share, but for two at the ends of the stretch."""
    found = drawn(size, seed, shards([200]))
    for begin in range(0, 200 - length, 7):
        assert abs(sum(begin <= number < begin + length for number in found) - size * length / 200) < 2.5


def test_a_seed_gives_the_same_images_again():
    tables = shards([500])
    assert drawn(20, 1, tables) == drawn(20, 1, tables) != drawn(20, 2, tables)


@pytest.mark.parametrize("tables", [[], shards([4], removed=1)])
def test_nothing_is_drawn_from_nothing(tables):
    assert drawn(5, 0, tables) == []
