"""Which runs are so old that their plans and journals, or their whole folders, may go; and which nights' records."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipeline.commit.run_record import RunRecord, read_run_record
from pipeline.commit.run_report import Report, read_reports
from pipeline.config import is_run_id
from pipeline.errors import RunError
from pipeline.layout import Output, RunFolder
from pipeline.nights.record import newest_names, read_record, started_at
from pipeline.nights.seen import GOOD
from pipeline.runs.find import would_be_continued
from pipeline.store.listed import StoredObject, objects_below


@dataclass(frozen=True)
class ListedRun:
    """A run with the objects of its folder."""

    folder: RunFolder
    report: Report | None
    record: RunRecord | None  # read only where there is no report
    objects: Mapping[str, StoredObject]  # by path

    @property
    def run_id(self) -> str:
        return self.folder.run_id

    @property
    def created(self) -> str:
        """When the run was planned; empty if its plan was never complete."""
        known = self.report or self.record
        return "" if known is None else known.created

    def has(self, path: str) -> bool:
        return path in self.objects

    def changed_at(self) -> float:
        """When the last object was written, in seconds since the epoch."""
        return max(found.written_at for found in self.objects.values())

    def work(self) -> list[StoredObject]:
        """Plan, journal, attempts, start markers, and what a driver that was killed has left of golden images."""
        folders = (self.folder.plan, self.folder.journal, self.folder.attempts, self.folder.started)
        left = f"{self.folder.golden}/"
        return [o for path, o in self.objects.items() if path.rpartition("/")[0] in folders or path.startswith(left)]

    def records(self) -> list[StoredObject]:
        """And the page. run.json first, the note of this job last: a run that has lost either is never continued."""
        folder = self.folder
        paths = [folder.run_json, folder.plan_json, folder.gate_json, folder.report_json, folder.rolled_back_json]
        paths += [path for path in self.objects if path.startswith(f"{folder.page}/")]
        return [self.objects[path] for path in (*paths, folder.tidied_json) if path in self.objects]


@dataclass(frozen=True)
class OldRuns:
    """The runs of an output by what becomes of them.

    finished: finished runs whose plan and journal go.
    unfinished: the same for runs that were never finished and will not be continued.
    continuable: names of old unfinished runs that stay, because the command which began them would continue them.
    protected: ids of all unfinished runs that stay.
    oldest_protected: when the oldest of these was planned. The records of finished runs that were planned later stay:
        they may say that the unfinished run is superseded.
    """

    finished: tuple[ListedRun, ...]
    unfinished: tuple[ListedRun, ...]
    continuable: tuple[str, ...]
    protected: frozenset[str]
    oldest_protected: str | None

    @property
    def all(self) -> tuple[ListedRun, ...]:
        return (*self.unfinished, *self.finished)

    def without_use(self, rows: Mapping[str, int]) -> list[ListedRun]:
        """The runs whose records go too: they have no `rows` in `images`, and hide no unfinished run."""
        return [run for run in self.all if not rows.get(run.run_id) and not self._may_hide(run)]

    def _may_hide(self, run: ListedRun) -> bool:
        oldest = self.oldest_protected
        return oldest is not None and run.report is not None and run.created > oldest


def find_old_runs(output: Output, cutoff: datetime, also_continuable: bool) -> OldRuns:
    """The runs that ended before `cutoff`. RunError if a record is damaged or the output cannot be listed.

    The run that finished last stays whole, because jobs/evaluate.py reads that run unless it is given another. An
    unfinished run is old if nothing was written in its folder since `cutoff`.
    """
    runs = _list_runs(output)
    rolled_back = {run.run_id for run in runs if run.has(run.folder.rolled_back_json)}
    finished = [run for run in runs if run.report is not None]
    whole = (run for run in finished if run.run_id not in rolled_back and not run.has(run.folder.tidied_json))
    last = max(whole, key=lambda run: (run.report is not None and run.report.finished_at, run.run_id), default=None)
    old = [run for run in finished if run is not last and _finished_at(run) < cutoff]
    unfinished = [run for run in runs if run.report is None]
    gone, continuable = _judge_unfinished(output, unfinished, finished, rolled_back, cutoff)
    if also_continuable:
        gone, continuable = [*gone, *continuable], []
    staying = [run for run in unfinished if run not in gone]
    return OldRuns(
        tuple(old),
        tuple(gone),
        tuple(run.run_id for run in continuable),
        frozenset(run.run_id for run in staying),
        min((run.created for run in staying), default=None),
    )


def _finished_at(run: ListedRun) -> datetime:
    assert run.report is not None
    return datetime.fromisoformat(run.report.finished_at)


def _judge_unfinished(
    output: Output, unfinished: list[ListedRun], finished: list[ListedRun], rolled_back: set[str], cutoff: datetime
) -> tuple[list[ListedRun], list[ListedRun]]:
    """Runs that nobody continues, and old runs that may be continued."""
    gone = [run for run in unfinished if run.has(run.folder.tidied_json)]
    records = [run.record for run in unfinished if run.record is not None and run not in gone]
    old = [run for run in unfinished if run not in gone and run.changed_at() < cutoff.timestamp()]
    later: list[RunRecord] = []
    if any(run.record is not None for run in old):
        by_report = (read_run_record(output, run.folder) for run in finished if run.run_id not in rolled_back)
        later = [record for record in by_report if record is not None]
    for run in old:
        if run.record is None or not would_be_continued(run.record, records, later):
            gone.append(run)
    return gone, [run for run in old if run not in gone]


def _list_runs(output: Output) -> list[ListedRun]:
    by_run: dict[str, dict[str, StoredObject]] = {}
    with output.errors():
        for found in objects_below(output.filesystem, output.runs):
            run_id, slash, _ = found.path.removeprefix(f"{output.runs}/").partition("/")
            if slash and is_run_id(run_id):
                by_run.setdefault(run_id, {})[found.path] = found
    folders = [output.run(run_id) for run_id in sorted(by_run)]
    reports = read_reports(output, folders)
    records = (read_run_record(output, f) if r is None else None for f, r in zip(folders, reports, strict=True))
    return [
        ListedRun(folder, report, record, by_run[folder.run_id])
        for folder, report, record in zip(folders, reports, records, strict=True)
    ]


def find_old_nights(output: Output, cutoff: datetime) -> list[str]:
    """Paths of records of nights that started before `cutoff`, but of none since the last good night.

    So jobs/nights.py --expect-within finds that night, however long ago it was. RunError if the output cannot be read.
    """
    old: list[str] = []
    seen_good = False
    for name in newest_names(output):
        if seen_good and started_at(name) < cutoff:
            old.append(output.night(name))
        seen_good = seen_good or _is_good(output, name)
    return old


def _is_good(output: Output, name: str) -> bool:
    try:
        record = read_record(output, name)
    except RunError:  # a damaged record is a night too
        return False
    return record is not None and record.end in GOOD
