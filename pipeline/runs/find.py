"""Find earlier runs in the output: the run to continue, or the named run if it is already finished."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import READ_THREADS, Report, read_report, read_reports
from pipeline.errors import RunError
from pipeline.layout import Output, parts_folder
from pipeline.runs.check import Checked
from pipeline.schema import ALL_TABLES
from pipeline.store.filesystem import canonical, list_folder
from pipeline.tables.publish import is_published

logger = logging.getLogger(__name__)

_OF_SETTINGS = ("limit", "mode", "tombstone_removed")
_IDENTITY = ("fingerprint", "input", "selection", *_OF_SETTINGS)  # see `identity`


def find_report(checked: Checked) -> Report | None:
    """The report of the run that --run-id names, if that run is finished.

    RunError if the run has other settings, or if it is rolled back.
    """
    if checked.settings.run_id is None or _named_run(checked) is None:
        return None
    folder = checked.output.run(checked.settings.run_id)
    with checked.output.errors():
        if folder.is_rolled_back():
            raise RunError(
                f"--run-id {folder.run_id} was used before: that run is rolled back; give another --run-id or leave it "
                "out"
            )
        return read_report(checked.output, folder)


def find_run(checked: Checked, say_what_is_left: bool = False) -> RunRecord | None:
    """The run to continue, or None if a new run must be planned.

    If --run-id is given, this is the run of that name. Otherwise it is the newest unfinished run with the same input
    and fingerprint, unless a run with other settings has processed these images since: the newer rows of that run would
    hide the rows of the unfinished run. `say_what_is_left`: log a warning in that case.

    Raises RunError if --run-id names a run with other settings, or a run of which only rows in the tables are left.
    """
    if checked.settings.run_id is None:
        with checked.output.errors():
            return _newest_unfinished(checked.output, identity(checked), say_what_is_left)
    found = _named_run(checked)
    if found is None:
        _refuse_used_name(checked.output, checked.settings.run_id)
    return found


def identity(checked: Checked) -> dict[str, Any]:
    """The fields of run.json that two commands must have in common for the second to continue the run of the first."""
    settings = checked.settings
    return {
        **{name: getattr(settings, name) for name in _OF_SETTINGS},
        "fingerprint": checked.fingerprint,
        "input": tuple(canonical(given) for given in settings.input),
        "selection": settings.selection_dict(),
    }


def _named_run(checked: Checked) -> RunRecord | None:
    """The run that --run-id names. RunError if that run has other settings."""
    assert checked.settings.run_id is not None
    with checked.output.errors():
        found = read_run_record(checked.output, checked.output.run(checked.settings.run_id))
        tidied = found is not None and checked.output.run(found.run_id).is_tidied()
    if found is None:
        return None
    _check_is_same(found, identity(checked), checked)
    if tidied and not _is_finished(checked.output, found.run_id):
        raise RunError(
            f"--run-id {found.run_id} was used before: jobs/tidy.py has removed the plan and the journal of that run; "
            "give another --run-id or leave it out"
        )
    return found


def _is_finished(output: Output, run_id: str) -> bool:
    return read_report(output, output.run(run_id)) is not None


def _refuse_used_name(output: Output, run_id: str) -> None:
    """Raise RunError if there was a run of this name whose folder somebody has deleted.

    Otherwise the published shards of the old run would be taken for shards of the new run, which would then never be
    published, and the parts of the old run would be taken for left-overs.
    """
    with output.errors():
        has_parts = any(list_folder(output.filesystem, output.at(parts_folder(table, run_id))) for table in ALL_TABLES)
    if has_parts or is_published(output, run_id):
        raise RunError(
            f"--run-id {run_id} was used before: the tables of --output {output.uri} hold parts of that run, but its "
            f"folder {output.run(run_id).path} no longer exists; give another --run-id"
        )


def _check_is_same(found: RunRecord, wanted: dict[str, Any], checked: Checked) -> None:
    if _has(found, wanted):
        return
    there, here = {**found.results, **vars(found)}, {**checked.results, **wanted}
    del here["fingerprint"]  # the fingerprint says that something differs, but not what
    different = [f"{k} ({there.get(k)!r} in the run, {v!r} here)" for k, v in here.items() if there.get(k) != v]
    raise RunError(f"--run-id {found.run_id} exists with other settings: {', '.join(different) or 'other weights'}")


def _has(run: RunRecord, wanted: dict[str, Any]) -> bool:
    return all(getattr(run, name) == value for name, value in wanted.items())


def _newest_unfinished(output: Output, wanted: dict[str, Any], say_what_is_left: bool) -> RunRecord | None:
    folders = output.list_runs()
    # Read the reports first: run.json is large, and nearly all past runs are finished.
    reports = read_reports(output, folders)
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="runs") as threads:
        unfinished = [folder for folder, report in zip(folders, reports, strict=True) if report is None]
        found = threads.map(lambda folder: read_run_record(output, folder), unfinished)
        same = [run for run in found if run is not None and _has(run, wanted)]
        same = [run for run in same if not output.run(run.run_id).is_tidied()]
        newest = max(same, key=lambda run: (run.created, run.run_id), default=None)
        if newest is None:
            return None
        later = [f for f, r in zip(folders, reports, strict=True) if r is not None and r.created > newest.created]
        finished = threads.map(lambda f: None if f.is_rolled_back() else read_run_record(output, f), later)
        hiding = [run for run in finished if run is not None and _hides(run, newest)]
    if hiding and say_what_is_left:
        logger.warning(
            "run %s is not finished and will not be continued, because run %s has since processed the same images with "
            "other settings; to continue the unfinished run all the same, give its name as --run-id",
            newest.run_id,
            hiding[0].run_id,
        )
    return None if hiding else newest


def would_be_continued(run: RunRecord, unfinished: Iterable[RunRecord], finished: Iterable[RunRecord]) -> bool:
    """Whether the command that began the unfinished `run` would continue the run, if it came again without --run-id.

    `unfinished` and `finished` are all runs of the output that are not rolled back, by whether they have a report.
    """
    same = [other for other in unfinished if _has(other, {name: getattr(run, name) for name in _IDENTITY})]
    newest = max(same, key=lambda other: (other.created, other.run_id), default=run)
    return newest.run_id == run.run_id and not any(f.created > run.created and _hides(f, run) for f in finished)


def _hides(later: RunRecord, run: RunRecord) -> bool:
    """Whether the run `later` processed all images of `run` with other settings. If not, continuing wastes little."""
    has_its_images = later.selection == run.selection and all(
        any(f"{source}/".startswith(f"{other}/") for other in later.input) for source in run.input
    )
    left_out = later.counts.get("unchanged", 0) + later.counts.get("not_selected", 0)
    did_all = later.limit is None and not left_out
    return has_its_images and did_all and later.fingerprint != run.fingerprint
