"""A finished run as a reader sees it: its task, its categories, and its parts as the journal names them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.journal import Journal
from pipeline.commit.receipt import PartRecord
from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import Report, read_report, read_reports
from pipeline.errors import RunError
from pipeline.layout import Output, RunFolder
from pipeline.schema import TABLES
from pipeline.store.filesystem import one_line, store_errors_as

_FLAG = "--tables"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has a report.json."""

    tables: str  # folder or URI, as given
    run_id: str
    task: str
    fingerprint: str
    categories: tuple[dict[str, Any], ...]  # by the model's class_id: id, name, isthing
    parts: tuple[dict[str, PartRecord], ...]  # by shard: table -> part
    classes: frozenset[str] = frozenset()  # the names of --classes; empty: all


def find_finished_run(tables: str, run_id: str | None) -> FinishedRun:
    """The run `run_id`, or the run that finished last and is not rolled back.

    RunError if there is no such run, or if it is not finished.
    """
    folder, run, _ = find_records(tables, run_id)
    with folder.output.errors():
        if folder.is_tidied():
            raise RunError(
                f"run {run.run_id} is old, and jobs/tidy.py has removed its journal, which names its parts; give a run "
                "that finished later"
            )
        parts = _parts(Journal(folder), run.plan.num_shards)
    return FinishedRun(
        tables,
        run.run_id,
        run.results["task"],
        run.fingerprint,
        tuple(dict(c) for c in run.model.categories),
        parts,
        frozenset(run.results.get("classes", ())),
    )


def find_records(tables: str, run_id: str | None) -> tuple[RunFolder, RunRecord, Report]:
    """The folder of a run, run.json and report.json. The run and the errors are as in `find_finished_run`."""
    output = Output.open(tables, _FLAG)
    folder = _last_finished(output) if run_id is None else output.run(run_id)
    run = read_run_record(output, folder)
    if run is None:
        raise RunError(f"{_FLAG} {tables} holds no run {folder.run_id}; its runs: {_some_runs(output)}")
    report = read_report(output, folder)
    if report is None:
        raise RunError(f"run {run.run_id} is not finished; to finish it, repeat the command that started it")
    return folder, run, report


def read_part(tables: str, table: str, part: PartRecord, columns: list[str]) -> pa.Table:
    """`part_rows` of the output `tables`."""
    return part_rows(Output.open(tables, _FLAG), table, part, columns)


def part_rows(output: Output, table: str, part: PartRecord, columns: list[str]) -> pa.Table:
    """Some columns of a part of `table`. RunError if it is gone, damaged or not the part that the journal names."""
    data = output.read_or_none(output.at(part.path), part.size_bytes)
    if data is None:
        raise RunError(
            f"{output.flag}: the part {part.path} does not exist; if its rows were merged or replaced since, "
            "jobs/tidy.py or VACUUM has removed it: give a run that finished later"
        )
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise RunError(f"{output.flag}: the part {part.path} is damaged: its sha256 is not the one in the journal")
    try:
        schema = pa.schema([TABLES[table].field(name) for name in columns])
        return pq.read_table(pa.BufferReader(data), columns=columns).select(columns).cast(schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise RunError(
            f"{output.flag}: the part {part.path} is not a part of this program: {one_line(error)}"
        ) from None


def _last_finished(output: Output) -> RunFolder:
    folders = _run_folders(output)
    if not folders:
        raise RunError(f"{_FLAG} {output.root} holds no run; give the --output of a run")
    reports = read_reports(output, folders)
    finished = sorted((report.finished_at, report.run_id) for report in reports if report is not None)
    for _, run_id in reversed(finished):
        folder = output.run(run_id)
        if not folder.is_rolled_back():
            return folder
    raise RunError(f"{_FLAG} {output.root} holds no finished run; unfinished runs: {_some_runs(output)}")


def _run_folders(output: Output) -> list[RunFolder]:
    with store_errors_as(RunError, f"{_FLAG} {output.root} cannot be listed"):
        return output.list_runs()


def _some_runs(output: Output) -> str:
    """The names of the last few runs, for a message."""
    names = [folder.run_id for folder in _run_folders(output)]
    return ", ".join([*(["..."] if len(names) > 5 else []), *names[-5:]]) or "none"


def _parts(journal: Journal, num_shards: int) -> tuple[dict[str, PartRecord], ...]:
    """The parts of every shard."""
    by_shard: dict[int, dict[str, PartRecord]] = {}
    for receipt in journal.read(num_shards):
        by_shard[receipt.shard] = receipt.parts
    if len(by_shard) != num_shards:
        raise RunError(
            f"{_FLAG}: the journal of run {journal.folder.run_id} has receipts of {len(by_shard)} shards, but its plan "
            f"has {num_shards}"
        )
    return tuple(by_shard[shard] for shard in sorted(by_shard))
