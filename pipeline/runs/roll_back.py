"""Roll a night back: take the rows of one finished run out of the tables, and note in the run's folder that this was
done.
"""

import json
import time
from dataclasses import dataclass

from pipeline.commit.run_record import read_run_record
from pipeline.commit.run_report import read_report
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.runs.prove import holding_lease, proven
from pipeline.runs.settings import RollBackSettings
from pipeline.store.filesystem import put_object
from pipeline.tables.remove_run import remove_run


@dataclass(frozen=True)
class RollBack:
    """What a roll-back removed or, without --yes, would remove.

    rows: the number of rows by table. Without --yes these are the numbers of report.json: the rows that the run wrote.
    """

    run_id: str
    finished_at: str
    rows: dict[str, int]
    done: bool


def roll_back(settings: RollBackSettings) -> RollBack:
    """Remove the rows of the run that --run-id names, if --yes is given.

    The note `rolled_back.json` is written before the first table changes. So if this job dies half-way, the run does
    not count as a finished run any more, and the same command removes the rest.

    Raises RunError if there is no such run, if the run is not finished (a later attempt would not publish its shards
    again), or if another driver works on the output.
    """
    output = Output.open(settings.output)
    with output.errors():
        folder = output.run(settings.run_id)
        report = None if read_run_record(output, folder) is None else read_report(output, folder)
    if report is None:
        raise RunError(
            f"--output {settings.output} holds no finished run {settings.run_id}; only a finished run can be rolled "
            "back: to finish a run, repeat the command that started it"
        )
    if not settings.yes:
        rows = {"images": report.num_images, "segments": report.num_segments}
        return RollBack(settings.run_id, report.finished_at, rows, done=False)
    output = proven(output, settings.allow_unsafe_store)
    with holding_lease(output, settings.lease_seconds) as lease:
        with output.errors():
            note = json.dumps({"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()
            put_object(output.filesystem, folder.rolled_back_json, note)
        removed = remove_run(output, settings.run_id, lease.check)
        return RollBack(settings.run_id, report.finished_at, removed, done=True)
