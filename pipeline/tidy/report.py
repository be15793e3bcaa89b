"""Print what jobs/tidy.py has removed, or would remove."""

from collections.abc import Iterator

from rich.table import Table

from pipeline.store.listed import StoredObject
from pipeline.telemetry.console import output_console
from pipeline.tidy.files import NOT_NEEDED, UNPUBLISHED
from pipeline.tidy.tidy import Tidied

_MOST_NAMES = 5


def print_tidied(tidied: Tidied) -> None:
    """A table of numbers and bytes by reason, then what stays and why."""
    console = output_console()
    table = Table("what", "why", "number", "MiB", title=f"not needed since {tidied.cutoff:%Y-%m-%d %H:%M} UTC")
    lines = list(_lines(tidied))
    for what, why, number, size in lines:
        table.add_row(what, why, f"{number:,}", "" if size is None else f"{size / 2**20:,.1f}")
    if lines:
        console.print(table)
    for name, kept in tidied.versions.items():
        if kept is not None:
            console.print(f"{name}: versions {kept.oldest} to {kept.newest} stay readable")
    replaced = sum(file.size_bytes for old in tidied.rows.values() for file in old.files)
    if replaced:
        console.print(
            f"the files that these rows leave have {replaced / 2**20:,.1f} MiB; they go when no kept version has them"
        )
    if tidied.runs.continuable:
        names = ", ".join(tidied.runs.continuable[:_MOST_NAMES])
        more = ", ..." if len(tidied.runs.continuable) > _MOST_NAMES else ""
        console.print(
            f"unfinished runs that their command would continue stay: {names}{more}; --unfinished removes their plans, "
            "journals and parts"
        )
    if not lines:
        console.print("nothing to remove")
    elif not tidied.done:
        console.print("nothing was changed; to remove this, add --yes")


def _lines(tidied: Tidied) -> Iterator[tuple[str, str, int, int | None]]:
    """What, why, number, bytes."""
    for why in (NOT_NEEDED, UNPUBLISHED):
        number, size = tidied.files.count(why)
        if number:
            yield "files", why, number, size
    for name, old in tidied.rows.items():
        for why, number in old.by_reason.items():
            yield f"rows of {name}", why, number, None
    for why, runs in (("finished", tidied.runs.finished), ("not finished", tidied.runs.unfinished)):
        found = [item for run in runs for item in run.work()]
        if found:
            yield "objects of plans and journals", f"of old runs that are {why}", len(found), _bytes(found)
    if tidied.useless:
        yield "records of runs", "of old runs without rows", len(tidied.useless), None
    if tidied.nights:
        yield "records of nights", "older, and before the last good night", len(tidied.nights), None
    if tidied.indexes:
        yield "indexes of tars", "of tars that are gone or have changed", len(tidied.indexes), _bytes(tidied.indexes)
    log = [item for kept in tidied.versions.values() if kept is not None for item in kept.log]
    if log:
        yield "objects of the tables' logs", "of versions that do not stay readable", len(log), _bytes(log)
    if tidied.small_files:
        yield "small files to merge", "their files go in a later tidy", tidied.small_files, None


def _bytes(found: list[StoredObject]) -> int:
    return sum(item.size_bytes for item in found)
