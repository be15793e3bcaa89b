"""The accounting of a run: the run is finished only if every planned image has exactly one row."""

from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.commit.receipt import Receipt
from pipeline.commit.run_report import Report
from pipeline.commit.totals import Totals
from pipeline.errors import BrokenRunError
from pipeline.runs.begin import Run
from pipeline.telemetry.costs import ON_DEVICE


@dataclass
class ActorTime:
    """When a model actor took its first shard and finished its last, and how long its device was busy in between."""

    started: float
    ended: float = 0.0
    busy_seconds: float = 0.0

    def add(self, receipt: Receipt) -> None:
        self.started = min(self.started, receipt.started)
        self.ended = max(self.ended, receipt.model_ended)
        self.busy_seconds += sum(receipt.seconds.get(step, 0.0) for step in ON_DEVICE)


class Clock:
    """The time in which the models worked: from the first shard's start to the last receipt of this attempt."""

    def __init__(self) -> None:
        self.started, self.finished, self.num_images = float("inf"), 0.0, 0
        self.actors: dict[str, ActorTime] = {}

    def add(self, receipt: Receipt) -> None:
        self.started = min(self.started, receipt.started)
        self.finished = max(self.finished, receipt.finished)
        self.num_images += receipt.num_images - receipt.num_removed
        self.actors.setdefault(receipt.model_actor, ActorTime(receipt.started)).add(receipt)

    def busy_shares(self) -> dict[str, float]:
        """For each model actor, the share of its working time in which its device was busy."""
        return {
            actor: round(time.busy_seconds / (time.ended - time.started), 3)
            for actor, time in sorted(self.actors.items())
            if time.ended > time.started
        }


def close_books(run: Run, totals: Totals, done_before: int, clock: Clock) -> Report:
    """Check the counts of the run and return its report. BrokenRunError if any image or shard lacks a valid receipt.

    If another driver took over the run while this driver was suspended, or fenced this driver off, receipts of this
    driver are ignored. Without the check, this driver would publish what the journal has and call it the whole run.
    """
    if totals.shards != set(range(run.plan.num_shards)) or totals.num_images != run.plan.num_images:
        raise BrokenRunError(
            f"the counts of run {run.run_id} do not add up: {totals.num_images} of {run.plan.num_images} images and "
            f"{len(totals.shards)} of {run.plan.num_shards} shards have receipts"
        )
    if not run.journal.is_the_latest():
        raise BrokenRunError(
            f"another driver took over run {run.run_id}; results that this driver wrote afterwards are ignored"
        )
    num_tried = totals.num_images - totals.num_removed
    seconds = max(clock.finished - clock.started, 0.0) if clock.num_images else 0.0
    return Report(
        run_id=run.run_id,
        created=run.created.isoformat(timespec="microseconds"),
        num_images=totals.num_images,
        num_ok=num_tried - totals.num_failed,
        num_failed=totals.num_failed,
        num_removed=totals.num_removed,
        counts=run.plan.counts,
        num_segments=totals.num_segments,
        failed_by_code=dict(sorted(totals.failed_by_code.items())),
        num_shards=run.plan.num_shards,
        num_shards_done_before=done_before,
        seconds=round(seconds, 3),
        images_per_second=round(clock.num_images / seconds, 3) if seconds else 0.0,
        finished_at=utc_now(),
        step_ms={step: round(1e3 * seconds / num_tried, 3) for step, seconds in totals.seconds.items() if num_tried},
        device_busy=clock.busy_shares(),
        part_bytes=dict(sorted(totals.part_bytes.items())),
    )


def utc_now() -> str:
    """The current time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
