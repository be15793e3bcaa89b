"""Look-ahead: order, the bound of what is under way, errors, and an iterator that is closed half-way."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.look_ahead import look_ahead

SIZES = st.lists(st.integers(0, 20), max_size=30)


class Recorder:
    """Stands for an executor that computes nothing before it is asked: knows what is under way."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.under_way = []
        self.most, self.most_size = 0, 0
        self.cancelled = []

    def submit(self, item):
        self.under_way.append(item)
        self.most = max(self.most, len(self.under_way))
        self.most_size = max(self.most_size, sum(size for _, size in self.under_way))
        return Promise(self, item)


class Promise:
    def __init__(self, recorder, item):
        self.recorder, self.item = recorder, item

    def result(self):
        self.recorder.under_way.remove(self.item)
        if self.item[0] == self.recorder.fail_at:
            raise ValueError(f"item {self.item[0]}")
        return self.item

    def cancel(self):
        self.recorder.under_way.remove(self.item)
        self.recorder.cancelled.append(self.item)
        return True


@given(SIZES, st.integers(0, 5), st.integers(0, 30))
def test_results_come_in_order_and_what_is_under_way_is_bounded(sizes, ahead, most_size):
    recorder, items = Recorder(), list(enumerate(sizes))
    results = list(look_ahead(recorder.submit, iter(items), ahead, size=lambda item: item[1], most_size=most_size))
    assert results == items
    assert recorder.most <= ahead + 1
    assert recorder.most_size <= max(most_size, max(sizes, default=0))
    assert not recorder.under_way and not recorder.cancelled


@given(SIZES, st.integers(0, 5))
def test_the_bound_is_used(sizes, ahead):
    recorder = Recorder()
    list(look_ahead(recorder.submit, enumerate(sizes), ahead))
    assert recorder.most == min(ahead + 1, len(sizes))


@given(SIZES, st.integers(0, 5), st.data())
def test_an_error_comes_in_its_place_and_the_rest_is_cancelled(sizes, ahead, data):
    fail_at = data.draw(st.integers(0, len(sizes)))
    recorder, results = Recorder(fail_at), []
    with pytest.raises(ValueError, match=f"item {fail_at}$") if fail_at < len(sizes) else contextlib.nullcontext():
        for number, _ in look_ahead(recorder.submit, enumerate(sizes), ahead):
            results.append(number)
    assert results == list(range(fail_at))
    assert not recorder.under_way
    assert len(recorder.cancelled) <= ahead


@given(SIZES, st.integers(0, 5), st.integers(0, 30))
def test_a_reader_that_stops_leaves_nothing_under_way_and_takes_no_further_items(sizes, ahead, taken):
    recorder, items = Recorder(), iter(list(enumerate(sizes)))
    results = look_ahead(recorder.submit, items, ahead)
    for _ in range(min(taken, len(sizes))):
        next(results)
    results.close()
    assert not recorder.under_way
    assert len(list(items)) >= len(sizes) - min(taken, len(sizes)) - ahead


def test_items_that_raise_cancel_what_is_under_way():
    recorder = Recorder()

    def items():
        yield 0, 0
        yield 1, 0
        raise RuntimeError("no more items")

    with pytest.raises(RuntimeError, match="no more items"):
        list(look_ahead(recorder.submit, items(), 5))
    assert not recorder.under_way and len(recorder.cancelled) == 2


def test_the_bound_may_change_on_the_way():
    recorder, bound, under_way = Recorder(), [3], []

    def items():
        for number in range(8):
            bound[0] = 3 if number < 4 else 0
            under_way.append(len(recorder.under_way))
            yield number, 0

    list(look_ahead(recorder.submit, items(), lambda: bound[0]))
    assert under_way == [0, 1, 2, 3, 3, 0, 0, 0]


def test_threads_of_an_executor_compute_while_the_reader_waits_for_the_first():
    """Two items meet at a barrier, which one alone would not pass."""
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        submit = lambda item: pool.submit(lambda: (together.wait(60), item)[1])  # noqa: E731
        assert list(look_ahead(submit, "ab", 1)) == ["a", "b"]
