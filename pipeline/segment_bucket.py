"""The whole job: find out what there is to do, and execute a run if there is anything.

Neither Ray nor PyTorch is loaded before there is work: a night that finds nothing new takes seconds.
"""

import importlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.cluster.environment import joins_a_cluster
from pipeline.commit.held_lease import HeldLease
from pipeline.commit.run_record import RunRecord
from pipeline.commit.run_report import Report
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, HeldByGateError, LimitReachedError, RunError
from pipeline.forecast.limits import Limits, limits_of
from pipeline.gate.bounds_file import read_gate
from pipeline.gate.golden import check_golden
from pipeline.inputs.listing import refuse_empty
from pipeline.nights.night import Tell, tell_nobody
from pipeline.plan.changes import describe
from pipeline.plan.growing import GrowingPlan
from pipeline.report.progress import Progress
from pipeline.report.run_watch import count_end
from pipeline.runs.begin import Run, take_up
from pipeline.runs.check import Checked, check
from pipeline.runs.find import find_report, find_run
from pipeline.runs.planning.planner import Planner
from pipeline.runs.preview import comparison_of
from pipeline.runs.prove import holding_lease, proven
from pipeline.telemetry.spans import check_endpoint

if TYPE_CHECKING:
    from pipeline.cluster.allotment import Allotment

logger = logging.getLogger(__name__)


def segment_bucket(
    settings: Settings, progress: Progress, tell: Tell = tell_nobody, checked_by: Callable[[], Checked] | None = None
) -> Report | None:
    """Run the whole job. Return None if there is nothing to do. Raise RunError if the job cannot start.

    `checked_by` is given for a run of kept logits, which has more settings than these: see pipeline/recut/check.py.
    `tell` is told what becomes known for the record of the night (Night.tell). A caller that wants finished work
    committed on SIGTERM raises an exception in its handler, as jobs/common/ends.py does.
    """
    try:
        report = _segment_bucket(settings, progress, tell, checked_by or partial(check, settings))
    except BrokenRunError:
        count_end(settings.output, "broke")
        raise
    except (KeyboardInterrupt, SystemExit, LimitReachedError, HeldByGateError):
        count_end(settings.output, "stopped")
        raise
    if joins_a_cluster():
        _join_to_be_counted()
    count_end(settings.output, "finished" if report is not None else "nothing_to_do")
    return report


def _segment_bucket(
    settings: Settings, progress: Progress, tell: Tell, checked_by: Callable[[], Checked]
) -> Report | None:
    check_endpoint(settings.otlp_endpoint)
    progress.phase("checking the settings, the checkpoint and the output")
    checked = checked_by()
    limits = limits_of(settings, checked.fingerprint)
    if settings.gate is not None:
        check_golden(read_gate(settings.gate), settings.task)  # refused now, not after hours of work
    for warning in checked.model.warnings:
        logger.warning(warning)
    finished = find_report(checked)
    if finished is not None:
        logger.info(
            "run %s is already finished. To process objects added since, use another --run-id or leave it out",
            checked.settings.run_id,
        )
        tell(nothing_to_do=f"run {checked.settings.run_id} is already finished")
        return finished
    if find_run(checked) is None and checked.list_kept is None:
        refuse_empty(checked.inputs)
    checked = replace(checked, output=proven(checked.output, settings.allow_unsafe_store))
    with holding_lease(checked.output, settings.lease_seconds) as lease:
        tell(lease=lease.token)
        return _find_and_execute(checked, lease, limits, progress, tell)


def _find_and_execute(
    checked: Checked, lease: HeldLease, limits: Limits, progress: Progress, tell: Tell
) -> Report | None:
    settings = checked.settings
    record = find_run(checked, say_what_is_left=True)
    if record is not None:
        tell(run_id=record.run_id)
        if record.plan_is_complete:
            allotment = _start_ray(settings, limits, progress)
            return _execute(_take_up(checked, record, lease), allotment, lease, progress, limits)
    progress.phase("listing the input")
    with comparison_of(checked, keeps_indexes=True) as comparison:
        # Limits choose the number of actors by the work, so all of it has to be known.
        planner = Planner(checked, comparison, lease.check, at_once=limits.are_set)
        if record is None and not planner.find_work():
            logger.info("nothing to do: %s", describe(planner.counts))
            tell(nothing_to_do=describe(planner.counts))
            return None
        allotment = _start_ray(settings, limits, progress)
        size = _images_per_shard(settings, allotment), allotment.model_actors[1]
        if record is None:
            record = planner.begin(*size, allotment.computed_on)
            plan = GrowingPlan.of(record)
            tell(run_id=record.run_id)
        else:
            plan = planner.resume(record)
        run = _take_up(checked, record, lease, plan)
        with planner.going_on(run.folder, plan, *size):
            if limits.are_set:
                plan.wait_until_complete()
            return _execute(run, allotment, lease, progress, limits)


# --- with Ray, which a night without work does not wait for -----------------------------------------------------------


def _start_ray(settings: Settings, limits: Limits, progress: Progress) -> "Allotment":
    progress.phase("starting Ray")
    from pipeline.cluster.allotment import allot
    from pipeline.cluster.resources import connect

    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(_load_the_run)
        resources = connect(label_keys=settings.label_keys())
    loading.result()
    allotment = allot(settings, resources)
    limits.set_devices(allotment.device, allotment.device_names, allotment.device_units)
    return allotment


def _load_the_run() -> None:
    """Import what the run needs. Ray, which is imported, waits for its processes meanwhile."""
    importlib.import_module("pipeline.run")
    if not joins_a_cluster():
        importlib.import_module("torch")  # says which instructions the CPU of this machine has


def _images_per_shard(settings: Settings, allotment: "Allotment") -> int:
    from pipeline.run import images_per_shard

    return images_per_shard(settings, allotment)


def _execute(run: Run, allotment: "Allotment", lease: HeldLease, progress: Progress, limits: Limits) -> Report:
    from pipeline.run import execute

    return execute(run, allotment, lease, progress, limits)


def _join_to_be_counted() -> None:
    """Join the cluster, if the run has not: without work it counts too, else an alert would say that there was none."""
    import ray

    from pipeline.cluster.resources import connect

    try:
        if not ray.is_initialized():
            connect()
    except RunError as error:
        logger.warning("this run is not counted in the metrics: %s", error)


def _take_up(checked: Checked, record: RunRecord, lease: HeldLease, plan: GrowingPlan | None = None) -> Run:
    """Begin an attempt, which fences off all earlier attempts: only the holder of the lease may do this."""
    lease.check()
    return take_up(checked, record, plan)
