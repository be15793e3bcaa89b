"""How a run ends at a limit: its stages stop, and the driver waits for as long as a shard may come."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.budget.prices import Prices
from pipeline.forecast import limit_watch, limits
from pipeline.forecast.limit_watch import LimitWatch
from pipeline.forecast.limits import Limits
from pipeline.guard.interruption import interrupt_main, interruptible
from pipeline.telemetry.in_flight import InFlight
from tests.support.run_records import receipt
from tests.support.waiting import wait_until

PRICES = Prices({"L4": 3600.0}, "test")  # a dollar a second
NOW = datetime(2026, 12, 1, 1, tzinfo=UTC)


class Stages:
    """Shards that models have begun, as many as a test says."""

    def __init__(self) -> None:
        self.begun, self.answers, self.times_stopped = 3, True, 0

    def look(self) -> InFlight | None:
        seen = InFlight(
            None, frozenset(), {"segmenting": self.begun, "reading": 5}, {"segmenting": 7}, held={"L4": 7.0}
        )
        return seen if self.answers else None

    def stop(self) -> None:
        self.times_stopped += 1


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [NOW.timestamp()]
    monkeypatch.setattr(limit_watch.time, "time", lambda: now[0])
    monkeypatch.setattr(limits.COST, "add", lambda amount: None)
    return now


@pytest.fixture
def interrupts(monkeypatch) -> list[int]:
    """In place of the interrupt of the main thread."""
    times: list[int] = []
    monkeypatch.setattr(limit_watch, "interrupt_main", lambda: times.append(1))
    return times


def stopping(clock: list[float]) -> tuple[LimitWatch, Stages]:
    """A watch whose deadline has come, while the main thread waits."""
    stages = Stages()
    watch = LimitWatch(Limits(NOW + timedelta(seconds=60), None, PRICES), stages)
    watch.check()
    assert not stages.times_stopped and watch.limits.reached is None
    clock[0] += 60
    watch.waits = True
    watch.check()
    assert stages.times_stopped == 1 and watch.limits.reached == "--deadline 2026-12-01T01:01:00Z"
    return watch, stages


def test_the_stages_stop_at_the_limit_and_hear_so_again(clock, interrupts):
    watch, stages = stopping(clock)
    watch.check()
    assert stages.times_stopped == 2 and not interrupts


def test_the_stages_stop_with_the_last_shard_that_leaves_no_time_for_another(clock, interrupts):
    stages = Stages()
    watch = LimitWatch(Limits(NOW + timedelta(seconds=60), None, PRICES), stages)
    watch.add(receipt("r", 0, started=1.0, finished=41.0))
    assert not stages.times_stopped
    clock[0] += 30
    watch.add(receipt("r", 1, started=1.0, finished=11.0))
    assert stages.times_stopped == 1


def test_shards_that_were_begun_are_waited_for(clock, interrupts):
    watch, stages = stopping(clock)
    clock[0] += 299
    watch.check()
    assert not interrupts
    stages.begun = 0
    watch.check()
    clock[0] += 59
    watch.check()
    assert not interrupts, "the graph runs empty by itself"


def test_a_graph_that_waits_for_a_node_is_left_once_no_shard_is_begun(clock, interrupts):
    watch, stages = stopping(clock)
    stages.begun = 0
    watch.check()
    clock[0] += 61
    watch.check()
    watch.check()
    assert len(interrupts) == 1 and watch.has_given_up


def test_shards_that_are_begun_late_start_the_time_anew(clock, interrupts):
    """A shard whose node was lost comes back as one that is begun."""
    watch, stages = stopping(clock)
    for begun in (0, 1, 0):
        stages.begun = begun
        watch.check()
        clock[0] += 50
    watch.check()
    assert not interrupts


def test_a_shard_that_never_comes_is_not_waited_for_all_day(clock, interrupts, caplog):
    watch, _ = stopping(clock)
    watch.limits.add(receipt("r", 0, started=1.0, finished=101.0))
    clock[0] += 499
    watch.check()
    assert not interrupts
    clock[0] += 2
    watch.check()
    assert len(interrupts) == 1 and "some shards were begun and are not done" in caplog.text


def test_stages_that_do_not_answer_are_not_waited_for_all_day(clock, interrupts):
    watch, stages = stopping(clock)
    stages.answers = False
    clock[0] += 299
    watch.check()
    assert not interrupts
    clock[0] += 2
    watch.check()
    assert len(interrupts) == 1


def test_a_main_thread_that_works_is_not_interrupted(clock, interrupts):
    """It publishes, which may take long."""
    watch, _ = stopping(clock)
    watch.waits = False
    clock[0] += 10_000
    watch.check()
    assert not interrupts and not watch.has_given_up


def test_without_a_limit_the_cost_is_counted_and_nothing_stops(clock, interrupts):
    stages = Stages()
    watch = LimitWatch(Limits(None, None, PRICES), stages)
    clock[0] += 1e6
    watch.check()
    assert watch.limits.cost == 7 and not stages.times_stopped and not interrupts


def endless() -> Iterator[int]:
    """One item, then none for as long as anybody waits, as Ray Data without a node."""
    yield 1
    while True:
        time.sleep(0.01)


def test_items_end_where_waiting_is_in_vain():
    watch = LimitWatch(Limits(None, None, PRICES), Stages())
    assert list(watch.received(iter([1, 2]))) == [1, 2] and not watch.waits

    def give_up() -> None:
        wait_until(lambda: watch.waits)
        watch.has_given_up = True
        interrupt_main()

    with interruptible():
        items = watch.received(endless())
        assert next(items) == 1 and not watch.waits
        thread = threading.Thread(target=give_up)
        thread.start()
        assert list(items) == [] and not watch.waits
        thread.join()


def test_ctrl_c_and_errors_go_through():
    watch = LimitWatch(Limits(None, None, PRICES), Stages())

    def raising(error: BaseException) -> Iterator[int]:
        yield 1
        raise error

    for error in (KeyboardInterrupt(), SystemExit(143), ValueError("why")):
        items = watch.received(raising(error))
        assert next(items) == 1
        with pytest.raises(type(error)) as raised:
            next(items)
        assert raised.value is error and not watch.waits
