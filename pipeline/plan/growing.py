"""The plan of a run as its driver knows it: complete, or growing while the input is still being listed."""

import threading
from dataclasses import dataclass, field

from pipeline.commit.run_record import PlanFile, PlanSummary, RunRecord


@dataclass
class GrowingPlan:
    """One thread writes, others read. Files are only added.

    counts: images by reason, including images that are not in the plan; see changes.Changes.
    """

    summary: PlanSummary
    counts: dict[str, int]
    is_complete: bool
    _changed: threading.Condition = field(default_factory=threading.Condition, compare=False, repr=False)

    @classmethod
    def of(cls, record: RunRecord) -> "GrowingPlan":
        """The plan as far as this record of the run goes."""
        return cls(record.plan, record.counts, record.plan_is_complete)

    @property
    def files(self) -> tuple[PlanFile, ...]:
        return self.summary.files

    @property
    def num_images(self) -> int:
        return self.summary.num_images

    @property
    def num_shards(self) -> int:
        return self.summary.num_shards

    def grow(self, summary: PlanSummary) -> None:
        with self._changed:
            self.summary = summary
            self._changed.notify_all()

    def complete(self, counts: dict[str, int]) -> None:
        with self._changed:
            self.counts, self.is_complete = counts, True
            self._changed.notify_all()

    def wait_until_complete(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.is_complete)

    def wait_for_files(self, number: int) -> None:
        """Wait until there are more than `number` files, or the plan is complete."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_complete or len(self.files) > number)
