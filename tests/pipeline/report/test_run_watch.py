"""The driver's gauges: what they say of a run that has begun, works, and is done."""

import time

import pytest

from pipeline.commit.totals import Totals
from pipeline.report import run_watch
from pipeline.report.progress import Progress
from pipeline.report.run_watch import RunWatch
from pipeline.telemetry.in_flight import InFlight, UnderWay
from pipeline.telemetry.instruments import Gauge
from tests.pipeline.report.test_progress import plan_of, receipt


@pytest.fixture
def gauges(monkeypatch) -> dict:
    """The last value of each gauge, by its name without `m2f_run_` and the values of its labels."""
    values = {}

    def set_value(self, value, **labels):
        values["/".join((self.name.removeprefix("m2f_run_"), *labels.values()))] = value

    monkeypatch.setattr(Gauge, "set", set_value)
    return values


def test_gauges_follow_the_run(gauges):
    now, totals, progress = time.time(), Totals(), Progress(10)
    seen = InFlight(
        UnderWay(1, "segmenting", "a", "node-1", now - 50),
        frozenset({"reading", "segmenting"}),
        {"segmenting": 2},
        {"segmenting": 3},
    )
    watch = RunWatch(progress, lambda: seen, lambda: 1.5, now + 3600)
    watch.set_gauges()
    assert gauges == {}, "no run to speak of yet"

    progress.follow(plan_of(100), totals)
    watch.set_gauges()
    assert (gauges["images"], gauges["images_left"], gauges["images_failed"]) == (100, 100, 0)
    assert "seconds_left" not in gauges and gauges["last_receipt_timestamp_seconds"] == pytest.approx(now, abs=60)
    assert (gauges["failure_budget_images"], gauges["deadline_timestamp_seconds"]) == (1.5, now + 3600)
    assert 50 <= gauges["slowest_shard_seconds"] < 110
    assert (gauges["shards/segmenting/working"], gauges["shards/segmenting/waiting"]) == (2, 3)
    assert (gauges["shards/writing/working"], gauges["shards/reading/waiting"]) == (0, 0)

    watch.last_receipt = 5.0  # long ago
    watch.set_gauges()
    assert gauges["last_receipt_timestamp_seconds"] == 5.0, "nothing has come since"
    totals.add(receipt(0, 60))
    watch.set_gauges()
    assert gauges["last_receipt_timestamp_seconds"] == pytest.approx(now, abs=60)
    assert gauges["images_left"] == 40 and gauges["seconds_left"] > 0
    totals.add(receipt(1, 40))
    watch.set_gauges()
    assert (gauges["images_left"], gauges["seconds_left"]) == (0, 0)


def test_without_an_answer_of_the_stages_or_a_deadline_the_other_gauges_are_set(gauges):
    progress = Progress(10)
    progress.follow(plan_of(100), Totals())
    RunWatch(progress, lambda: None, lambda: 0.01, None).set_gauges()
    assert gauges["images_left"] == 100
    assert not [name for name in gauges if name.startswith(("shards", "slowest", "deadline"))]


def test_the_watch_sets_gauges_and_calls_at_once_and_once_more_at_the_end(gauges, monkeypatch):
    monkeypatch.setattr(run_watch, "SET_EVERY_SECONDS", 3600)
    totals, progress, calls = Totals(), Progress(10), []
    progress.follow(plan_of(100), totals)
    with RunWatch(progress, lambda: None, lambda: 0.01, None, lambda: calls.append(1)):
        totals.add(receipt(0, 100))
    assert gauges["images_left"] == 0 and calls == [1]
