"""Seconds that each step of a shard takes, for the report of the run."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# In the order of the flow. Steps on the device count wall-clock seconds, the others CPU seconds.
ON_DEVICE = ("model", "reduce")
STEPS = ("read", "decode", "resize", *ON_DEVICE, "encode", "write")


def add_up(*costs: Mapping[str, float]) -> dict[str, float]:
    """The sum of each step, in the order of STEPS."""
    return {step: sum(cost.get(step, 0.0) for cost in costs) for step in STEPS if any(step in cost for cost in costs)}


class Costs:
    """Adds up the seconds that one shard takes. Thread safe."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # Of each step, when its first piece began and its last piece ended, in seconds since the epoch.
        self.spans: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of_thread(self, step: str) -> Iterator[None]:
        """CPU seconds of this thread."""
        with self._measured(step, time.thread_time):
            yield

    @contextmanager
    def of_process(self, step: str) -> Iterator[None]:
        """CPU seconds of the process, for a step during which the process does nothing else."""
        with self._measured(step, time.process_time):
            yield

    @contextmanager
    def passing(self, step: str) -> Iterator[None]:
        """Wall-clock seconds."""
        with self._measured(step, time.perf_counter):
            yield

    def add(self, step: str, seconds: float, began: float) -> None:
        """Seconds that were measured elsewhere, of a piece that began at `began` (since the epoch) and ends now."""
        self._add(step, seconds, began, time.time())

    @contextmanager
    def _measured(self, step: str, clock: Callable[[], float]) -> Iterator[None]:
        began, started = time.time(), clock()
        try:
            yield
        finally:
            self._add(step, clock() - started, began, time.time())

    def _add(self, step: str, seconds: float, began: float, ended: float) -> None:
        with self._lock:
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
            self.spans[step] = (min(began, self.spans.get(step, (began, 0.0))[0]), ended)
