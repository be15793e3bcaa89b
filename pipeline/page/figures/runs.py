"""Which run is shown, which run it is compared with, and how fast it went: from the records of runs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.commit.journal import Journal
from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import READ_THREADS, Report, read_reports
from pipeline.errors import RunError
from pipeline.layout import Output, RunFolder
from pipeline.page.settings import ReportSettings
from pipeline.tables.finished_run import find_records

_MOST_EARLIER = 60  # finished runs whose run.json is read, newest first
_MOST_BINS = 72  # of the chart of images per second


@dataclass(frozen=True)
class ShownRun:
    """A finished run with its records."""

    tables: str  # as given
    folder: RunFolder
    record: RunRecord
    report: Report

    @property
    def output(self) -> Output:
        return self.folder.output

    @property
    def run_id(self) -> str:
        return self.record.run_id

    @property
    def task(self) -> str:
        return str(self.record.results["task"])


def find_run(tables: str, run_id: str | None) -> ShownRun:
    """The run to show. RunError if there is none, or if it is not finished or rolled back."""
    folder, record, report = find_records(tables, run_id)
    with folder.output.errors():
        if folder.is_rolled_back():
            raise RunError(f"run {record.run_id} is rolled back: its rows are not in the tables any more")
    return ShownRun(tables, folder, record, report)


def earlier_runs(run: ShownRun) -> list[ShownRun]:
    """Finished runs of the same tables that ended before this one and are not rolled back, newest first.

    A run whose records cannot be read is left out: it has other records, and the page is about this run.
    """
    with run.output.errors():
        folders = [folder for folder in run.output.list_runs() if folder.run_id != run.run_id]

    def look(one: tuple[RunFolder, Report]) -> ShownRun | None:
        folder, report = one
        try:
            record = read_run_record(run.output, folder)
        except RunError:
            return None
        with run.output.errors():
            is_there = record is not None and not folder.is_rolled_back()
        return ShownRun(run.tables, folder, record, report) if record is not None and is_there else None

    finished = [
        (folder, report)
        for folder, report in zip(folders, read_reports(run.output, folders), strict=True)
        if report is not None and report.finished_at <= run.report.finished_at
    ]
    finished.sort(key=lambda one: (one[1].finished_at, one[1].run_id), reverse=True)
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="records") as threads:
        return [one for one in threads.map(look, finished[:_MOST_EARLIER]) if one is not None]


def other_run(settings: ReportSettings, run: ShownRun, earlier: Sequence[ShownRun]) -> ShownRun | None:
    """The run to compare with, or None. RunError if --against names none, or a run of another task."""
    if not settings.compare:
        return None
    if settings.against is None:
        return next((one for one in earlier if one.task == run.task), None)
    other = find_run(settings.against_tables or settings.tables, settings.against)
    if other.task != run.task:
        raise RunError(f"--against {other.run_id} has the task {other.task}, and run {run.run_id} has {run.task}")
    if (other.run_id, other.folder.path) == (run.run_id, run.folder.path):
        raise RunError(f"--against names run {run.run_id} itself; give another run, or another --run-id")
    return other


def provenance(run: ShownRun, earlier: Sequence[ShownRun]) -> dict[str, Any]:
    """What ran, on what, and which earlier runs have comparable results: those with the same fingerprint."""
    record, report = run.record, run.report
    alike = [one.run_id for one in earlier if one.record.fingerprint == record.fingerprint]
    given = {name: value for name, value in record.settings.items() if value not in (None, [], ())}
    return {
        "run_id": run.run_id,
        "task": run.task,
        "input": list(record.input),
        "model": record.model.name,
        "weights_sha256": record.model.weights_sha256,
        "license": record.model_license,
        "fingerprint": record.fingerprint,
        "created": record.created,
        "finished": report.finished_at,
        "results_settings": dict(record.results),
        "settings": given,
        "versions": dict(record.versions),
        "computed_on": {name: value for name, value in report.computed_on.items() if value is not None},
        "comparable_runs": alike,
        "earlier_runs": len(earlier),
    }


def funnel(report: Report, planned: Sequence[str]) -> list[dict[str, Any]]:
    """From the images that were listed to those that are ok, each step with its reasons.

    Images that are gone from the input were not listed: they are a step of their own, at the end.
    """
    by_reason = dict(report.counts)
    num_gone = by_reason.pop("removed", report.num_removed)
    left_out = {reason: count for reason, count in by_reason.items() if reason not in planned}
    in_run = {reason: count for reason, count in by_reason.items() if reason not in left_out}
    num_tried = report.num_images - report.num_removed
    steps = [{"step": "listed", "name": "listed", "images": sum(by_reason.values()) or num_tried}]
    steps += [{"step": "left out", "name": name, "images": count} for name, count in left_out.items()]
    steps.append({"step": "planned", "name": "in this run", "images": num_tried})
    if len(in_run) > 1:
        steps += [{"step": "because", "name": name, "images": count} for name, count in in_run.items()]
    steps += [{"step": "failed", "name": code, "images": count} for code, count in report.failed_by_code.items()]
    steps.append({"step": "ok", "name": "ok", "images": report.num_ok})
    if num_gone:
        steps.append({"step": "removed", "name": "gone from the input", "images": num_gone})
    return steps


def speed(run: ShownRun) -> dict[str, Any]:
    """Images per second over time from the receipts, time of each step, and how busy devices were.

    The images of a receipt count as spread evenly over the time from when a model actor took the shard until its parts
    were written. `over_time` is None if the journal is gone.
    """
    report = run.report
    found: dict[str, Any] = {
        "images_per_second": report.images_per_second,
        "seconds": report.seconds,
        "step_ms": dict(report.step_ms),
        "device_busy": dict(report.device_busy),
        "over_time": None,
    }
    with run.output.errors():
        if not run.folder.is_tidied():
            found["over_time"] = _over_time(run)
    return found


def _over_time(run: ShownRun) -> list[dict[str, Any]] | None:
    rows = [
        (r.started, r.finished, r.num_images - r.num_removed)
        for r in Journal(run.folder).read(run.record.plan.num_shards)
    ]
    if not rows:
        return None
    started, finished, images = np.array(rows, np.float64).T
    finished = np.maximum(finished, started + 1e-3)
    edges = np.linspace(started.min(), finished.max(), min(_MOST_BINS, max(8, 2 * len(rows))) + 1)
    done = [(images * np.clip((edge - started) / (finished - started), 0, 1)).sum() for edge in edges]
    rates = np.diff(done) / np.diff(edges)
    middles = (edges[1:] + edges[:-1]) / 2
    return [
        {"time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), "images_per_second": float(rate)}
        for at, rate in zip(middles, rates, strict=True)
    ]
