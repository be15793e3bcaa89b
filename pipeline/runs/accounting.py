"""The accounting of a run: the run is finished only if every planned image has exactly one row."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.commit.receipt import Receipt, Totals
from pipeline.errors import BrokenRunError
from pipeline.runs.begin import Run
from pipeline.telemetry.costs import ON_DEVICE


@dataclass(frozen=True)
class Report:
    """The counts and timings of a run, as report.json stores them."""

    run_id: str
    created: str  # when the run was planned, ISO 8601, UTC
    num_images: int  # rows of the run: ok + failed + removed
    num_ok: int
    num_failed: int
    num_removed: int
    counts: dict[str, int]  # images by reason, including images that were left out: see changes.Changes
    num_segments: int
    failed_by_code: dict[str, int]
    num_shards: int
    num_shards_done_before: int  # finished by earlier attempts; this attempt never opened them
    seconds: float  # of this attempt, from the first shard on a model to the last receipt
    images_per_second: float  # of this attempt, model load excluded
    finished_at: str  # ISO 8601, UTC
    table_versions: dict[str, int] = field(default_factory=dict)  # of the Delta tables, once published
    # Milliseconds per image for each step, over all attempts: elapsed time for steps on the device, CPU time for the
    # others. See costs.
    step_ms: dict[str, float] = field(default_factory=dict)
    # Device, precision and CPU instructions of this attempt; run.json has the values of the first attempt.
    computed_on: dict[str, str | None] = field(default_factory=dict)
    # For each model actor of this attempt: in which share of its working time its device was busy. See Clock.
    device_busy: dict[str, float] = field(default_factory=dict)

    def exit_code(self, max_failure_rate: float) -> int:
        """1 if more than `max_failure_rate` of the processed images failed, else 0. Removed images do not count."""
        return 1 if self.num_failed > max_failure_rate * (self.num_images - self.num_removed) else 0


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
        counts=run.counts,
        num_segments=totals.num_segments,
        failed_by_code=dict(sorted(totals.failed_by_code.items())),
        num_shards=run.plan.num_shards,
        num_shards_done_before=done_before,
        seconds=round(seconds, 3),
        images_per_second=round(clock.num_images / seconds, 3) if seconds else 0.0,
        finished_at=utc_now(),
        step_ms={step: round(1e3 * seconds / num_tried, 3) for step, seconds in totals.seconds.items() if num_tried},
        device_busy=clock.busy_shares(),
    )


def utc_now() -> str:
    """The current time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
