"""What steps take is measured by the clock that they say, and adds up."""

import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from pipeline.commit.receipt import Receipt
from pipeline.runs.accounting import Clock
from pipeline.schema import ModelVisit, costs_of, pack_shard, visit_of
from pipeline.telemetry.costs import STEPS, Costs, add_up


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_each_clock_counts_what_it_says():
    costs = Costs()
    with costs.passing("model"), costs.of_process("read"), costs.of_thread("decode"):
        time.sleep(0.1)
        work(0.05)
    assert costs.seconds["model"] >= 0.15
    assert 0.05 <= costs.seconds["decode"] < costs.seconds["model"], "a thread that sleeps costs no CPU"
    assert costs.seconds["read"] >= costs.seconds["decode"]


def test_threads_add_up_and_a_step_that_fails_has_cost_something():
    costs = Costs()

    def decode(number: int) -> None:
        with costs.of_thread("decode"):
            work(0.02)
            if number == 3:
                raise OSError

    with ThreadPoolExecutor(4) as threads:
        outcomes = [threads.submit(decode, number) for number in range(5)]
    assert sum(outcome.exception() is not None for outcome in outcomes) == 1
    assert costs.seconds["decode"] >= 0.1


def test_sums_keep_the_order_of_the_flow():
    assert add_up({"write": 1.0, "read": 2.0}, {}, {"read": 0.5}) == {"read": 2.5, "write": 1.0}
    assert list(add_up(dict.fromkeys(reversed(STEPS), 1.0))) == list(STEPS)
    assert add_up({}) == {}


@pytest.mark.parametrize("costs", [{}, {"read": 0.25, "decode": 1.5}])
def test_a_shard_carries_its_costs(costs):
    row = pack_shard(3, pa.table({"image_key": ["a"]}), costs)
    assert costs_of(row) == costs and visit_of(row) == ModelVisit()
    row = pack_shard(3, pa.table({"image_key": ["a"]}), costs, ModelVisit("node-7", 1.5, 2.5))
    assert visit_of(row) == ("node-7", 1.5, 2.5)


def test_a_device_is_busy_for_what_it_does_between_the_actors_first_shard_and_its_last():
    clock = Clock()
    for actor, started, ended, model, reduce in (
        ("a", 0.0, 10.0, 4.0, 1.0),
        ("a", 2.0, 20.0, 9.0, 1.0),  # while the first one is on the device, this one decodes
        ("b", 5.0, 9.0, 1.0, 0.0),
    ):
        seconds = {"decode": 7.0, "model": model, "reduce": reduce}
        clock.add(Receipt(0, 1, 0, {}, {}, started, ended + 5, seconds, actor, ended))
    assert clock.busy_shares() == {"a": 0.75, "b": 0.25}
    clock.add(Receipt(0, 1, 0, {}, {}, 3.0, 3.0, {}))
    assert "" not in clock.busy_shares(), "a shard that no model saw says nothing"
