"""Runs as they lie in the output, found again: the one to go on with, the one that is finished."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.errors import RunError
from pipeline.layout import Output, parts_folder
from pipeline.runs.check import Checked
from pipeline.schema import TABLES
from pipeline.store.filesystem import canonical, list_folder
from pipeline.tables.publish import is_published

logger = logging.getLogger(__name__)

_READ_THREADS = 16  # a year of nights has 365 small objects to look at


def find_report(checked: Checked) -> dict[str, Any] | None:
    """The report of the run that --run-id names, if it is finished. RunError where that has other settings."""
    if checked.settings.run_id is None or _named_run(checked) is None:
        return None
    with checked.output.errors():
        return checked.output.read_json_or_none(checked.output.run(checked.settings.run_id).report_json)


def find_run(checked: Checked, say_what_is_left: bool = False) -> RunRecord | None:
    """The run to go on with, or None where a new one is to be planned.

    That is the one that --run-id names; else the newest unfinished one with the same input and fingerprint, unless a
    run of other settings has done these images since: its rows are newer, and would hide those of the old one.
    `say_what_is_left`: warn of the latter.

    Raises RunError where --run-id names a run with other settings, or one of which only the tables know.
    """
    if checked.settings.run_id is None:
        with checked.output.errors():
            return _newest_unfinished(checked.output, identity(checked), say_what_is_left)
    found = _named_run(checked)
    if found is None:
        _refuse_used_name(checked.output, checked.settings.run_id)
    return found


def identity(checked: Checked) -> dict[str, Any]:
    """The fields of run.json that two commands must have in common for the second to go on with the first one's run."""
    settings = checked.settings
    return {
        "fingerprint": checked.fingerprint,
        "input": canonical(settings.input),
        "limit": settings.limit,
        "mode": settings.mode,
        "tombstone_removed": settings.tombstone_removed,
    }


def _named_run(checked: Checked) -> RunRecord | None:
    """The run that --run-id names. RunError where it has other settings."""
    assert checked.settings.run_id is not None
    with checked.output.errors():
        found = read_run_record(checked.output, checked.output.run(checked.settings.run_id))
    if found is not None:
        _check_is_same(found, identity(checked), checked)
    return found


def _refuse_used_name(output: Output, run_id: str) -> None:
    """RunError where there was a run of this name, whose books somebody has deleted.

    Its shards would pass for those of the new one, which then were never published, and its parts for left-overs.
    """
    with output.errors():
        has_parts = any(list_folder(output.filesystem, output.at(parts_folder(table, run_id))) for table in TABLES)
    if has_parts or is_published(output, run_id):
        raise RunError(
            f"--run-id {run_id} was used before: the tables of --output {output.uri} hold parts of that run, but its "
            f"folder {output.run(run_id).path} no longer exists; give another --run-id"
        )


def _check_is_same(found: RunRecord, wanted: dict[str, Any], checked: Checked) -> None:
    if _has(found, wanted):
        return
    there, here = {**found.results, **vars(found)}, {**checked.results, **wanted}
    del here["fingerprint"]  # says that something differs, not what
    different = [f"{k} ({there.get(k)!r} in the run, {v!r} here)" for k, v in here.items() if there.get(k) != v]
    raise RunError(f"--run-id {found.run_id} exists with other settings: {', '.join(different) or 'other weights'}")


def _has(run: RunRecord, wanted: dict[str, Any]) -> bool:
    return all(getattr(run, name) == value for name, value in wanted.items())


def _newest_unfinished(output: Output, wanted: dict[str, Any], say_what_is_left: bool) -> RunRecord | None:
    folders = output.list_runs()
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="runs") as threads:
        # Reports first: run.json is large, and nearly all runs of the past are finished.
        reports = list(threads.map(lambda folder: output.read_json_or_none(folder.report_json), folders))
        unfinished = [folder for folder, report in zip(folders, reports, strict=True) if report is None]
        found = threads.map(lambda folder: read_run_record(output, folder), unfinished)
        same = [run for run in found if run is not None and _has(run, wanted)]
        newest = max(same, key=lambda run: (run.created, run.run_id), default=None)
        if newest is None:
            return None
        later = [f for f, r in zip(folders, reports, strict=True) if r is not None and r["created"] > newest.created]
        finished = threads.map(lambda folder: read_run_record(output, folder), later)
        hiding = [run for run in finished if run is not None and _hides(run, newest)]
    if hiding and say_what_is_left:
        logger.warning(
            "run %s is not finished and will not be continued, because run %s has since processed the same images with "
            "other settings; to continue the unfinished run all the same, give its name as --run-id",
            newest.run_id,
            hiding[0].run_id,
        )
    return None if hiding else newest


def _hides(later: RunRecord, run: RunRecord) -> bool:
    """Whether a later run has done all images of `run`, with other settings. Else going on wastes little at most."""
    has_its_images = f"{run.input}/".startswith(f"{later.input}/")
    left_out = later.counts.get("unchanged", 0) + later.counts.get("not_selected", 0)
    did_all = later.limit is None and not left_out
    return has_its_images and did_all and later.fingerprint != run.fingerprint
