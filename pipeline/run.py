"""Execute a run: stream its shards through the Ray Data graph, commit their receipts, check the counts, publish.

`build_dataset` is the core of the program: it lists every stage that a shard passes, in order.
"""

import contextlib
import logging
import math
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.cluster.actor_arguments import pass_actor_arguments_by_value
from pipeline.cluster.allotment import FETCH_CPUS, READ_PLAN_CPUS, READ_PLAN_TASKS, WRITE_CPUS, Allotment
from pipeline.cluster.in_flight_actor import Board, start_board
from pipeline.cluster.pool_bounds import bound_pools
from pipeline.cluster.ray_private import console_handlers
from pipeline.commit.encode import EncodeSpec
from pipeline.commit.held_lease import HeldLease
from pipeline.commit.journal import Committer
from pipeline.commit.receipt import Receipt
from pipeline.commit.run_report import Report
from pipeline.commit.totals import Totals
from pipeline.commit.write import EncodeAndWrite
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, LimitReachedError
from pipeline.forecast.forecast import Work
from pipeline.forecast.limit_watch import LimitWatch
from pipeline.forecast.limits import Limits, limits_of
from pipeline.forecast.staff import Staff
from pipeline.gate.bounds_file import read_gate
from pipeline.gate.gate import pass_gate
from pipeline.gate.golden import pass_golden
from pipeline.guard.kill_points import reached
from pipeline.inputs.fetch import FetchImages
from pipeline.plan.plan_files import spread_over
from pipeline.plan.rounds import Round, rounds
from pipeline.plan.source import ShardSource
from pipeline.report.progress import Progress
from pipeline.report.run_trace import RunTrace
from pipeline.report.run_watch import RunWatch
from pipeline.runs.accounting import Clock, close_books
from pipeline.runs.begin import Run, take_up
from pipeline.runs.check import Checked
from pipeline.runs.cleanup import sweep
from pipeline.runs.planning.plan_run import plan_run
from pipeline.runs.preview import changes_of
from pipeline.runs.specs import segment_spec
from pipeline.segment.actor import SegmentImages
from pipeline.store.filesystem import full_uri, store_errors_as
from pipeline.tables.publish import Publisher
from pipeline.telemetry.console import dollars
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.log_lines import about_run
from pipeline.telemetry.spans import Spans, wants_trace

logger = logging.getLogger(__name__)

# A dying worker loses one shard, and progress advances by one shard: a shard is minutes of work on either device.
SHARD_IMAGES_GPU, SHARD_IMAGES_CPU = 512, 16
# If access to all images of a shard is denied, this many images from all over the run are tried. If one of them can be
# read, a prefix is forbidden; if none can, the whole store is unavailable.
_IMAGES_ELSEWHERE = 8


def images_per_shard(settings: Settings, allotment: Allotment) -> int:
    """How many images a shard may hold."""
    return settings.images_per_shard or (SHARD_IMAGES_GPU if allotment.device == "cuda" else SHARD_IMAGES_CPU)


def execute(run: Run, allotment: Allotment, lease: HeldLease, progress: Progress, limits: Limits) -> Report:
    """Stream the shards that are not done yet, commit their receipts, check the counts and publish.

    LimitReachedError if `limits` ended the run before its last shard; what is done is published then, too, unless the
    run has a gate. HeldByGateError if the gate does not let the run begin, or be published.
    """
    gate = None if run.settings.gate is None else read_gate(run.settings.gate)
    if gate is not None and gate.golden is not None:
        progress.phase("segmenting the golden images")
        with _store_errors(run):
            pass_golden(gate, run, lambda golden: _segment_golden(golden, allotment, lease))
    about_run(run.run_id)
    label_run(run.run_id)
    totals = Totals()
    with _store_errors(run):
        for receipt in run.journal.read(run.plan.num_shards):
            totals.add(receipt)
    done_before = len(totals.shards)
    so_far = "" if run.plan.is_complete else " so far, and the listing goes on"
    todo = (
        f"{run.plan.num_images} images in {run.plan.num_shards} shards{so_far}, {done_before} done before this attempt"
    )
    logger.info(f"run {run.run_id}: {todo}; at most {allotment.model_actors[1]} model actors on {allotment.device}")
    traced = wants_trace(run.settings.otlp_endpoint)
    clock, board = Clock(), start_board(traced)
    spans = Spans(run.settings.otlp_endpoint, full_uri(run.output.uri), run.run_id) if traced else None
    publisher = Publisher(
        run.output, run.run_id, lambda: run.plan.num_shards, run.journal, lease.check, lambda: totals.part_bytes
    )
    publications = _Timer(run.settings.publish_every)
    left = Work(run.plan.num_images - totals.num_images, run.plan.num_shards - done_before)
    staff, watch = Staff(limits, left, run.fingerprint), LimitWatch(limits, board)
    deadline = None if limits.deadline is None else limits.deadline.timestamp()
    with (
        _store_errors(run),
        Committer(run.journal, may_commit=lease.check) as committer,
        RunTrace(spans, board.drain, run.journal.attempt) as trace,
        RunWatch(progress, board.look, lambda: run.failure_budget, deadline, trace.pass_on, watch.check),
    ):
        progress.follow(run.plan, totals, committer.num_waiting, board.look)
        _check_failures(run, totals)
        for receipt in _stream_receipts(run, allotment, totals.shards, board, staff, watch):
            board.done(receipt.shard)
            staff.add(receipt)
            watch.add(receipt)
            if totals.add(receipt):
                committer.add(receipt)
                clock.add(receipt)
                trace.add(receipt)
                _check_failures(run, totals)
            if publications.is_due():
                committer.commit()
                publisher.publish()
        progress.phase("publishing")
        committer.commit()
        watch.check()
        if limits.reached is not None and len(totals.shards) < run.plan.num_shards:
            if gate is None:
                publisher.publish()
            raise _stopped(run, totals, limits, staff)
        report = replace(close_books(run, totals, done_before, clock), computed_on=allotment.computed_on)
        if gate is not None:
            pass_gate(gate, run.journal, report, run.settings.task)
        report = replace(report, table_versions=publisher.publish())
        if run.settings.compact:
            publisher.compact()
        lease.check()
        sweep(run.journal)
        report.write(run.folder)
        reached("after report")
        trace.run_is_finished(run.created.timestamp(), report.num_images, report.num_failed)
    return report


