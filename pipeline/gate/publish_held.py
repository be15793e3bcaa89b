"""Publish a run that the gate has held back, after somebody has looked at it."""

from dataclasses import dataclass, replace

from pipeline.commit.journal import Journal
from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import Report, read_report
from pipeline.commit.totals import Totals
from pipeline.errors import RunError
from pipeline.gate.record import read_gate_record
from pipeline.guard.kill_points import reached
from pipeline.layout import Output
from pipeline.runs.accounting import utc_now
from pipeline.runs.cleanup import sweep
from pipeline.runs.prove import holding_lease, proven
from pipeline.runs.settings import PublishSettings
from pipeline.tables.publish import Publisher

_FLAG = "--tables"


@dataclass(frozen=True)
class Held:
    """A run that is done and held back: run.json, and the report that it gets when it is published."""

    record: RunRecord
    report: Report

    @property
    def wants_page(self) -> bool:
        return self.record.settings.get("page") is not False

    @property
    def page_images(self) -> str:
        """--images of the page. Runs of older programs did not say it."""
        return str(self.record.settings.get("page_images", "embed"))


def publish_held(settings: PublishSettings) -> Held:
    """Publish the run that --run-id names; returns it with its report.

    Whatever kills this, the same command goes on: what the tables have is not added again, and the run counts as
    finished with its report, as in segment_bucket.py. RunError if there is no such run, or no gate holds it back.
    """
    output = Output.open(settings.tables, _FLAG)
    _held(output, settings.run_id)
    output = proven(output, settings.allow_unsafe_store)
    with holding_lease(output, settings.lease_seconds) as lease:
        held = _held(output, settings.run_id)
        num_shards = held.record.plan.num_shards
        folder = output.run(settings.run_id)
        lease.check()
        with output.errors():
            journal = Journal.start_attempt(folder)
            totals = Totals()
            for receipt in journal.read(num_shards):
                totals.add(receipt)
        if (len(totals.shards), totals.num_images) != (num_shards, held.report.num_images):
            raise RunError(
                f"run {settings.run_id} has lost receipts since the gate held it back; to process their images again, "
                "repeat the command that started the run"
            )
        publisher = Publisher(
            output, settings.run_id, lambda: num_shards, journal, lease.check, lambda: totals.part_bytes
        )
        versions = publisher.publish()
        if held.record.settings.get("compact") is True:
            publisher.compact()
        lease.check()
        sweep(journal)
        report = replace(held.report, table_versions=versions, finished_at=utc_now())
        with output.errors():
            report.write(folder)
        reached("after report")
        return replace(held, report=report)


def _held(output: Output, run_id: str) -> Held:
    """The run, which is held back."""
    folder = output.run(run_id)
    with output.errors():
        record = read_run_record(output, folder)
        report = None if record is None else read_report(output, folder)
        is_tidied = folder.is_tidied()
        is_rolled_back = folder.is_rolled_back()
        seen = read_gate_record(output, folder)
    if record is None:
        raise RunError(f"{output.name} holds no run {run_id}")
    if is_rolled_back:
        raise RunError(
            f"run {run_id} is rolled back, and is not published again; to process its images again, run the job "
            f"without --run-id {run_id}"
        )
    if report is not None:
        raise RunError(f"run {run_id} is published already, since {report.finished_at}")
    if is_tidied:
        raise RunError(f"run {run_id} cannot be published any more: jobs/tidy.py has removed its plan and its journal")
    if seen is None or not seen.violations:
        raise RunError(f"no --gate holds run {run_id} back; to finish the run, repeat the command that started it")
    if seen.report is None:
        raise RunError(
            f"run {run_id} was held back before its first image, so there is nothing to publish: {seen.violations[0]}; "
            "to segment its images, repeat the command that started it, with golden images that it passes"
        )
    return Held(record, seen.report)
