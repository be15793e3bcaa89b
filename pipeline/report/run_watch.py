"""What machines see of a run: the driver's gauges for Prometheus, set every few seconds by a thread of their own."""

import threading
import time
from collections.abc import Callable

from pipeline.report.progress import Progress
from pipeline.shown_text import shown
from pipeline.store.filesystem import full_uri
from pipeline.telemetry.in_flight import STAGES, InFlight
from pipeline.telemetry.instruments import SET_EVERY_SECONDS
from pipeline.telemetry.metrics import (
    RUN_DEADLINE,
    RUN_FAILURE_BUDGET,
    RUN_IMAGES,
    RUN_IMAGES_FAILED,
    RUN_IMAGES_LEFT,
    RUN_LAST_RECEIPT,
    RUN_SECONDS_LEFT,
    RUN_SHARDS,
    RUN_SLOWEST_SHARD,
    RUNS,
)


class RunWatch:
    """A context manager that keeps the gauges up to date, from `Progress.follow` on to the end of the run."""

    def __init__(
        self,
        progress: Progress,
        look: Callable[[], InFlight | None],
        failure_budget: Callable[[], float],
        deadline: float | None,
        *each_time: Callable[[], None],
    ):
        """`look`: the shards that stages are working on; `failure_budget`: how many images may fail; `deadline`: in
        seconds since the epoch, if the run has one.

        `each_time` are called as often as gauges are set, by the same thread.
        """
        self.each_time = each_time
        self.progress, self.look = progress, look
        self.failure_budget, self.deadline = failure_budget, deadline
        self.num_done, self.last_receipt = -1, 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep_watching, daemon=True, name="run watch")

    def __enter__(self) -> "RunWatch":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()
        self.set_gauges()

    def _keep_watching(self) -> None:
        while True:
            self.set_gauges()
            for call in self.each_time:
                call()
            if self.ended.wait(SET_EVERY_SECONDS):
                return

    def set_gauges(self) -> None:
        images = self.progress.images
        if images is None:
            return
        num_done = images.totals.num_images
        if num_done != self.num_done:
            self.num_done, self.last_receipt = num_done, time.time()
        RUN_IMAGES.set(images.num_images)
        RUN_IMAGES_LEFT.set(images.num_images - num_done)
        RUN_IMAGES_FAILED.set(images.totals.num_failed)
        if images.seconds_left is not None:
            RUN_SECONDS_LEFT.set(images.seconds_left)
        RUN_FAILURE_BUDGET.set(self.failure_budget())
        if self.deadline is not None:
            RUN_DEADLINE.set(self.deadline)
        RUN_LAST_RECEIPT.set(self.last_receipt)
        seen = self.look()
        if seen is not None:
            RUN_SLOWEST_SHARD.set(max(0.0, time.time() - seen.oldest.since) if seen.oldest is not None else 0.0)
            for stage in STAGES:
                RUN_SHARDS.set(seen.working.get(stage, 0), stage=stage, state="working")
                RUN_SHARDS.set(seen.waiting.get(stage, 0), stage=stage, state="waiting")


def count_end(output: str, outcome: str) -> None:
    """Count the end of a driver that has joined a Ray. Ray keeps this count after the driver has gone."""
    RUNS.add(output=shown(full_uri(output)), outcome=outcome)