def _segment_golden(checked: Checked, allotment: Allotment, lease: HeldLease) -> str:
    """Run all images of an input into an output below that of the run, whose lease is `lease`; returns the run id."""
    settings = checked.settings
    with changes_of(checked) as changes:
        per_shard = images_per_shard(settings, allotment)
        record = plan_run(checked, changes.images(), changes.counts, per_shard, allotment.computed_on, lease.check)
    limits = limits_of(settings, checked.fingerprint)
    limits.set_devices(allotment.device, allotment.device_names, allotment.device_units)
    unseen = Progress(settings.progress_seconds, settings.log_format)  # the counts of the night are those of its run
    execute(take_up(checked, record), allotment, lease, unseen, limits)
    return record.run_id


def _stopped(run: Run, totals: Totals, limits: Limits, staff: Staff) -> Exception:
    if limits.fault is not None:
        return BrokenRunError(f"run {run.run_id} stopped: {limits.fault}")
    rest = Work(run.plan.num_images - totals.num_images, run.plan.num_shards - len(totals.shards))
    spent = "" if limits.max_cost is None else f" with {dollars(limits.cost)} USD spent"
    return LimitReachedError(f"run {run.run_id} stopped at {limits.reached}{spent}: {staff.describe(rest)}")


def _check_failures(run: Run, totals: Totals) -> None:
    most = run.settings.max_failures
    if most is not None and totals.num_failed > most:
        raise BrokenRunError(
            f"{totals.num_failed} images failed, more than --max-failures {most} allows; run {run.run_id} stops"
        )


class _Timer:
    """`is_due` returns True once every `minutes` minutes, and never if `minutes` is None."""

    def __init__(self, minutes: float | None):
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.since = time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self.since >= self.seconds
        if due:
            self.since = time.monotonic()
        return due


