"""The training: check everything, then let Ray Train's workers step, save and validate until all steps are done.

<output>/finetune.json  settings; the same command continues the training, other settings are refused
<output>/train/         by Ray Train: the last checkpoints, each a Hugging Face folder with the optimizer's state
<output>/log.jsonl      losses and validations up to the last checkpoint; loss.png plots them
<output>/model/         the trained model, once all steps are done
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from m2f_core.checkpoints.checkpoint import CONFIG_FILE
from pipeline.cluster.resources import connect, on_this_node
from pipeline.device.precision import check_precision
from pipeline.errors import BrokenRunError, RunError, StoreUnavailableError
from pipeline.segment.checkpoint import is_local_path
from pipeline.store.filesystem import (
    STORE_ERRORS,
    is_local,
    list_folder,
    one_line,
    open_filesystem,
    put_object,
    store_errors_as,
    whole_path,
)
from pipeline.store.json_records import parse_json_object
from pipeline.store.objects import read_or_none
from pipeline.store.removal import remove_folder_of
from pipeline.train.annotated_images import labels_of, training_data, validation_data
from pipeline.train.ray_train_files import LIST_OF_CHECKPOINTS, is_checkpoint, listed_checkpoints
from pipeline.train.settings import PLACES, FinetuneSettings
from pipeline.train.starting_model import number_of_queries, start_warnings
from pipeline.train.training import training_files
from pipeline.train.worker import train_on_worker

logger = logging.getLogger(__name__)

_IDENTITY_FILE = "finetune.json"
_CHECKPOINTS_KEPT = 2
_DEFAULT_CPUS = 4
_TRAIN = "train"  # name of Ray Train's run and of its folder below --output


def finetune(settings: FinetuneSettings) -> None:
    """Train, or continue a training, until all steps are done.

    RunError if the training cannot start (nothing is written) or cannot continue (its checkpoints are kept);
    BrokenRunError if workers keep dying.
    """
    settings = _with_whole_paths(settings)
    for warning in start_warnings(settings):
        logger.warning(warning)
    identity = _identity(settings)
    filesystem, root = open_filesystem(settings.output)
    _check_output(filesystem, root, settings, identity)
    cpus, use_gpu = _room(settings)
    with _output_errors_as(RunError, settings.output):
        _whole_checkpoints(filesystem, root)
        put_object(filesystem, f"{root}/{_IDENTITY_FILE}", json.dumps(identity, indent=1).encode())
    what = f"{cpus} CPUs and a GPU" if use_gpu else f"{cpus} CPUs"
    logger.info(f"training on {settings.workers} workers with {what} each")
    lines = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            train_on_worker,
            train_loop_config={"settings": settings, "cpus": cpus, "lines": lines},
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
            ),
            run_config=ray.train.RunConfig(
                name=_TRAIN,
                storage_path=root,
                storage_filesystem=None if is_local(filesystem) else _arrow_filesystem(filesystem),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_CHECKPOINTS_KEPT),
            ),
        )

    with _print_lines(lines):
        result = _fit(trainer, settings.max_failures)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder, _output_errors_as(BrokenRunError, settings.output):
        _publish(filesystem, root, Path(folder))
    try:
        _remove_unfinished_checkpoints(filesystem, root)
    except (RunError, *STORE_ERRORS) as error:  # the model is complete
        logger.warning(f"unfinished checkpoints of killed workers cannot be removed: {one_line(error)}")


def _fit(trainer: Callable[[], TorchTrainer], max_failures: int) -> ray.train.Result:
    """Train; if workers die, start another trainer, which continues from the last checkpoint.

    Ray's FailureConfig is not used, because it also repeats errors that are permanent: a RunError ends the training.
    """
    for failures_left in range(max_failures, -1, -1):
        try:
            return _fit_once(trainer())
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, RunError) and not isinstance(failure, StoreUnavailableError):
                    raise RunError(f"the training cannot continue: {_reason(failure)}") from None
            reason = "; ".join(dict.fromkeys(map(_reason, error.worker_failures.values()))) or one_line(error)
            if not failures_left:
                raise BrokenRunError(f"the training broke: {reason}") from error
            logger.warning(f"{reason}; continuing, {failures_left} of {max_failures} restarts left")
        except (ray.train.TrainingFailedError, RayError) as error:  # Ray's own processes may also die
            raise BrokenRunError(f"the training broke: {one_line(error)}") from error
    raise AssertionError("the last failure raises")


def _fit_once(trainer: TorchTrainer) -> ray.train.Result:
    """Call `trainer.fit()` in a thread: in the main thread it would handle SIGINT and end with any exit code."""
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    return outcome.result()


def _reason(error: BaseException) -> str:
    """The error's message on one line; an error of a loading process contains a traceback, whose last line is used."""
    name, said = type(error).__name__, one_line(error)
    if "Traceback (most recent call last)" in str(error):
        said = str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{name}: ")
    return said if isinstance(error, RunError) else f"{name}: {said}"


