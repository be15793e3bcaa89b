"""Counters, gauges and histograms that Ray exports to Prometheus, and that cost nothing where Ray does not run.

In a process that has joined a Ray, a value goes to Ray's metrics of that process; Ray adds the prefix `ray_` and labels
for node and process. In any other process (a child process of a model actor, a library call, a test) a value is
dropped. Every instrument has the label `run_id`.
"""

import sys
from collections.abc import Iterable
from typing import Any, ClassVar

RUN_ID = "run_id"
SET_EVERY_SECONDS = 5.0  # half of the interval at which Ray collects values

_run: dict[str, str] = {RUN_ID: ""}


def label_run(run_id: str) -> None:
    """Label all later values of this process with the run. A process works for one run, so this adds no series."""
    _run[RUN_ID] = run_id


class Instrument:
    """Name, text and labels of a metric, and from the first value on Ray's object for it."""

    kind: ClassVar[str]

    def __init__(self, name: str, text: str, labels: Iterable[str] = ()):
        self.name, self.text, self.labels = name, text, tuple(labels)
        self._of_ray: Any = None

    @property
    def exported_name(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}"

    def _make(self) -> Any:
        from ray.util import metrics

        return getattr(metrics, self.kind.capitalize())(self.name, self.text, tag_keys=(*self.labels, RUN_ID))

    def _ready(self) -> Any:
        """Ray's object; None in a process without Ray. Does not load Ray."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if self._of_ray is None:
            self._of_ray = self._make()
        return self._of_ray

    def _tags(self, labels: dict[str, str]) -> dict[str, str]:
        if labels.keys() != set(self.labels):
            raise TypeError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        return {**labels, **_run}


class Counter(Instrument):
    """A sum that only grows. Ray keeps the last value of a process that has ended, until its node ends."""

    kind = "counter"

    def add(self, value: float = 1, **labels: str) -> None:
        tags = self._tags(labels)
        if value > 0 and (of_ray := self._ready()) is not None:
            of_ray.inc(value, tags)


class Gauge(Instrument):
    """A value that goes up and down. Ray forgets the value 20 s after its process has ended."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        tags = self._tags(labels)
        if (of_ray := self._ready()) is not None:
            of_ray.set(value, tags)


class Histogram(Instrument):
    """How often values fell into each bucket.

    `_bucket` and `_count` are exact. `_sum` is not: Ray 2.60 passes counts alone from process to node, and the node
    takes the middle of a bucket for each of its values. Where a mean matters, a counter beside the histogram has it.
    """

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Iterable[str] = (), *, buckets: tuple[float, ...]):
        super().__init__(name, text, labels)
        self.buckets = buckets

    def _make(self) -> Any:
        from ray.util import metrics

        return metrics.Histogram(self.name, self.text, boundaries=list(self.buckets), tag_keys=(*self.labels, RUN_ID))

    def observe(self, value: float, **labels: str) -> None:
        tags = self._tags(labels)
        if (of_ray := self._ready()) is not None:
            of_ray.observe(value, tags)
