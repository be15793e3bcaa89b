"""Make room in an output, in steps of which each may be the last: whatever dies, the same command goes on.

1. A note in the folder of each old run: the run is not continued any more, and jobs/evaluate.py says why it cannot
   score the run. Only then may parts go that only the run's journal names.
2. Files that no kept version of the tables has.
3. Rows: `images` first, then `segments`, then `logits`, one transaction each, as in a roll-back. The others are found
   by their lack of a row in `images`, so their transactions are made up for whenever the first was the last step.
4. Plans and journals of old runs, then run.json and report.json of those that have no rows.
5. Records of old nights, and indexes of tars that no current row comes from.
6. Small files are merged.
7. The log: a checkpoint, then commits and checkpoints that only older versions need.

What step 3 and 6 replace is needed by older versions, so its files go when these have become too old.
"""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from deltalake.exceptions import DeltaError

from pipeline.errors import BrokenRunError, RunError
from pipeline.guard.kill_points import reached
from pipeline.layout import Output
from pipeline.runs.places import check_format
from pipeline.runs.prove import holding_lease, proven
from pipeline.runs.settings import TidySettings
from pipeline.schema import ALL_TABLES, ORDER, TABLES
from pipeline.store.filesystem import put_object
from pipeline.store.listed import StoredObject, objects_below
from pipeline.tables.current_view import open_table
from pipeline.tables.publish import TARGET_FILE_BYTES, compact
from pipeline.tables.spill_database import ScratchDatabase
from pipeline.tables.stream_table import plain
from pipeline.tidy.files import OldFiles, old_files, remove_by_folder
from pipeline.tidy.indexes import find_old_indexes
from pipeline.tidy.old_runs import ListedRun, OldRuns, find_old_nights, find_old_runs
from pipeline.tidy.rewrite import remove_rows
from pipeline.tidy.rows import OldRows, find_old_rows, rows_left
from pipeline.tidy.versions import KeptVersions, segments_needed_by, versions_to_keep

_COMMITS_PER_CHECKPOINT = 20


@dataclass(frozen=True)
class Tidied:
    """What was removed or, without --yes, would be removed."""

    cutoff: datetime
    done: bool
    versions: dict[str, KeptVersions | None]
    files: OldFiles
    rows: dict[str, OldRows]
    runs: OldRuns
    useless: list[ListedRun]  # runs that lose their records too
    nights: list[str]
    indexes: list[StoredObject]
    small_files: int  # to be merged; 0 with --no-compact


def tidy(settings: TidySettings, now: datetime | None = None) -> Tidied:
    """Remove what is old at the time `now`, if --yes is given.

    RunError if the output cannot be read or is in use, or if a record or a log is damaged; then nothing has changed.
    BrokenRunError if a table cannot be changed.
    """
    output = Output.open(settings.output)
    cutoff = (now or datetime.now(UTC)) - settings.age()
    with output.errors():
        if next(objects_below(output.filesystem, output.runs), None) is None:
            raise RunError(f"{output.name} holds no runs; give the --output of a run")
    check_format(output)
    with closing(ScratchDatabase()) as scratch:
        if not settings.yes:
            return _find(output, settings, cutoff, scratch)
        output = proven(output, settings.allow_unsafe_store)
        with holding_lease(output, settings.lease_seconds) as lease:
            found = _find(output, settings, cutoff, scratch)
            lease.check()
            _remove(output, found, scratch, settings, lease.check)
            return found


def _find(output: Output, settings: TidySettings, cutoff: datetime, scratch: ScratchDatabase) -> Tidied:
    runs = find_old_runs(output, cutoff, settings.unfinished)
    last, since = settings.keep_versions, cutoff.timestamp()
    images = versions_to_keep(output, "images", last, since)
    needed = None if images is None else segments_needed_by(images)
    versions = {
        "images": images,
        "segments": versions_to_keep(output, "segments", last, since, needed),
        "logits": versions_to_keep(output, "logits", last, since),
    }
    rows = find_old_rows(scratch.connection, output, versions, runs.protected, cutoff)
    left = rows_left(scratch.connection)
    return Tidied(
        cutoff,
        settings.yes,
        versions,
        old_files(output, versions, runs.protected, since),
        rows,
        runs,
        runs.without_use(left),
        find_old_nights(output, cutoff),
        find_old_indexes(scratch.connection, output, cutoff),
        sum(_small_files(versions[name]) for name in TABLES) if settings.compact else 0,
    )


def _small_files(kept: KeptVersions | None) -> int:
    sizes = [] if kept is None else kept.files["size_bytes"].to_pylist()
    small = sum(size < TARGET_FILE_BYTES for size in sizes)
    return small if small > 1 else 0


def _remove(
    output: Output, found: Tidied, scratch: ScratchDatabase, settings: TidySettings, may_change: Callable[[], None]
) -> None:
    _mark(output, found)
    reached("runs marked")
    remove_by_folder(output, [file.path for _, file in found.files.objects], may_change)
    reached("files removed")
    for name in reversed(ORDER):
        kept, old = found.versions[name], found.rows[name]
        if kept is not None and old.files:
            remove_rows(scratch.connection, output, kept, old, may_change)
        reached("between images and segments tidied" if name == "images" else "rows removed")
    for run in found.runs.all:
        remove_by_folder(output, [item.path for item in run.work()], may_change)
    for run in found.useless:
        with output.errors():  # the note may have been written by this job, after the listing
            there = {item.path: item for item in objects_below(output.filesystem, run.folder.path)}
        records = ListedRun(run.folder, run.report, run.record, there).records()
        remove_by_folder(output, [item.path for item in records], may_change)
    reached("runs removed")
    remove_by_folder(output, found.nights, may_change)
    reached("nights removed")
    remove_by_folder(output, [index.path for index in found.indexes], may_change)
    if found.small_files:
        may_change()
        compact(output)
    reached("files merged")
    for name in ALL_TABLES:
        _tidy_log(output, name, found.versions[name], may_change)


def _mark(output: Output, found: Tidied) -> None:
    """Leave the note of this job in the folder of each run that loses its plan and its journal."""
    note = json.dumps({"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()
    with output.errors():
        for run in found.runs.all:
            if not run.has(run.folder.tidied_json):
                put_object(output.filesystem, run.folder.tidied_json, note)


def _tidy_log(output: Output, name: str, kept: KeptVersions | None, may_change: Callable[[], None]) -> None:
    if kept is None:
        return
    table = open_table(output, name)
    assert table is not None, "the table is there"
    may_change()
    if table.version() - kept.newest + kept.commits_since_checkpoint >= _COMMITS_PER_CHECKPOINT:
        try:
            table.create_checkpoint()
        except (DeltaError, OSError) as error:
            raise BrokenRunError(f"the log of the table {name} cannot have a checkpoint: {plain(error)}") from error
    reached("checkpoint written")
    if kept.log:
        open_table(output, name, kept.base)  # RunError if the checkpoint cannot be read
        remove_by_folder(output, [item.path for item in kept.log], may_change)
