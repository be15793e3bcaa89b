"""The books of the runs of an output: run.json, plan, receipts and report.json must agree, run by run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.commit.journal import Journal
from pipeline.commit.receipt import PartRecord
from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import Report, read_report
from pipeline.commit.totals import Totals
from pipeline.errors import DamagedRecordError, RunError
from pipeline.layout import Output, RunFolder
from pipeline.verify.facts import Context, Proof, RunFacts
from pipeline.verify.findings import Findings, Kind


@dataclass(frozen=True)
class Books:
    """The records of a finished run whose rows are checked."""

    folder: RunFolder
    record: RunRecord
    report: Report
    is_tidied: bool  # plan and journal have been removed
    has_receipts: bool  # each shard has one
    facts: RunFacts
    parts: dict[str, tuple[Proof, PartRecord]]  # by path, relative to the output

    @property
    def run_id(self) -> str:
        return self.record.run_id


@dataclass
class Library:
    """The books of all runs to check, and why others are not checked."""

    books: dict[str, Books] = field(default_factory=dict)  # by run
    others: dict[str, str] = field(default_factory=dict)  # run -> why its rows are not checked

    @property
    def has_logits(self) -> bool:
        """Whether receipts name parts of the table `logits`."""
        return any(path.startswith("logits/") for books in self.books.values() for path in books.parts)

    def context(self, tables: str) -> Context:
        return Context(tables, {run: one.facts for run, one in self.books.items()}, frozenset(self.others))


def read_library(output: Output, run_id: str | None, findings: Findings) -> Library:
    """The books of the run `run_id`, or of all finished runs. What is wrong with them is added to `findings`.

    Must be called before the tables are opened: a run that is finished then is in the tables. RunError if there is no
    such run, or no finished run at all.
    """
    with output.errors():
        folders = output.list_runs()
    if not folders:
        raise RunError(f"{output.name} holds no run; give the --output of a run")
    library = Library()
    for folder in folders:
        why = "another run is asked for" if run_id not in (None, folder.run_id) else _read(folder, library, findings)
        if why is not None:
            library.others[folder.run_id] = why
    if run_id is not None and run_id not in library.books:
        _refuse_without_books(output, run_id, library)
    if not library.books and not len(findings):
        raise RunError(f"{output.name} holds no finished run: {_some(library.others)}")
    return library


def _refuse_without_books(output: Output, run_id: str, library: Library) -> None:
    why = library.others.get(run_id)
    if why is None:
        raise RunError(f"{output.name} holds no run {output.run(run_id).run_id}; its runs: {_some(library.others)}")
    if why != _DAMAGED:
        raise RunError(f"run {run_id} cannot be checked: {why}")


_DAMAGED = "its records are damaged"


def _some(others: dict[str, str]) -> str:
    names = list(others)
    return ", ".join([*(["..."] if len(names) > 5 else []), *names[-5:]])


def _read(folder: RunFolder, library: Library, findings: Findings) -> str | None:
    """Put the books of a run into the library, or say why not."""
    output, run_id = folder.output, folder.run_id
    try:
        report = read_report(output, folder)
        record = read_run_record(output, folder)
        with output.errors():
            is_rolled_back, is_tidied = folder.is_rolled_back(), folder.is_tidied()
    except DamagedRecordError as error:
        findings.add(Kind.RECORD, "run.json or report.json", error, run_id=run_id)
        return _DAMAGED
    if is_rolled_back:
        return "it is rolled back"
    if report is None:
        return "it is not finished; to finish it, repeat the command that started it"
    if record is None:
        findings.add(Kind.RECORD, "run.json", "it does not exist, but report.json does", run_id=run_id)
        return _DAMAGED
    journal = Journal(folder)
    with output.errors():
        num_attempts = None if is_tidied else journal.latest_attempt()
    facts = RunFacts.of(record, num_attempts)
    totals, parts = Totals(), {}
    try:
        with output.errors():
            for attempt, receipt in () if is_tidied else journal.read_with_attempts(record.plan.num_shards):
                totals.add(receipt)
                for part in receipt.parts.values():
                    parts[part.path] = (Proof(run_id, receipt.shard, attempt, part.sha256), part)
        has_receipts = len(totals.shards) == record.plan.num_shards
    except DamagedRecordError as error:
        findings.add(Kind.RECORD, "journal", error, run_id=run_id)
        has_receipts = False
    else:
        if not is_tidied:
            _check_receipts(record, report, totals, findings)
    _check_report(record, report, findings)
    library.books[run_id] = Books(folder, record, report, is_tidied, has_receipts, facts, parts)
    return None


def _check_receipts(record: RunRecord, report: Report, totals: Totals, findings: Findings) -> None:
    lacking = record.plan.num_shards - len(totals.shards)
    if lacking:
        first = next(shard for shard in range(record.plan.num_shards) if shard not in totals.shards)
        findings.add(Kind.NO_RECEIPT, "journal", f"shard {first}", run_id=record.run_id, count=lacking)
        return
    figures = {
        "num_images": totals.num_images,
        "num_ok": totals.num_images - totals.num_failed - totals.num_removed,
        "num_failed": totals.num_failed,
        "num_removed": totals.num_removed,
        "num_segments": totals.num_segments,
        "failed_by_code": dict(sorted(totals.failed_by_code.items())),
    }
    _compare(report, figures, "the receipts", findings)


def _check_report(record: RunRecord, report: Report, findings: Findings) -> None:
    if not record.plan_is_complete:
        findings.add(Kind.RECORD, "plan.json", "it does not exist, but run.json needs it", run_id=record.run_id)
        return
    plan = {"num_images": record.plan.num_images, "num_shards": record.plan.num_shards}
    _compare(report, {**plan, "created": record.created, "counts": record.counts}, "run.json", findings)


def _compare(report: Report, figures: dict[str, Any], of: str, findings: Findings) -> None:
    for name, value in figures.items():
        there = getattr(report, name)
        if there != value:
            findings.add(Kind.RECORD, name, f"report.json has {there}, {of} {value}", run_id=report.run_id)


def gone_since(library: Library) -> Iterator[str]:
    """Runs that were rolled back or tidied while their books were read: their rows may have left the tables."""
    for run_id, books in library.books.items():
        with books.folder.output.errors():
            if books.folder.is_rolled_back() or books.folder.is_tidied() != books.is_tidied:
                yield run_id
