"""The training: everything checked, then Ray Train's workers step, validate and save until all steps are done.

<output>/finetune.json  settings; the same command goes on, another one is refused
<output>/train/         Ray Train's: the last checkpoints, each a Hugging Face folder and the optimizer's state
<output>/log.jsonl      losses and validations up to the last checkpoint, and loss.png, their plot
<output>/model/         what came out, once all steps are done
"""

import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Empty, Queue

from m2f_core.augment import LargeScaleJitter, WholeImages
from m2f_core.checkpoint import CONFIG_FILE, load_checkpoint
from m2f_core.image_processor import ImageProcessor
from m2f_core.labels import LabelMap
from pipeline.cluster import connect
from pipeline.errors import BrokenRunError, RunError
from pipeline.finetune_config import FinetuneSettings
from pipeline.read_object import parse_json_object, read_or_none
from pipeline.starting_model import check_start, starting_model
from pipeline.storage import STORE_ERRORS, is_local, list_folder, one_line, open_filesystem, put_object
from pipeline.training import Training, training_files
from pipeline.training_data import AnnotatedImages, Augmentation, TrainingSamples, WorkerShare, load_batches
from pipeline.training_log import LOG_FILE, PLOT_FILE, as_text, plot, to_lines
from pipeline.validate import validate
from pipeline.weights import is_local_path

logger = logging.getLogger(__name__)

_CHECKPOINTS_KEPT = 2
_DEFAULT_CPUS = 4
_TRAIN = "train"  # name of Ray Train's run below --output


def finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Train, or go on training, until all steps are done; the last row of the log.

    RunError, with nothing written, where it cannot start; BrokenRunError where workers keep dying.
    """
    settings = _with_whole_paths(settings)
    check_start(settings)
    labels = _labels(_training_data(settings))
    if settings.val_gt is not None:
        _check_same_categories(labels, _validation_data(settings))
    filesystem, root = open_filesystem(settings.output)
    _check_identity(filesystem, root, settings)
    if filesystem.exists(f"{root}/model/{CONFIG_FILE}"):
        raise RunError(f"--output {settings.output} holds a finished training; choose another for a new one")
    cpus, use_gpu = _room(settings)
    put_object(filesystem, f"{root}/finetune.json", json.dumps(settings.identity(), indent=1).encode())
    what = f"{cpus} CPUs and a GPU" if use_gpu else f"{cpus} CPUs"
    logger.info(f"training on {settings.workers} workers with {what} each")
    lines = Queue(actor_options={"num_cpus": 0})
    trainer = ray.train.torch.TorchTrainer(
        train_on_worker,
        train_loop_config={"settings": settings, "cpus": cpus, "lines": lines},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
        ),
        run_config=ray.train.RunConfig(
            name=_TRAIN,
            storage_path=root,
            storage_filesystem=None if is_local(filesystem) else _arrow_filesystem(filesystem),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_CHECKPOINTS_KEPT),
        ),
    )
    try:
        with _print_lines(lines):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise BrokenRunError(f"the training broke: {one_line(error.__cause__ or error)}") from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        _publish(settings, Path(folder))
    return dict(result.metrics or {})


def train_on_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    settings: FinetuneSettings = config["settings"]
    lines: Queue = config["lines"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(config["cpus"])
    data = _training_data(settings)
    labels = _labels(data)
    val_data = _validation_data(settings) if settings.val_gt is not None else None
    training = _start_or_resume(settings, labels, check_start(settings), rank)
    if rank == 0:
        what = f"going on after step {training.iteration:,}" if training.iteration else "starting"
        lines.put(f"{what}; {sum(p.numel() for p in training.model.parameters()) / 1e6:.2f} M parameters")
    augmentation = _augmentation(settings, training.processor)
    samples = TrainingSamples(data, labels.class_id_of_category, augmentation, settings.seed)
    share = WorkerShare(settings.batch_size, rank, num_workers)
    loaders = config["cpus"] if device.type == "cuda" else 0
    for batch in load_batches(samples, share, range(training.iteration, settings.iterations), loaders):
        training.step(batch)
        last = training.iteration == settings.iterations
        if training.iteration % settings.log_every == 0 or last:
            row = training.add_log_row()
            if rank == 0:
                lines.put(as_text(row, settings.iterations))
        if training.iteration % settings.save_every == 0 or last:
            if val_data is not None and (training.iteration % (settings.evaluate_every or 1) == 0 or last):
                indices = range(rank, len(val_data.ground_truth.images), num_workers)
                figures = validate(training.model, val_data, labels, training.processor, indices, _gather)
                training.log.append({"iteration": training.iteration, **figures})
                if rank == 0:
                    lines.put(as_text(training.log[-1], settings.iterations))
            _report(training, settings)


def _augmentation(settings: FinetuneSettings, processor: ImageProcessor) -> Augmentation:
    crop_hw = settings.crop_hw()
    if crop_hw is None:
        return WholeImages(processor, settings.flip)
    return LargeScaleJitter(crop_hw, settings.min_scale, settings.max_scale, settings.flip)


def _start_or_resume(settings: FinetuneSettings, labels: LabelMap, processor: ImageProcessor, rank: int) -> Training:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        model, _ = starting_model(settings, labels)
        return Training(model, _share_gradients(model), settings, labels, processor, rank)
    with checkpoint.as_directory() as folder:
        model = load_checkpoint(folder).train()
        training = Training(model, _share_gradients(model), settings, labels, processor, rank)
        training.resume(Path(folder))
    return training


@contextmanager
def _print_lines(lines: Queue) -> Iterator[None]:
    """Print what worker 0 puts into the queue while this is open."""
    done = threading.Event()

    def print_all() -> None:
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


def _share_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """The model on the worker's device, wrapped where there are several workers."""
    return ray.train.torch.prepare_model(model)


