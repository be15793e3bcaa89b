"""The run: stream the shards through the graph, commit their receipts, close the books.

`build_dataset` is the program: every stage that a shard passes, in order.
"""

import contextlib
import logging
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pyarrow as pa
import ray.data
from ray._private.log import PlainRayHandler
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.books import Clock, Report, close_books, utc_now
from pipeline.cluster import FETCH_CPUS, READ_PLAN_CPUS, WRITE_CPUS, Allotment, allot, connect
from pipeline.config import Settings
from pipeline.encode import EncodeSpec, encode_shard, warm_up
from pipeline.errors import BrokenRunError
from pipeline.journal import Committer, Receipt, Totals
from pipeline.plan import PlanFile, read_plan_file
from pipeline.prepare import Run, check, prepare
from pipeline.progress import Progress
from pipeline.read import FetchImages
from pipeline.schema import pack_shard, unpack_shard
from pipeline.segment import SegmentImages, SegmentSpec
from pipeline.storage import STORE_ERRORS, one_line, open_filesystem
from pipeline.write import ShardWriter

logger = logging.getLogger(__name__)

# Ray keeps 0.7-4 KB per block in the driver and frees it only with the dataset (ray#66016).
SHARDS_PER_ROUND = 50_000
# A shard is what a dying worker loses and what progress moves by: minutes of work on either device.
SHARD_IMAGES_GPU, SHARD_IMAGES_CPU = 512, 16


def segment_bucket(settings: Settings) -> Report:
    """Run the whole job. Raises RunError, with nothing written, where it cannot start."""
    checked = check(settings)
    for warning in checked.model.warnings:
        logger.warning(warning)
    allotment = allot(settings, connect())
    per_shard = settings.images_per_shard or (SHARD_IMAGES_GPU if allotment.device == "cuda" else SHARD_IMAGES_CPU)
    return execute(prepare(checked, per_shard), allotment)


def execute(run: Run, allotment: Allotment) -> Report:
    """Stream what is not done yet; commit; close the books. A finished run is left as it is."""
    finished = run.read_object("report.json")
    if finished is not None:
        logger.warning("run %s is finished already; nothing to do", run.run_id)
        return Report(**finished)
    totals = Totals()
    for receipt in run.journal.read():
        totals.add(receipt)
    done_before = len(totals.shards)
    run.put_object(f"attempts/{run.attempt:06d}.json", {"host": socket.gethostname(), "started": utc_now()})
    todo = f"{run.plan.num_images} images in {run.plan.num_shards} shards, {done_before} done before"
    logger.info(f"run {run.run_id}: {todo}; at most {allotment.model_actors[1]} model actors on {allotment.device}")
    clock = Clock()
    with (
        _stop_on_sigterm(),
        _store_errors(run),
        Progress(run.plan.num_images, totals, run.settings.progress_seconds) as progress,
        Committer(run.journal) as committer,
    ):
        for receipt in _stream_receipts(run, allotment, totals.shards):
            if totals.add(receipt):
                committer.add(receipt)
                clock.add(receipt)
                progress.update()
    return close_books(run, totals, done_before, clock)


def build_dataset(run: Run, allotment: Allotment, shards: "list[tuple[PlanFile, list[int]]]") -> ray.data.Dataset:
    """The graph: plan -> fetch -> segment -> encode and write -> receipts. One row is one shard is one block."""
    settings = run.settings
    num_shards = sum(len(pending) for _, pending in shards)
    _set_ray_data_options()
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "max_restarts": -1, "max_task_retries": 8}
    return (
        ray.data.read_datasource(
            ShardSource(settings.output, shards), num_cpus=READ_PLAN_CPUS, override_num_blocks=len(shards)
        )
        .map_batches(
            FetchImages,
            fn_constructor_args=(settings.input,),
            compute=_pool(allotment.helpers, num_shards),
            num_cpus=FETCH_CPUS,
            **one_shard,
        )
        .map_batches(
            SegmentImages,
            fn_constructor_args=(_segment_spec(run, allotment),),
            # Two shards at a time in an actor: one on the device, the next decoding. In flight / concurrent must stay
            # above 1.75 or Ray never adds an actor.
            compute=_pool(
                allotment.model_actors,
                num_shards,
                initial_size=min(allotment.model_actors_at_start, num_shards),
                max_tasks_in_flight_per_actor=4,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            num_cpus=allotment.model_cpus,
            num_gpus=allotment.model_gpus,
            **one_shard,
        )
        .map_batches(
            EncodeAndWrite,
            fn_constructor_args=(
                EncodeSpec(run.run_id, run.fingerprint, run.attempt, settings.task, run.model.labels.categories),
                ShardWriter(settings.output, run.run_id),
            ),
            compute=_pool(allotment.helpers, num_shards),
            num_cpus=WRITE_CPUS,
            **one_shard,
        )
    )


class ShardSource(Datasource):
    """The plan as a Ray source: one read task per plan file, one row per shard that is not done."""

    def __init__(self, output: str, shards: "list[tuple[PlanFile, list[int]]]"):
        super().__init__()
        self.output = output
        self.shards = shards

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        return [self._read_task(plan_file, pending) for plan_file, pending in self.shards]

    def _read_task(self, plan_file: PlanFile, pending: list[int]) -> ReadTask:
        output = self.output

        def read() -> Iterator[pa.Table]:
            filesystem, _ = open_filesystem(output)
            for shard, images in read_plan_file(filesystem, plan_file, pending):
                yield pack_shard(shard, images)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=(plan_file.path,), exec_stats=None)
        return ReadTask(read, metadata)


