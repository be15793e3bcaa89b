"""Images done, per second, failed, time left: a live bar on a terminal, one line per interval elsewhere."""

import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from pipeline.commit.receipt import Totals
from pipeline.telemetry.in_flight import UnderWay

_STRAGGLER_SECONDS = 60.0  # a shard that is under way for longer is named


class Progress:
    """Shows `totals` while it is entered; counts images, of all attempts of the run."""

    def __init__(
        self,
        num_images: int,
        totals: Totals,
        interval_seconds: float,
        oldest: Callable[[], UnderWay | None] = lambda: None,
    ):
        """`oldest`: gives the shard that is under way for longest, if there is one."""
        self.num_images = num_images
        self.oldest = oldest
        self.totals = totals
        self.interval_seconds = interval_seconds
        self.started = time.monotonic()
        self.done_before = totals.num_images
        self.console = Console(file=sys.stderr)
        self.bar = RichProgress(
            TextColumn("segmenting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("segmenting", total=num_images, completed=totals.num_images, rest="")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._print_lines, daemon=True, name="progress")

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bar.start()
        else:
            self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
        self.ended.set()

    def update(self) -> None:
        """Call after `totals` has changed."""
        self.bar.update(self.task, completed=self.totals.num_images, rest=self.rest())

    def rest(self) -> str:
        """`12.3 images/s, 4 failed, 0:12:30 left`"""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (self.totals.num_images - self.done_before) / seconds
        left = f"{_hms((self.num_images - self.totals.num_images) / rate)} left" if rate else "time left unknown"
        return f"{rate:.2f} images/s, {self.totals.num_failed} failed, {left}"

    def _print_lines(self) -> None:
        while not self.ended.wait(self.interval_seconds):
            line = f"{self.totals.num_images}/{self.num_images} images, {self.rest()}{self.straggler()}"
            print(line, file=sys.stderr, flush=True)

    def straggler(self) -> str:
        """`; shard 42 (from s3://b/x.jpg on) is segmenting on gpu-3 since 0:05:10`, where one takes so long."""
        oldest = self.oldest()
        if oldest is None or (seconds := time.time() - oldest.since) < _STRAGGLER_SECONDS:
            return ""
        where = f"is {oldest.stage} on {oldest.host} since {_hms(seconds)}"
        return f"; shard {oldest.shard} (from {oldest.first_key} on) {where}"


def _hms(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