def _gather(value: Any) -> list[Any]:
    num_workers = ray.train.get_context().get_world_size()
    if num_workers == 1:
        return [value]
    values: list[Any] = [None] * num_workers
    torch.distributed.all_gather_object(values, value)
    return values


def _report(training: Training, settings: FinetuneSettings) -> None:
    """Hand the checkpoint of worker 0 to Ray Train; every worker has to take part."""
    metrics = training.log[-1] if training.log else {"iteration": training.iteration}
    if training.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    filesystem, root = open_filesystem(settings.output)
    put_object(filesystem, f"{root}/{LOG_FILE}", to_lines(training.log))
    put_object(filesystem, f"{root}/{PLOT_FILE}", plot(training.log))


def _publish(settings: FinetuneSettings, checkpoint: Path) -> None:
    """Copy the model out of the last checkpoint; config.json comes last and says that it is whole."""
    filesystem, root = open_filesystem(settings.output)
    names = sorted(path.name for path in checkpoint.iterdir() if path.name not in training_files())
    names = [name for name in names if not name.startswith(".")]
    for name in sorted(names, key=lambda name: name == CONFIG_FILE):
        put_object(filesystem, f"{root}/model/{name}", (checkpoint / name).read_bytes())


# --- before it starts -------------------------------------------------------------------------------------------------


def _training_data(settings: FinetuneSettings) -> AnnotatedImages:
    if settings.panoptic_gt is not None:
        return AnnotatedImages.read(
            settings.images, settings.panoptic_gt, settings.panoptic_pngs, panoptic=True, flag="--panoptic-gt"
        )
    assert settings.instances_gt is not None
    return AnnotatedImages.read(settings.images, settings.instances_gt, None, panoptic=False, flag="--instances-gt")


def _validation_data(settings: FinetuneSettings) -> AnnotatedImages:
    assert settings.val_images is not None and settings.val_gt is not None
    panoptic = settings.panoptic_gt is not None
    return AnnotatedImages.read(settings.val_images, settings.val_gt, settings.val_pngs, panoptic, flag="--val-gt")


def _labels(data: AnnotatedImages) -> LabelMap:
    try:
        return LabelMap.from_coco_categories(list(data.ground_truth.categories))
    except ValueError as error:
        raise RunError(f"{data.ground_truth.flag} {data.ground_truth.place}: {one_line(error)}") from None


def _check_same_categories(labels: LabelMap, val_data: AnnotatedImages) -> None:
    if labels.categories != _labels(val_data).categories:
        raise RunError(f"--val-gt {val_data.ground_truth.place} has other categories than the training data")


def _with_whole_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """Local paths made absolute, once: workers have working directories of their own."""

    def whole(given: str | None) -> str | None:
        if given is None:
            return None
        filesystem, path = open_filesystem(given)
        return path if is_local(filesystem) else given

    names = ("images", "output", "panoptic_gt", "panoptic_pngs", "instances_gt", "val_images", "val_gt", "val_pngs")
    changed: dict[str, Any] = {name: whole(getattr(settings, name)) for name in names}
    for name in ("model", "architecture"):  # which may also be a hub id, or a name
        given = getattr(settings, name)
        if given is not None and is_local_path(given):
            changed[name] = whole(given)
    return replace(settings, **changed)


def _check_identity(filesystem: Any, root: str, settings: FinetuneSettings) -> None:
    """RunError where --output holds a training of other settings, or cannot be used."""
    try:
        data = read_or_none(filesystem, f"{root}/finetune.json", "--output")
        other = data is None and list_folder(filesystem, root)
    except STORE_ERRORS as error:
        raise RunError(f"--output {settings.output} cannot be used: {one_line(error)}") from None
    if other:
        raise RunError(f"--output {settings.output} is not empty and holds no training; name a new folder")
    if data is not None:
        there = parse_json_object(data, f"{root}/finetune.json", "--output")
        here = json.loads(json.dumps(settings.identity()))
        different = [f"{k} ({there.get(k)!r} there, {v!r} here)" for k, v in here.items() if there.get(k) != v]
        if different:
            raise RunError(f"--output {settings.output} holds a training with other settings: {', '.join(different)}")


def _room(settings: FinetuneSettings) -> tuple[int, bool]:
    """CPUs of each worker, and whether each has a GPU. RunError where the cluster has no room for them."""
    resources = connect(log_to_driver=False)  # the driver prints; Ray Train's workers and controller say a lot
    use_gpu = settings.device == "cuda" or (settings.device == "auto" and resources.gpus > 0)
    per_node = max((int(group.cpus) for group in resources.groups), default=1)
    if not resources.joined:
        per_node -= 1  # the one that `connect` adds for actors that wait
    default = max(1, min(_DEFAULT_CPUS, int(resources.cpus) // settings.workers, per_node))
    cpus = settings.cpus_per_worker or default
    if resources.room_for(cpus, int(use_gpu)) < settings.workers:
        what = f"{cpus} CPUs and a GPU" if use_gpu else f"{cpus} CPUs"
        raise RunError(f"{settings.workers} workers with {what} each do not fit on the cluster; ask for fewer of them")
    return cpus, use_gpu


def _arrow_filesystem(filesystem: Any) -> Any:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(filesystem))
