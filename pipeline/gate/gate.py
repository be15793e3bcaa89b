"""The gate before the publication of a run: --gate."""

import logging
from collections.abc import Iterator

from pipeline.commit.journal import Journal
from pipeline.commit.run_record import read_run_record
from pipeline.commit.run_report import Report, read_reports
from pipeline.errors import BrokenRunError, HeldByGateError, RunError, StoreUnavailableError
from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.drift import violations
from pipeline.gate.figures import Figures, figures_of
from pipeline.gate.record import GateRecord, read_gate_record
from pipeline.layout import Output, RunFolder

logger = logging.getLogger(__name__)


def pass_gate(bounds: GateBounds, journal: Journal, report: Report, task: str) -> None:
    """Compare a run whose shards are all done with earlier runs, and leave gate.json in its folder.

    `report` is the report that the run gets when it is published. HeldByGateError if a figure is out of its bounds,
    BrokenRunError if a part of the run cannot be read.
    """
    folder = journal.folder
    output = folder.output
    try:
        before = read_gate_record(output, folder)
        figures = figures_of(output, list(journal.read()), bounds.images)
        earlier = list(_earlier(output, folder.run_id, task, bounds))
    except RunError as error:
        raise BrokenRunError(f"run {folder.run_id} is not published, because --gate cannot see it: {error}") from None
    if len(earlier) < bounds.least_runs:
        logger.warning(
            "--gate has %d earlier runs to compare with, fewer than least_runs %d; the run is published unseen",
            len(earlier),
            bounds.least_runs,
        )
        found = []
    else:
        found = [str(one) for one in violations(figures, earlier, bounds)]
    GateRecord(found, figures, report, None if before is None else before.golden).write(folder)
    for line in found:
        logger.warning("out of bounds: %s", line)
    if found:
        are_out = "1 figure is" if len(found) == 1 else f"{len(found)} figures are"
        raise HeldByGateError(
            f"run {folder.run_id} is finished but not published: {are_out} out of the bounds of --gate; "
            f"to publish it after a look: jobs/publish.py --tables {output.uri} --run-id {folder.run_id}"
        )


def _earlier(output: Output, run_id: str, task: str, bounds: GateBounds) -> Iterator[Figures]:
    """The figures of the last published runs of this task, the newest first.

    Passed over are runs of which nothing says the figures any more, and runs in which no image was ok.
    """
    with output.errors():
        folders = [folder for folder in output.list_runs() if folder.run_id != run_id]
        reports = read_reports(output, folders)
    finished = [(report.finished_at, folder) for folder, report in zip(folders, reports, strict=True) if report]
    left = bounds.last_runs
    for _, folder in sorted(finished, key=lambda one: (one[0], one[1].run_id), reverse=True):
        if not left:
            return
        figures = _figures(output, folder, task, bounds.images)
        if figures is not None and figures.num_ok:
            left -= 1
            yield figures


def _figures(output: Output, folder: RunFolder, task: str, most_images: int) -> Figures | None:
    """As gate.json says or, of a run without a gate, as its parts say. None if nothing says it any more."""
    with output.errors():
        if folder.is_rolled_back():
            return None
        is_tidied = folder.is_tidied()
    try:
        record = read_run_record(output, folder)
        if record is None or record.results["task"] != task:
            return None
        seen = read_gate_record(output, folder)
        if seen is not None and seen.report is not None:
            return seen.figures
        return (
            None if is_tidied else figures_of(output, list(Journal(folder).read(record.plan.num_shards)), most_images)
        )
    except StoreUnavailableError:
        raise
    except RunError as error:
        logger.warning("run %s is left out of the comparison of --gate: %s", folder.run_id, error)
        return None
