"""Publish a run that the gate has held back, after somebody has looked at it."""

from dataclasses import replace

from pipeline.commit.journal import Journal
from pipeline.commit.run_record import read_run_record
from pipeline.commit.run_report import Report, read_report
from pipeline.commit.totals import Totals
from pipeline.errors import RunError
from pipeline.gate.record import GateRecord, read_gate_record
from pipeline.guard.kill_points import reached
from pipeline.layout import Output
from pipeline.runs.accounting import utc_now
from pipeline.runs.cleanup import sweep
from pipeline.runs.prove import holding_lease, proven
from pipeline.runs.settings import PublishSettings
from pipeline.tables.publish import Publisher

_FLAG = "--tables"


def publish_held(settings: PublishSettings) -> Report:
    """Publish the run that --run-id names, and return its report.

    Whatever kills this, the same command goes on: what the tables have is not added again, and the run counts as
    finished with its report, as in segment_bucket.py. RunError if there is no such run, or no gate holds it back.
    """
    output = Output.open(settings.tables, _FLAG)
    _held(output, settings.run_id)
    output = proven(output, settings.allow_unsafe_store)
    with holding_lease(output, settings.lease_seconds) as lease:
        held, num_shards = _held(output, settings.run_id)
        folder = output.run(settings.run_id)
        lease.check()
        with output.errors():
            journal = Journal.start_attempt(folder)
            totals = Totals()
            for receipt in journal.read(num_shards):
                totals.add(receipt)
        if (len(totals.shards), totals.num_images) != (num_shards, held.report.num_images):
            raise RunError(f"run {settings.run_id} has lost receipts since the gate held it back; run it again")
        versions = Publisher(
            output, settings.run_id, lambda: num_shards, journal, lease.check, lambda: totals.part_bytes
        ).publish()
        lease.check()
        sweep(journal)
        report = replace(held.report, table_versions=versions, finished_at=utc_now())
        with output.errors():
            report.write(folder)
        reached("after report")
        return report


def _held(output: Output, run_id: str) -> tuple[GateRecord, int]:
    """gate.json of a run that is held back, and its number of shards."""
    folder = output.run(run_id)
    with output.errors():
        record = read_run_record(output, folder)
        report = None if record is None else read_report(output, folder)
        is_tidied = folder.is_tidied()
        held = read_gate_record(output, folder)
    if record is None:
        raise RunError(f"{output.name} holds no run {run_id}")
    if report is not None:
        raise RunError(f"run {run_id} is published already, since {report.finished_at}")
    if is_tidied:
        raise RunError(f"run {run_id} cannot be published any more: jobs/tidy.py has removed its plan and its journal")
    if held is None or not held.violations:
        raise RunError(f"no --gate holds run {run_id} back; to finish the run, repeat the command that started it")
    return held, record.plan.num_shards
