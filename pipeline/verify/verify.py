"""The check of an output: the books of its runs, the files of its tables in parallel, then rows against rows and plans.

The order makes the check right while a run publishes: first which runs are finished, then `images`, then `segments`, as
every reader of both tables does. The memory of the driver grows with the number of files and parts, not with the number
of images: keys go to a database on disk.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.schema import TABLES
from pipeline.store.filesystem import store_errors_as, write_uri
from pipeline.tables.current_view import open_segments, open_table
from pipeline.tables.spill_database import ScratchDatabase, out_of_room, registered
from pipeline.verify.books import Library, gone_since, read_library
from pipeline.verify.choose import Chosen, choose_files
from pipeline.verify.compare import Comparison
from pipeline.verify.facts import Context
from pipeline.verify.file.check import FLAG, Checked
from pipeline.verify.file.images import FOUND_IMAGES
from pipeline.verify.file.segments import GROUPS
from pipeline.verify.file.split import MOST_IMAGES, check_split_images
from pipeline.verify.findings import Findings
from pipeline.verify.logits import check_logits
from pipeline.verify.missing import find_missing
from pipeline.verify.plans import PLANNED, planned_images
from pipeline.verify.pool import checker
from pipeline.verify.settings import VerifySettings


@dataclass
class Verdict:
    """What was checked, and what was found."""

    tables: str
    runs: list[str]
    findings: Findings
    num_items: int = 0  # shards and merged files that there are
    num_checked: int = 0  # of these, those of which every row was read
    num_unread: int = 0  # of these, those that were chosen, but could not be read as a whole
    runs_seen: set[str] = field(default_factory=set)  # the runs of which rows were checked
    num_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    notes: list[str] = field(default_factory=list)  # what could not be checked, and why

    @property
    def is_good(self) -> bool:
        return not len(self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "tables": self.tables,
            "runs": self.runs,
            "is_good": self.is_good,
            "shards_and_merged_files": self.num_items,
            "checked": self.num_checked,
            "not_read": self.num_unread,
            "runs_with_rows": sorted(self.runs_seen),
            "rows": self.num_rows,
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": self.notes,
        }

    def write(self, place: str) -> None:
        """Write the verdict as JSON to a path or URI."""
        with store_errors_as(RunError, f"--report {place} cannot be written"):
            write_uri(place, json.dumps(self.to_dict(), indent=1).encode())


def verify(settings: VerifySettings) -> Verdict:
    """Check the tables. RunError if they cannot be checked: there are none, or the store does not answer."""
    output = Output.open(settings.tables, FLAG)
    findings = Findings()
    library = read_library(output, settings.run_id, findings)
    tables = _open_tables(output)
    for run_id in list(gone_since(library)):
        del library.books[run_id]
        library.others[run_id] = "its rows have left the tables meanwhile"
    verdict = Verdict(settings.tables, sorted(library.books), findings)
    chosen = choose_files(output, tables, library, settings.sample, findings)
    verdict.num_items = chosen.num_items
    context = library.context(settings.tables)
    with closing(ScratchDatabase()) as scratch, out_of_room():
        comparison = Comparison(scratch.connection, library, chosen.files, findings)
        _fill(scratch, output, library, context, chosen, settings.workers or os.cpu_count() or 1, verdict, comparison)
        comparison.prepare()
        comparison.compare_rows()
        comparison.compare_plans()
        runs_with_all_rows = find_missing(scratch, output, tables["images"], library, chosen, comparison, verdict.notes)
        if not chosen.is_sample:
            comparison.compare_counts(runs_with_all_rows)
        _check_split(scratch, output, context, chosen, verdict)
        logits = open_table(output, "logits")
        if logits is not None or library.has_logits:
            kept = check_logits(scratch.connection, output, logits, library, chosen, findings)
            verdict.num_rows["logits"] = kept
    _note(library, chosen, verdict)
    return verdict


def _open_tables(output: Output) -> dict[str, DeltaTable]:
    """`images` first, then the `segments` that belong to it."""
    images = open_table(output, "images")
    segments = None if images is None else open_segments(output, "segments", images.version())
    if images is None or segments is None:
        raise RunError(f"{output.name} holds no published tables; give the --output of a run")
    return {"images": images, "segments": segments}


# --- files into the database ------------------------------------------------------------------------------------------


def _fill(
    scratch: ScratchDatabase,
    output: Output,
    library: Library,
    context: Context,
    chosen: Chosen,
    workers: int,
    verdict: Verdict,
    comparison: Comparison,
) -> None:
    """Make the tables `images`, `groups` and `plan`."""
    unread: set[int] = set()  # numbers of files
    with checker(context, min(workers, len(chosen.files))) as check:
        for table, name, schema in (("images", "images", FOUND_IMAGES), ("segments", "groups", GROUPS)):
            checked = check([file for file in chosen.files if file.table == table], f"checking {table}")
            _load(scratch, name, schema, _rows(checked, chosen, verdict, unread))
    verdict.num_unread = sum(not unread.isdisjoint(item) for item in chosen.items)
    verdict.num_checked = len(chosen.items) - verdict.num_unread
    planned = [books for books in library.books.values() if not books.is_tidied]

    def is_wanted(run_id: str, shard: int) -> bool:
        return not chosen.is_sample or (run_id, shard) in chosen.whole_shards

    batches = planned_images(output, planned, is_wanted, verdict.findings, comparison.unknown)
    _load(scratch, "plan", PLANNED, batches)


def _load(scratch: ScratchDatabase, name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with registered(scratch.connection, "streamed", schema, batches):
        scratch.connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM streamed")


def _rows(checked: Iterator[Checked], chosen: Chosen, verdict: Verdict, unread: set[int]) -> Iterator[pa.RecordBatch]:
    for one in checked:
        verdict.findings.include(one.findings)
        verdict.num_rows[one.file.table] += sum(one.num_rows.values())
        verdict.runs_seen |= one.num_rows.keys()
        if not one.is_whole:
            unread.add(one.file.number)
        if one.file.number in chosen.together:
            yield from one.rows.to_batches()


# --- images in several places -----------------------------------------------------------------------------------------


def _check_split(scratch: ScratchDatabase, output: Output, context: Context, chosen: Chosen, verdict: Verdict) -> None:
    query = "FROM groups SEMI JOIN (SELECT run_id, image_key FROM sums WHERE num_places > 1) USING (run_id, image_key)"
    found = scratch.connection.execute(f"SELECT run_id, image_key, file {query} ORDER BY ALL").fetchmany(
        2 * MOST_IMAGES
    )
    if not found:
        return
    places: dict[str, set[str]] = {}
    for run_id, key, _ in found:
        places.setdefault(run_id, set()).add(key)
    files = [chosen.files[number] for number in sorted({file for *_, file in found})]
    check_split_images(output, context, files, places, verdict.findings)
    total = scratch.connection.execute("SELECT count(*) FROM sums WHERE num_places > 1").fetchall()[0][0]
    checked = sum(map(len, places.values()))
    if checked < total:
        verdict.notes.append(
            f"{total - checked:,} of {total:,} images whose segments lie in several places were not checked for shared "
            "pixels"
        )


# --- what was not checked ---------------------------------------------------------------------------------------------


def _note(library: Library, chosen: Chosen, verdict: Verdict) -> None:
    by_reason: dict[str, list[str]] = {}
    for run_id, why in library.others.items():
        by_reason.setdefault(why, []).append(run_id)
    verdict.notes += [f"not checked: {_names(runs)}, {why}" for why, runs in sorted(by_reason.items())]
    tidied = [run for run, books in library.books.items() if books.is_tidied]
    if tidied:
        verdict.notes.append(
            f"{_names(tidied)}: jobs/tidy.py has removed plan and journal, so only the rows that are left were checked"
        )
    read = {file.path for file in chosen.files if file.proof is not None}
    parts = {path for books in library.books.values() for path, (_, part) in books.parts.items() if part.num_rows}
    merged = len(parts - read)
    if merged and not chosen.is_sample:
        verdict.notes.append(
            f"{merged:,} of {len(parts):,} parts are no files of the tables any more, as their rows were merged or "
            "replaced: the rows were checked where they are, and hashes only of the other parts"
        )
    if chosen.is_sample:
        verdict.notes.append("a sample: what only all rows of a run show (its counts, lost shards) was not checked")


def _names(runs: Iterable[str]) -> str:
    names = sorted(runs)
    return f"run{'s' if len(names) > 1 else ''} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
