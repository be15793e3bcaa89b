"""report.json: the counts of a run. A run that has this object is finished and published."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Annotated

from annotated_types import Interval
from pydantic import AfterValidator, TypeAdapter, with_config

from m2f_core.config.fields import excerpt
from pipeline.layout import Output, RunFolder
from pipeline.store.filesystem import put_object
from pipeline.store.json_records import STRICT, Count, Seconds, moment

READ_THREADS = 16  # for small objects of many runs


@with_config(STRICT)
@dataclass(frozen=True)
class Report:
    """The counts and timings of a run, as report.json stores them."""

    run_id: str
    created: Annotated[str, AfterValidator(moment("microseconds"))]  # when the run was planned, ISO 8601, UTC
    num_images: Count  # rows of the run: ok + failed + removed
    num_ok: Count
    num_failed: Count
    num_removed: Count
    counts: dict[str, Count]  # images by reason, including images that were left out: see changes.Changes
    num_segments: Count
    failed_by_code: dict[str, Count]
    num_shards: Count
    num_shards_done_before: Count  # finished by earlier attempts; this attempt never opened them
    seconds: Seconds  # of this attempt, from the first shard on a model to the last receipt
    images_per_second: Seconds  # of this attempt, model load excluded
    finished_at: Annotated[str, AfterValidator(moment("seconds"))]  # ISO 8601, UTC
    table_versions: dict[str, Count] = field(default_factory=dict)  # of the Delta tables, once published
    part_bytes: dict[str, Count] = field(default_factory=dict)  # of the parts of all shards, by table
    # Milliseconds per image for each step, over all attempts: elapsed time for steps on the device, CPU time for the
    # others. See costs.
    step_ms: dict[str, Seconds] = field(default_factory=dict)
    # Device, precision and CPU instructions of this attempt; run.json has the values of the first attempt.
    computed_on: dict[str, str | None] = field(default_factory=dict)
    # For each model actor of this attempt: in which share of its working time its device was busy. See Clock.
    device_busy: dict[str, Annotated[float, Interval(ge=0.0, le=1e6)]] = field(default_factory=dict)

    def exit_code(self, max_failure_rate: float) -> int:
        """1 if more than `max_failure_rate` of the processed images failed, else 0. Removed images do not count."""
        return 1 if self.num_failed > max_failure_rate * (self.num_images - self.num_removed) else 0

    def write(self, folder: RunFolder) -> None:
        put_object(folder.filesystem, folder.report_json, json.dumps(asdict(self), indent=1).encode())


_REPORT = TypeAdapter(Report)


def read_report(output: Output, folder: RunFolder) -> Report | None:
    """The report of the run in `folder`, or None if the run is not finished. RunError if report.json is damaged."""
    report = output.read_record(_REPORT, folder.report_json)
    if report is None:
        return None
    if report.run_id != folder.run_id:
        raise output.damaged(folder.report_json, f"run_id is {excerpt(report.run_id)}, not the name of its folder")
    if report.num_ok + report.num_failed + report.num_removed != report.num_images:
        raise output.damaged(folder.report_json, f"num_images is {report.num_images}, not ok + failed + removed")
    return report


def read_reports(output: Output, folders: Sequence[RunFolder]) -> list[Report | None]:
    """`read_report` of each of these runs: a year of nights is 365 small objects."""
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reports") as threads:
        return list(threads.map(lambda folder: read_report(output, folder), folders))