@contextmanager
def _print_lines(lines: Queue) -> Iterator[None]:
    """Log the lines that worker 0 puts into the queue while this is open."""
    done = threading.Event()

    def print_all() -> None:
        with suppress(RayError):  # if the queue dies, the training continues without lines
            while not done.is_set() or not lines.empty():
                with suppress(Empty):
                    logger.info(lines.get(timeout=0.5))

    thread = threading.Thread(target=print_all, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _whole_checkpoints(filesystem: Any, root: str) -> set[str]:
    """Names of the complete checkpoints in Ray Train's list.

    RunError if the list is damaged: Ray overwrites the list in place, so a crash may have truncated it.
    """
    place = f"{root}/{_TRAIN}/{LIST_OF_CHECKPOINTS}"
    data = read_or_none(filesystem, place, "--output")
    if data is None:
        return set()
    try:
        return listed_checkpoints(data)
    except ValueError as error:
        names = ", ".join(_checkpoints(filesystem, root))
        raise RunError(
            f"--output {place} is damaged ({one_line(error)}), and without this list Ray Train "
            f"cannot continue. Start a new --output with one of the checkpoints beside the list as --model ({names}) "
            "and the remaining --iterations"
        ) from None


def _checkpoints(filesystem: Any, root: str) -> list[str]:
    names = [path.rstrip("/").rsplit("/", 1)[1] for path in list_folder(filesystem, f"{root}/{_TRAIN}")]
    return [name for name in names if is_checkpoint(name)]


def _remove_unfinished_checkpoints(filesystem: Any, root: str) -> None:
    """Remove the checkpoints that killed workers left unfinished. Call this when no worker can be saving."""
    whole = _whole_checkpoints(filesystem, root)
    for name in _checkpoints(filesystem, root):
        if name not in whole:
            remove_folder_of(filesystem, f"{root}/{_TRAIN}", f"{root}/{_TRAIN}/{name}")


def _publish(filesystem: Any, root: str, checkpoint: Path) -> None:
    """Copy the model from the last checkpoint; config.json is written last and marks the model as complete."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.name not in training_files())
    names = [name for name in names if not name.startswith(".")]
    for name in sorted(names, key=lambda name: name == CONFIG_FILE):
        put_object(filesystem, f"{root}/model/{name}", (checkpoint / name).read_bytes())


# --- before it starts -------------------------------------------------------------------------------------------------


def _with_whole_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """Make local paths absolute once, because workers have other working directories."""

    given = {name: getattr(settings, name) for name in PLACES}
    changed: dict[str, Any] = {name: whole_path(place) for name, place in given.items() if place is not None}
    for name in ("model", "architecture"):  # these may also be a hub id or a name
        model = getattr(settings, name)
        if model is not None and is_local_path(model):
            changed[name] = whole_path(model)
    return replace(settings, **changed)


def _identity(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings and data properties that a command must share with a training to continue it.

    The properties include categories and the number of images, because a change of either makes a different training.
    RunError if the data cannot be used. This reads the data for the check alone; workers read the data themselves.
    """
    data, val_data = training_data(settings), validation_data(settings)
    data.check_first()
    num_queries, most = number_of_queries(settings), data.most_objects()
    if most > num_queries:
        logger.warning(
            f"{data.where}: an image has {most} objects, but the model has {num_queries} queries and finds at most as "
            "many; train with --crop-size smaller than the images, or with a model of more queries"
        )
    if val_data is not None:
        val_data.check_first()
        if labels_of(val_data).categories != labels_of(data).categories:
            raise RunError(
                f"{val_data.where} has other categories than the training data; both must have the same categories"
            )
    content = {"categories": labels_of(data).to_list(), "number_of_images": len(data.images)}
    identity: dict[str, Any] = json.loads(json.dumps({**settings.identity(), **content}))
    return identity


def _check_output(filesystem: Any, root: str, settings: FinetuneSettings, identity: dict[str, Any]) -> None:
    """Raise RunError if --output holds a finished training or one with another identity, or cannot be used."""
    with _output_errors_as(RunError, settings.output):
        data = read_or_none(filesystem, f"{root}/{_IDENTITY_FILE}", "--output")
        other = data is None and list_folder(filesystem, root)
        finished = filesystem.exists(f"{root}/model/{CONFIG_FILE}")
    if other:
        raise RunError(f"--output {settings.output} is not empty and holds no training; choose a new folder")
    if data is not None:
        there = parse_json_object(data, f"{root}/{_IDENTITY_FILE}", "--output")
        different = [
            f"{name} ({there.get(name)!r:.200} there, {value!r:.200} now)"
            for name, value in identity.items()
            if there.get(name) != value
        ]
        if different:
            raise RunError(f"--output {settings.output} holds a training with other settings: {', '.join(different)}")
    if finished:
        raise RunError(f"--output {settings.output} holds a finished training; choose another --output for a new one")


def _output_errors_as(kind: type[Exception], output: str) -> AbstractContextManager[None]:
    return store_errors_as(kind, f"--output {output} cannot be used")


def _room(settings: FinetuneSettings) -> tuple[int, bool]:
    """CPUs of each worker, and whether each worker has a GPU. RunError if the workers do not fit on the cluster."""
    resources = connect(log_to_driver=False)  # the driver logs; Ray Train's workers and controller print too much
    use_gpu = settings.device == "cuda" or (settings.device == "auto" and resources.gpus > 0)
    resources = resources.for_gpus(settings.workers if use_gpu else 0)
    if not resources.joined:  # on a cluster, workers check their own machines
        check_precision(settings.precision, "cuda" if use_gpu else "cpu")
    groups = [group for group in resources.groups if group.count and (group.gpus >= 1 or not use_gpu)]
    of_node = max((int(group.cpus) for group in groups), default=1)
    of_all = sum(group.cpus * group.count for group in groups)
    if not resources.joined:
        of_node -= 1  # the extra CPU that `connect` adds for actors that wait
    cpus = settings.cpus_per_worker or max(1, min(_DEFAULT_CPUS, int(of_all) // settings.workers, of_node))
    room = resources.room_for(cpus, int(use_gpu))
    if room < settings.workers:
        what = f"{cpus} CPUs and a GPU" if use_gpu else f"{cpus} CPUs"
        raise RunError(
            f"{settings.workers} workers with {what} each do not fit on the cluster, which has room for {room}; "
            "lower --workers or --cpus-per-worker"
        )
    return cpus, use_gpu


def _arrow_filesystem(filesystem: Any) -> Any:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(filesystem))