class EncodeAndWrite:
    """CPU actor: the rows of a shard, checked and written; gives its receipt."""

    def __init__(self, encode: EncodeSpec, writer: ShardWriter):
        self.encode = encode
        self.writer = writer
        warm_up()

    def __call__(self, row: pa.Table) -> pa.Table:
        self.writer.check_visible()
        shard, images = unpack_shard(row)
        tables = encode_shard(shard, images, self.encode)
        receipt = self.writer.write(shard, tables, started=row.column("started")[0].as_py())
        return pa.table({"receipt": [receipt.to_json()]})


def _stream_receipts(run: Run, allotment: Allotment, done: set[int]) -> Iterator[Receipt]:
    for shards in _rounds(run.plan.files, set(done)):
        dataset = build_dataset(run, allotment, shards)
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                assert isinstance(batch, pa.Table)
                yield from map(Receipt.from_json, batch.column("receipt").to_pylist())
        except Exception as error:  # Ray's own, and of Ray Data not all of them are RayErrors
            raise BrokenRunError(f"run {run.run_id} broke: {_innermost(error)}") from error


def _innermost(error: Exception) -> str:
    """The line of Ray's stack of stacks that says what was raised first, in the actor; else its last line."""
    raised = re.compile(r"(?!ray\.)[\w.]*(Error|Exception): ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if raised.match(line)), lines[-1])


def _rounds(files: tuple[PlanFile, ...], done: set[int]) -> Iterator[list[tuple[PlanFile, list[int]]]]:
    """Shards that are not done, by plan file, at most SHARDS_PER_ROUND at a time."""
    shards: list[tuple[PlanFile, list[int]]] = []
    for file in files:
        pending = [s for s in range(file.first_shard, file.first_shard + file.num_shards) if s not in done]
        if shards and sum(len(p) for _, p in shards) + len(pending) > SHARDS_PER_ROUND:
            yield shards
            shards = []
        if pending:
            shards.append((file, pending))
    if shards:
        yield shards


def _segment_spec(run: Run, allotment: Allotment) -> SegmentSpec:
    settings = run.settings
    return SegmentSpec(
        model=settings.model,
        weights_sha256=run.model.weights_sha256,
        preprocess=settings.preprocess,
        image_size=settings.parsed_image_size(),
        exif=settings.exif,
        max_image_pixels=settings.max_image_pixels,
        inference=run.model.inference,
        precision=settings.precision,
        device=allotment.device,
        threads=allotment.model_threads,
        batch_size=settings.batch_size or (16 if allotment.device == "cuda" else 1),
    )


def _pool(actors: tuple[int, int], num_shards: int, **options: Any) -> ActorPoolStrategy:
    """A pool of `actors` (min, max), but never more than there are shards for."""
    least, most = (min(number, num_shards) for number in actors)
    return ActorPoolStrategy(min_size=least, max_size=most, **options)


def _set_ray_data_options() -> None:
    """Ray's defaults are set, not trusted; each line answers a fault that was reproduced."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # every row (shard) a block of its own through all stages
    context.execution_options.preserve_order = False  # a slow shard holds up nobody
    context.execution_no_progress_timeout_s = 3 * 3600  # counts waiting for spot capacity too
    context.actor_init_retry_on_errors = True  # a restarted actor whose __init__ raises would end the run
    context.actor_init_max_retries = 5
    context.max_consecutive_actor_init_deaths = 20
    context.max_errored_blocks = 0  # Ray would drop whole shards; a bad image is a row of ours
    context.enable_progress_bars = False  # they count shards; ours counts images
    # Ray Data's own lines stay in its log file; the console is for ours, and for errors.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.ERROR)
    # max_restarts and max_task_retries have no other way in, whatever this warning says (Ray 2.60).
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


@contextlib.contextmanager
def _store_errors(run: Run) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise BrokenRunError(f"run {run.run_id} broke: --output cannot be written: {one_line(error)}") from error


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """`ray job stop` and a leaving node send SIGTERM: leave through the exits of the `with`, which commit what is done.

    Entered after ray.init, which sets a handler of its own. Outside of the main thread whoever runs us handles signals.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
