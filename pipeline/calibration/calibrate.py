"""Run a sample of the images as the run would, and measure what a forecast needs.

The sample passes the whole graph of a run: the same actors read, segment, encode and write it, into a folder of its own
that is removed at the end. So the measurement holds whatever a run pays for: the start, the loading of the model, the
store, the publication.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psutil
import pyarrow as pa

from pipeline.budget.deadline import deadline_after, time_zone
from pipeline.budget.prices import Prices, read_prices
from pipeline.calibration.part_sizes import bytes_of_a_part
from pipeline.calibration.settings import PlanSettings
from pipeline.cluster.allotment import Allotment, allot
from pipeline.cluster.environment import joins_a_cluster
from pipeline.cluster.resources import connect
from pipeline.commit.journal import Journal
from pipeline.commit.run_record import RunRecord
from pipeline.commit.run_report import Report
from pipeline.errors import RunError
from pipeline.forecast.forecast import Work
from pipeline.forecast.limits import Limits
from pipeline.forecast.measured import Measured
from pipeline.forecast.meter import RunMeter
from pipeline.layout import Output
from pipeline.plan.changes import Changes
from pipeline.plan.plan_files import read_plan_file
from pipeline.plan.sample import Sample, is_segmented
from pipeline.plan.shards import group_into_shards
from pipeline.plan.taper import ShardSize
from pipeline.report.progress import Progress
from pipeline.run import execute, images_per_shard
from pipeline.runs.begin import take_up
from pipeline.runs.check import Checked, check
from pipeline.runs.planning.plan_run import plan_run
from pipeline.runs.preview import Preview, changes_of, earlier_run, preview_of
from pipeline.runs.prove import holding_lease, proven
from pipeline.runs.specs import segment_spec
from pipeline.store.temporary_folders import new_scratch_place, remove_scratch_place

logger = logging.getLogger(__name__)

_ANY_DAY = timedelta(hours=26)  # ahead; the day on which the clocks are put back has 25 hours
_SHARDS_PER_ACTOR = 12  # of the sample: the speed is the mean of these


@dataclass(frozen=True)
class Calibration:
    """A sample that has been run, and the whole that it stands for."""

    preview: Preview
    work: Work
    bounds: tuple[int, int]  # min, max of the model actors of the run
    prices: Prices
    deadline: datetime | None
    measured: Measured | None  # None if there is nothing to segment


def calibrate(settings: PlanSettings, progress: Progress) -> Calibration:
    """Count what the run would do, and run `settings.calibrate` of its images. Raises RunError as the run would."""
    assert settings.calibrate is not None
    progress.phase("checking the settings, the checkpoint and the output")
    checked = check(settings)
    earlier = earlier_run(checked)
    prices, deadline = read_prices(settings.prices), None
    if settings.deadline is not None:
        zone = time_zone(settings.time_zone)
        deadline = deadline_after(settings.deadline, zone, datetime.now(UTC), ahead=_ANY_DAY)
    place = new_scratch_place("calibration", settings.scratch, settings.output, settings.input)
    if isinstance(earlier, RunRecord) and not earlier.plan_is_complete:
        raise RunError(
            f"run {earlier.run_id} is not finished, and its plan is not complete, so nothing can be forecast; "
            "run jobs/segment_bucket.py first"
        )
    progress.phase("listing the input")
    with changes_of(checked) as changes:
        preview = preview_of(changes, earlier)
        if isinstance(earlier, Report) or (earlier is None and not changes.num_planned):
            return Calibration(preview, Work(0, 0), (1, 1), prices, deadline, None)
        progress.phase("starting Ray")
        allotment = allot(checked.settings, connect(label_keys=settings.label_keys()))
        limits = Limits(None, None, prices)
        limits.set_devices(allotment.device, allotment.device_names, allotment.device_units)
        sample = Sample(settings.calibrate, settings.seed, _num_images(checked, earlier, changes, allotment))
        sample.draw(_shards(checked, earlier, changes, allotment))
    work, images = Work(sample.num_images, sample.num_shards), sample.images()
    if not images.num_rows:
        return Calibration(preview, work, allotment.model_actors, prices, deadline, None)
    try:
        measured = _run(checked, place, images, allotment, limits, progress)
    finally:
        if error := remove_scratch_place(place):
            logger.warning("the folder of the sample, %s, cannot be removed: %s", place, error)
    return Calibration(preview, work, allotment.model_actors, prices, deadline, measured)


def _num_images(checked: Checked, unfinished: RunRecord | None, changes: Changes, allotment: Allotment) -> int:
    """How many images the run would segment."""
    if unfinished is None:
        return sum(changes.counts.get(reason, 0) for reason in changes.planned if reason != "removed")
    left = _shards(checked, unfinished, changes, allotment)
    return sum(images.filter(is_segmented(images)).num_rows for images in left)


def _shards(
    checked: Checked, unfinished: RunRecord | None, changes: Changes, allotment: Allotment
) -> Iterator[pa.Table]:
    """The shards that the run would work on: all shards of a new plan, or the remaining shards of an unfinished run."""
    settings = checked.settings
    if unfinished is None:
        size = ShardSize(
            images_per_shard(settings, allotment),
            settings.shard_mib * 2**20,
            changes.num_planned,
            allotment.model_actors[1],
        )
        yield from group_into_shards(changes.images(), size)
        return
    folder, plan = checked.output.run(unfinished.run_id), unfinished.plan
    with checked.output.errors():
        done = {receipt.shard for receipt in Journal(folder).read(plan.num_shards)}
    for file in plan.files:
        left = [s for s in range(file.first_shard, file.first_shard + file.num_shards) if s not in done]
        if left:
            yield from (images for _, images in read_plan_file(checked.output, checked.inputs, file, left))


def _run(
    checked: Checked,
    place: str,
    images: pa.Table,
    allotment: Allotment,
    limits: Limits,
    progress: Progress,
) -> Measured:
    """Run the images in `place`. RunError if none of them could be measured."""
    settings = checked.settings
    assert isinstance(settings, PlanSettings)
    allotment = allotment.of_at_most(_num_actors(settings, allotment))
    batch_size = segment_spec(settings, checked.model, allotment).batch_size
    shards = _SHARDS_PER_ACTOR * allotment.model_actors[1]
    per_shard = min(images_per_shard(settings, allotment), max(batch_size, images.num_rows // shards, 1))
    output = proven(Output.open(place), settings.allow_unsafe_store)
    checked = replace(checked, settings=settings.of_sample(place, per_shard), output=output)
    with holding_lease(output, settings.lease_seconds) as lease:
        record = plan_run(checked, [images], {}, per_shard, allotment.computed_on, lease.check)
        run = take_up(checked, record)
        meter = RunMeter(time.time())
        execute(run, allotment, lease, progress, limits)
        ended = time.time()
    receipts = sorted(run.journal.read(run.plan.num_shards), key=lambda receipt: receipt.model_ended)
    for receipt in receipts:
        meter.add(receipt)
    measured = meter.measured(
        fingerprint=checked.fingerprint,
        device_name=limits.device_name or allotment.device,
        units_per_actor=allotment.device_units,
        begin_seconds=max(0.0, meter.began - psutil.Process().create_time()),
        end_seconds=max(0.0, ended - meter.last_finished),
        part_bytes=bytes_of_a_part(output, receipts),
    )
    if measured is None:
        raise RunError(f"--calibrate: none of the {images.num_rows} images of the sample could be timed")
    return measured


def _num_actors(settings: PlanSettings, allotment: Allotment) -> int:
    """All actors that share a device: the actors of one GPU, all actors on the CPUs of this machine, or one actor of a
    cluster of CPUs.
    """
    if allotment.device == "cuda":
        return settings.actors_per_gpu()
    return 1 if joins_a_cluster() else allotment.model_actors[1]
