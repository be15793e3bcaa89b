"""The suite of benchmarks: which scripts it runs, and when a ratio has fallen."""

import json

import pytest

from tests.benchmarks import suite
from tests.benchmarks.suite import BASELINE, SUITE, Benchmark, fallen, measure, table
from tests.support.places import ROOT

# Scripts that give seconds and bytes at a size, not a ratio; docs/benchmarks.md names them.
WITHOUT_RATIO = {"export", "extras", "forecast", "graph", "metrics", "page", "plan", "steps", "store", "taper", "tiles"}
WITHOUT_RATIO |= {"verify", "families", "runtimes", "start"}


def test_each_script_is_in_the_suite_or_gives_no_ratio() -> None:
    scripts = {path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}
    in_suite = {benchmark.script.removeprefix("bench_").removesuffix(".py") for benchmark in SUITE} - {"device_card"}
    assert in_suite <= scripts
    assert scripts - in_suite <= WITHOUT_RATIO
    assert all((ROOT / "tests" / "benchmarks" / benchmark.script).is_file() for benchmark in SUITE)


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"a": 1.91, "b": 3.0}, []), ({"a": 1.89, "b": 9.0}, ["a"]), ({"b": 3.0}, ["a"]), ({"a": 2.0, "b": 2.0}, ["b"])],
)
def test_a_ratio_has_fallen_if_it_is_more_than_a_twentieth_lower_or_gone(found, expected) -> None:
    assert fallen({**found, "new": 0.1}, {"a": 2.0, "b": 3.0}) == expected


def test_a_ratio_below_the_baseline_is_measured_again_and_the_better_counts(monkeypatch) -> None:
    runs = iter([1.0, 1.5, 7.0])
    monkeypatch.setattr(suite, "run_script", lambda *_: json.dumps({"r": next(runs)}))
    benchmark = Benchmark("b", "bench.py", (), lambda document: {"r": document["r"]})

    assert measure(benchmark, {"b: r": 2.0, "other: r": 9.0}) == {"b: r": 1.5}
    assert measure(benchmark, {"b: r": 2.0}) == {"b: r": 7.0}
    assert "| b: r | 7.00 | 2.00 |" in table({"b: r": 7.0}, {"b: r": 2.0})


def test_the_baseline_is_of_benchmarks_that_are_there() -> None:
    recorded = json.loads(BASELINE.read_text())["ratios"]
    names = [benchmark.name for benchmark in SUITE]
    assert recorded and {name.split(": ")[0] for name in recorded} <= set(names)
    assert all(ratio > 0 for ratio in recorded.values())
