"""Begin an attempt at a run."""

from dataclasses import dataclass
from datetime import datetime

from pipeline.commit.journal import Journal
from pipeline.commit.run_record import RunRecord
from pipeline.config import Settings
from pipeline.input_spec import InputSpec
from pipeline.layout import Output, RunFolder
from pipeline.plan.growing import GrowingPlan
from pipeline.runs.check import Checked, Model
from pipeline.segment.spec import RecutSpec


@dataclass(frozen=True)
class Run:
    """A planned run with the journal of one attempt at the run."""

    run_id: str
    created: datetime
    settings: Settings
    inputs: InputSpec
    output: Output
    model: Model
    fingerprint: str
    plan: GrowingPlan
    journal: Journal
    recut: RecutSpec | None = None  # see Checked

    @property
    def failure_budget(self) -> float:
        """How many images may fail before the run stops or ends with exit code 1."""
        by_rate = self.settings.max_failure_rate * self.plan.num_images
        return by_rate if self.settings.max_failures is None else min(by_rate, self.settings.max_failures)

    @property
    def folder(self) -> RunFolder:
        return self.journal.folder


def take_up(checked: Checked, record: RunRecord, plan: GrowingPlan | None = None) -> Run:
    """Begin an attempt at the run. From now on, earlier drivers cannot add to the journal of the run.

    `plan` is given if it goes beyond that of the record.
    """
    plan = plan or GrowingPlan.of(record)
    with checked.output.errors():
        folder = checked.output.run(record.run_id)
        for _ in Journal(folder).read(plan.num_shards):
            pass  # a damaged journal is refused before this driver writes anything
        journal = Journal.start_attempt(folder)
    return Run(
        run_id=record.run_id,
        created=datetime.fromisoformat(record.created),
        settings=checked.settings,
        inputs=checked.inputs,
        output=checked.output,
        model=checked.model,
        fingerprint=record.fingerprint,
        plan=plan,
        journal=journal,
        recut=checked.recut,
    )
