"""Preview a run: find out what the run would do, without doing it."""

import contextlib
import threading
from dataclasses import dataclass

from pipeline.commit.run_record import RunRecord
from pipeline.commit.run_report import Report
from pipeline.config import Settings
from pipeline.inputs.container import KeptIndexes
from pipeline.inputs.listing import list_inputs, refuse_empty
from pipeline.plan.changes import Changes, Comparison, changes_at_once, comparing
from pipeline.runs.check import Checked, check
from pipeline.runs.find import find_report, find_run


@dataclass(frozen=True)
class Preview:
    """Images and encoded bytes by reason, including images that would be left out; see changes.Changes."""

    counts: dict[str, int]
    size_bytes: dict[str, int]
    planned: tuple[str, ...]  # the reasons that put an image into the run
    note: str | None  # set if the job would not plan a run but do something else


def preview(settings: Settings) -> Preview:
    """Compare the input with the published tables. Raises RunError if the job could not start."""
    checked = check(settings)
    earlier = earlier_run(checked)
    with changes_of(checked) as changes:
        return preview_of(changes, earlier)


def earlier_run(checked: Checked) -> RunRecord | Report | None:
    """The unfinished run that the job would continue, or the report of the run that is finished already, if any.

    RunError if the job would plan a new run of no images, or could not start.
    """
    earlier = find_report(checked) or find_run(checked)
    if earlier is None:
        refuse_empty(checked.inputs)
    return earlier


def preview_of(changes: Changes, earlier: RunRecord | Report | None) -> Preview:
    """`changes` are those of `changes_of`, `earlier` is that of `earlier_run`."""
    note = None
    if isinstance(earlier, Report):
        note = f"run {earlier.run_id} is already finished: the job would process nothing"
    elif earlier is not None:
        note = f"run {earlier.run_id}, planned at {earlier.created}, is not finished: the job would continue this run"
    return Preview(changes.counts, changes.size_bytes, changes.planned, note)


def changes_of(checked: Checked) -> Changes:
    """The changes that a run with these settings would have to process now. Nothing is written."""
    return changes_at_once(comparison_of(checked, keeps_indexes=False))


def comparison_of(checked: Checked, *, keeps_indexes: bool) -> contextlib.AbstractContextManager[Comparison]:
    """The changes in batches, while the input is listed.

    Indexes of tars that earlier runs have left in the output are used; with `keeps_indexes`, new ones are written.
    """
    stopped = threading.Event()
    if checked.list_kept is not None:
        listing = checked.list_kept()
    else:
        kept = KeptIndexes(checked.output, keeps_indexes)
        listing = list_inputs(checked.inputs, checked.settings.limit, kept, stopped)
    return comparing(
        listing,
        checked.inputs,
        checked.settings,
        checked.output,
        fingerprint=checked.fingerprint,
        weights_sha256=checked.model.weights_sha256,
        stopped=stopped,
    )
