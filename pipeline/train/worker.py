"""The function that each of Ray Train's workers runs: step, log, save and validate until all steps are done."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.util.queue import Queue

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.config.labels import LabelMap
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.training.augment import LargeScaleJitter, WholeImages
from pipeline.device.precision import check_precision
from pipeline.store.filesystem import write_uri
from pipeline.store.temporary_folders import scratch_folder
from pipeline.train.annotated_images import labels_of, training_data, validation_data
from pipeline.train.data import Augmentation, TrainingSamples, WorkerShare, load_batches
from pipeline.train.log import LOG_FILE, PLOT_FILE, as_text, plot, to_lines
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import check_start, starting_model
from pipeline.train.training import Training
from pipeline.train.validate import validate


def train_on_worker(config: dict[str, Any]) -> None:
    """`config` holds the settings, the CPUs of a worker, and a queue for lines to print.

    RunError for a permanent error; StoreUnavailableError if a later try may succeed.
    """
    settings: FinetuneSettings = config["settings"]
    lines: Queue = config["lines"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    check_precision(settings.precision, device.type)
    if device.type == "cpu":
        torch.set_num_threads(config["cpus"])
    data = training_data(settings)
    labels = labels_of(data)
    val_data = validation_data(settings)
    training, has_new_head = _start_or_resume(settings, labels, check_start(settings), rank)

    def say(text: str) -> None:
        if rank == 0:
            with suppress(RayError):  # a lost line must not end the training
                lines.put(text)

    what = f"continuing after step {training.iteration:,}" if training.iteration else "starting"
    say(f"{what}; {sum(p.numel() for p in training.model.parameters()) / 1e6:.2f} M parameters")
    if has_new_head and settings.model is not None:
        say("the class head starts from random weights, because the classes of --model differ from those of the data")

    def follow_up() -> None:
        """Validate if it is due, and write the log. This follows a checkpoint, so that an error here loses no step.

        A resumed training begins with this follow-up, because the interrupted one may not have finished it.
        """
        last = training.iteration == settings.iterations
        if val_data is not None and (training.iteration % (settings.evaluate_every or 1) == 0 or last):
            indices = range(rank, len(val_data.images), num_workers)
            figures = validate(training.model, val_data, labels, training.processor, indices, _gather)
            training.log.append({"iteration": training.iteration, **figures})
            say(as_text(training.log[-1], settings.iterations))
        if rank == 0:
            _show_log(training, settings.output)

    if training.iteration:
        with training.meter.pause():
            follow_up()
    augmentation = _augmentation(settings, training.processor)
    samples = TrainingSamples(data, labels.class_id_of_category, augmentation, settings.seed)
    share = WorkerShare(settings.batch_size, rank, num_workers)
    loaders = config["cpus"] if device.type == "cuda" else 0
    for batch in load_batches(samples, share, range(training.iteration, settings.iterations), loaders):
        training.step(batch)
        last = training.iteration == settings.iterations
        if training.iteration % settings.log_every == 0 or last:
            say(as_text(training.add_log_row(), settings.iterations))
        if training.iteration % settings.save_every == 0 or last:
            with training.meter.pause():
                _save(training)
                follow_up()


def _augmentation(settings: FinetuneSettings, processor: ImageProcessor) -> Augmentation:
    crop_hw = settings.crop_hw()
    if crop_hw is None:
        return WholeImages(processor, settings.flip)
    return LargeScaleJitter(crop_hw, settings.min_scale, settings.max_scale, settings.flip, processor.training_padding)


def _start_or_resume(
    settings: FinetuneSettings, labels: LabelMap, processor: ImageProcessor, rank: int
) -> tuple[Training, bool]:
    """The training, new or resumed, and whether its class head is new."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        model, has_new_head = starting_model(settings, labels)
        return Training(model, _share_gradients(model), settings, labels, processor, rank), has_new_head
    with checkpoint.as_directory() as folder:
        model = load_checkpoint(folder).train()
        training = Training(model, _share_gradients(model), settings, labels, processor, rank)
        training.resume(Path(folder))
    return training, False


def _share_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """Move the model to the worker's device; wrap it if there are several workers."""
    return ray.train.torch.prepare_model(model)


def _gather(value: Any) -> list[Any]:
    num_workers = ray.train.get_context().get_world_size()
    if num_workers == 1:
        return [value]
    values: list[Any] = [None] * num_workers
    torch.distributed.all_gather_object(values, value)
    return values


def _save(training: Training) -> None:
    """Hand worker 0's checkpoint to Ray Train; every worker must call this."""
    metrics = {"iteration": training.iteration}
    if training.rank == 0:
        with scratch_folder() as folder:
            training.save(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    else:
        ray.train.report(metrics)  # returns before worker 0's checkpoint is complete
    _gather(None)  # wait for worker 0: an error of another worker would now end its saving


def _show_log(training: Training, output: str) -> None:
    write_uri(f"{output}/{LOG_FILE}", to_lines(training.log))
    write_uri(f"{output}/{PLOT_FILE}", plot(training.log))