def build_dataset(run: Run, allotment: Allotment, shards: Round, board: Board) -> ray.data.Dataset:
    """The graph: plan -> fetch -> segment -> encode and write -> receipts. One shard is one row, and one row is one
    block. A run of kept logits has one stage in place of fetch and segment.
    """
    settings = run.settings
    num_shards = shards.most_shards(run.plan)
    _set_ray_data_options()
    bound_pools(lambda: shards.most_shards(run.plan), allotment.model_nodes, allotment.helper_nodes)
    pass_actor_arguments_by_value()
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "max_restarts": -1, "max_task_retries": 8}
    on_helper_nodes = allotment.helper_nodes.options()
    helpers: dict[str, Any] = {"compute": _pool(allotment.helpers, num_shards), **on_helper_nodes, **one_shard}
    models: dict[str, Any] = {
        # An actor works on two shards at a time: one runs on the device while the next is decoded. The ratio of
        # tasks in flight to concurrent calls must stay above 1.75, or Ray never adds an actor.
        "compute": _pool(
            allotment.model_actors,
            num_shards,
            initial_size=min(allotment.model_actors_at_start, num_shards),
            max_tasks_in_flight_per_actor=4,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        "num_cpus": allotment.model_cpus,
        "num_gpus": allotment.model_gpus,
        **allotment.model_nodes.options(),
        **one_shard,
        # A queued shard loses one retry whenever a shard before it crashes the actor (two crashes per bad shard).
        "max_task_retries": 64,
    }
    planned = ray.data.read_datasource(
        ShardSource(settings.output, run.run_id, run.inputs, shards),
        num_cpus=READ_PLAN_CPUS,
        compute=TaskPoolStrategy(size=READ_PLAN_TASKS),
        override_num_blocks=shards.num_tasks,
        **on_helper_nodes,
    )
    if run.recut is not None:
        from pipeline.recut.actor import RecutImages  # imports PyTorch, which no other driver needs

        segmented = planned.map_batches(
            RecutImages, fn_constructor_args=(run.recut, run.run_id, board.in_hand), **models
        )
    else:
        elsewhere = spread_over(run.output, run.inputs, run.plan.summary, _IMAGES_ELSEWHERE)
        segmented = planned.map_batches(
            FetchImages,
            fn_constructor_args=(run.inputs, settings.step_timeout, True, board.in_hand, elsewhere, run.run_id),
            num_cpus=FETCH_CPUS,
            **helpers,
        ).map_batches(
            SegmentImages,
            fn_constructor_args=(
                segment_spec(settings, run.model, allotment),
                settings.output,
                run.run_id,
                board.in_hand,
                run.output.has_conditions,
                board.hold,
                allotment.threads_here,
            ),
            **models,
        )
    return segmented.map_batches(
        EncodeAndWrite,
        fn_constructor_args=(
            EncodeSpec(
                run.run_id,
                run.created,
                run.fingerprint,
                run.journal.attempt,
                settings.task,
                run.model.labels.categories,
                all_classes=not settings.classes,
            ),
            settings.output,
            run.run_id,
            settings.step_timeout,
            board.in_hand,
        ),
        num_cpus=WRITE_CPUS,
        **helpers,
    )


def _stream_receipts(
    run: Run, allotment: Allotment, done: set[int], board: Board, staff: Staff, watch: LimitWatch
) -> Iterator[Receipt]:
    first = staff.num_shards_to_measure(allotment.model_actors, allotment.model_actors_at_start)
    for number, shards in enumerate(rounds(run.plan, set(done), first)):
        if not staff.limits.may_begin(time.time()):
            return
        if first and number == 0:
            allotted = allotment.of_at_most(allotment.model_actors_at_start)
        else:
            allotted = allotment.of_at_most(staff.choose(allotment.model_actors))
        try:
            dataset = build_dataset(run, allotted, shards, board)
            batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for batch in watch.received(iter(batches)):
                assert isinstance(batch, pa.Table)
                yield from (Receipt.from_json(line, run.run_id) for line in batch.column("receipt").to_pylist())
        except Exception as error:  # errors of Ray; not all errors of Ray Data are RayErrors
            raise BrokenRunError(f"run {run.run_id} broke: {_innermost(error)}") from error


def _innermost(error: Exception) -> str:
    """The line of Ray's nested tracebacks with the exception that the actor raised first; else the last line.

    The errors of this program are sentences, so their class is left out.
    """
    raised = re.compile(r"(?!ray\.)[\w.]*(Error|Exception): ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = next((line for line in lines if raised.match(line)), lines[-1])
    return re.sub(r"^pipeline\.errors\.\w+: ", "", first)


def _pool(actors: tuple[int, int], num_shards: int, **options: Any) -> ActorPoolStrategy:
    """An actor pool of `actors` (min, max), but with at most one actor per shard."""
    least, most = (min(number, num_shards) for number in actors)
    return ActorPoolStrategy(min_size=least, max_size=most, **options)


def _set_ray_data_options() -> None:
    """Set each option explicitly instead of trusting Ray's default. Each line prevents a fault that was reproduced."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # every row (shard) stays a block of its own through all stages
    context.execution_options.preserve_order = False  # a slow shard does not hold up the others
    context.execution_no_progress_timeout_s = 3 * 3600  # this time includes waiting for spot capacity
    context.actor_init_retry_on_errors = True  # otherwise a restarted actor whose __init__ raises would end the run
    context.actor_init_max_retries = 5
    context.max_consecutive_actor_init_deaths = 20
    context.max_errored_blocks = 0  # Ray would drop whole shards; here a bad image becomes a row
    context.enable_progress_bars = False  # Ray's bars count shards; our progress counts images
    # Ray Data's own lines go only to its log file; the console shows our lines, and errors.
    for handler in console_handlers("ray.data"):
        handler.setLevel(logging.ERROR)
    # There is no other way to pass max_restarts and max_task_retries, whatever this warning says (Ray 2.60).
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


@contextlib.contextmanager
def _store_errors(run: Run) -> Iterator[None]:
    with store_errors_as(BrokenRunError, f"run {run.run_id} broke: --output cannot be written"):
        yield
