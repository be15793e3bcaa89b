"""Show progress: a live line on a terminal, otherwise a log line at each new phase and each interval.

This module needs neither Ray nor PyTorch, so that it can report that these are being loaded. Its own thread updates the
line while the program waits.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from pipeline.commit.totals import Totals
from pipeline.telemetry.console import hms
from pipeline.telemetry.in_flight import InFlight
from pipeline.telemetry.log_lines import LogFormat

logger = logging.getLogger(__name__)

_STRAGGLER_SECONDS = 60.0  # name a shard that is under way for longer
_LOADING = "loading the model"
_TICK_SECONDS = 1.0  # interval between updates of the live line, and between checks for the first shard


class Plan(Protocol):
    """The attributes of plan.growing.GrowingPlan that the progress shows."""

    @property
    def num_images(self) -> int: ...

    is_complete: bool


class Progress:
    """A context manager that shows the phase of the program and, once `follow` is called, the number of done images."""

    def __init__(self, interval_seconds: float, log_format: LogFormat = "text"):
        """`interval_seconds`: the time between two log lines without a terminal."""
        self.interval_seconds = interval_seconds
        self.console = Console(file=sys.stderr)
        self.live = self.console.is_terminal and log_format == "text"
        self.name, self.since = "", time.monotonic()
        self.images: _Images | None = None
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rest]}", markup=False),
            console=self.console,
            disable=not self.live,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),  # leave the output to a file or pipe alone
        )
        self.task = self.bar.add_task("", total=None, rest="")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep_showing, daemon=True, name="progress")

    def __enter__(self) -> "Progress":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.bar.stop()

    def phase(self, name: str) -> None:
        """Begin a phase and show its name, for example `starting Ray`."""
        self.name, self.since = name, time.monotonic()
        if not self.live:
            logger.info(name)
        self._show()
        if self.thread.is_alive():
            self.bar.start()  # starts at the first phase, which has a name; later calls do nothing

    def follow(
        self,
        plan: Plan,
        totals: Totals,
        waiting: Callable[[], int] = lambda: 0,
        look: Callable[[], InFlight | None] = lambda: None,
    ) -> None:
        """Show `totals`, which counts images of all attempts of the run.

        `plan`: of the run; `waiting`: images in `totals` that are not committed; `look`: the shards that stages are
        working on.
        """
        if totals.num_images < plan.num_images or not plan.is_complete:
            self.phase(_LOADING)
        self.images = _Images(plan, totals, waiting, look)

    def kept(self) -> str:
        """`24 of 40 images are done and kept`, for a program that ends early."""
        if self.images is None:
            return "no image was started"
        done = self.images.totals.num_images - self.images.waiting()
        listed = "" if self.images.plan.is_complete else " that are listed so far"
        return f"{done:,} of {self.images.num_images:,} images{listed} are done and kept"

    def counts(self) -> dict[str, int]:
        """Images of the run; of these, those of all attempts that are done, failed and removed; their segments."""
        if self.images is None:
            return {}
        totals = self.images.totals
        return {
            "images": self.images.num_images,
            "done": totals.num_images,
            "failed": totals.num_failed,
            "removed": totals.num_removed,
            "segments": totals.num_segments,
        }

    def line(self) -> str:
        """The text of a progress line."""
        if self.images is not None and self.images.are_coming:
            return f"{self.images.line()}{self.images.straggler()}"
        return f"{self.name}, for {hms(time.monotonic() - self.since)} now"

    def _keep_showing(self) -> None:
        said = before = time.monotonic()
        while not self.ended.wait(min(_TICK_SECONDS, self.interval_seconds)):
            self._notice_first_shard(before)
            self._show()
            before = time.monotonic()
            if before - said < self.interval_seconds:
                continue
            said = before
            if not self.live:
                fields = self.images.fields() if self.images is not None else None
                logger.info(self.line(), extra={"progress": fields})

    def _notice_first_shard(self, not_before: float) -> None:
        images = self.images
        if images is not None and not images.begun and images.has_begun():
            images.begun = max(not_before, images.followed)
            if self.name == _LOADING and not images.num_new:
                self.phase("first shard")

    def _show(self) -> None:
        if not self.live:
            return
        images = self.images
        if images is None or not images.are_coming:
            self.bar.update(self.task, description=self.name, rest=hms(time.monotonic() - self.since))
            return
        done = images.totals.num_images
        self.bar.update(
            self.task, description="segmenting", total=images.num_images, completed=done, rest=images.line()
        )


class _Images:
    """The numbers of a run that is segmenting."""

    def __init__(
        self,
        plan: Plan,
        totals: Totals,
        waiting: Callable[[], int],
        look: Callable[[], InFlight | None],
    ):
        self.plan, self.totals = plan, totals
        self.waiting, self.look = waiting, look
        self.done_before = totals.num_images
        self.followed = time.monotonic()
        self.begun = 0.0  # when the first shard reached a model, by the monotonic clock

    @property
    def num_images(self) -> int:
        return self.plan.num_images

    @property
    def num_new(self) -> int:
        """Number of images that this attempt has done."""
        return self.totals.num_images - self.done_before

    @property
    def are_coming(self) -> bool:
        """Whether this attempt has done images and images are left, or may come."""
        return self.num_new > 0 and (self.totals.num_images < self.num_images or not self.plan.is_complete)

    @property
    def rate(self) -> float:
        """Images per second since the first shard reached a model."""
        return self.num_new / max(time.monotonic() - (self.begun or self.followed), 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Until the last image is done, at the rate so far; None before the first, and while the plan grows."""
        if not self.num_new or not self.plan.is_complete:
            return None
        return (self.num_images - self.totals.num_images) / self.rate

    def has_begun(self) -> bool:
        seen = self.look()
        return bool(self.num_new) or (seen is not None and "segmenting" in seen.stages)

    def line(self) -> str:
        """`12/40 images, 12.3 images/s, 4 failed, 0:12:30 left, slowest: model 81 ms per image`"""
        left = "time unknown" if self.seconds_left is None else f"{hms(self.seconds_left)} left"
        listed = "" if self.plan.is_complete else " listed so far"
        counts = f"{self.totals.num_images:,}/{self.num_images:,} images{listed}, {self.rate:.2f} images/s"
        return f"{counts}, {self.totals.num_failed:,} failed, {left}{self.slowest()}"

    def slowest(self) -> str:
        """The step that takes most of an image's time; telemetry.costs defines the steps."""
        seconds = self.totals.seconds
        step = max(seconds, key=seconds.__getitem__, default=None)
        if step is None or not self.totals.num_images:
            return ""
        return f", slowest: {step} {1e3 * seconds[step] / self.totals.num_images:,.1f} ms per image"

    def straggler(self) -> str:
        """`; shard 42 (from s3://b/x.jpg on) has been segmenting on gpu-3 for 0:05:10`, if a shard is slow."""
        seen = self.look()
        oldest = seen.oldest if seen is not None else None
        if oldest is None or (seconds := time.time() - oldest.since) < _STRAGGLER_SECONDS:
            return ""
        where = f"has been {oldest.stage} on {oldest.host} for {hms(seconds)}"
        return f"; shard {oldest.shard} (from {oldest.first_key} on) {where}"

    def fields(self) -> dict[str, float]:
        """The progress fields of a JSON line."""
        return {
            "images": self.num_images,
            "done": self.totals.num_images,
            "failed": self.totals.num_failed,
            "images_per_second": round(self.rate, 3),
        }
