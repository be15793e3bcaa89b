"""One worker's part of a training: the model, the optimizer, a step, and the files from which another worker continues.

This module knows nothing of Ray. If several workers share the batches, torch.distributed is set up and the model is
wrapped.
"""

import json
import math
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from pydantic import TypeAdapter, with_config
from torch import nn
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from m2f_core.config.labels import LabelMap
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.losses.loss import is_distributed
from m2f_core.model.contract import SegmentationModel
from m2f_core.training.optimization import LearningRate, parameter_groups
from m2f_core.training.recompute import recompute_activations
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line
from pipeline.store.json_records import STRICT, parse_record
from pipeline.train.data import Batch
from pipeline.train.log import LOG_FILE, Row, from_lines, to_lines
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import license_of_start, save_model

_OPTIMIZER_FILE = "optimizer.pt"
_PLACE_FILE = "training.json"


@with_config(STRICT)
class _Place(TypedDict):
    """The content of training.json."""

    iteration: Annotated[int, Interval(ge=0, le=2**53)]


_PLACE = TypeAdapter(_Place)


@dataclass
class LossMeter:
    """Means of the losses since the last row of the log; they are read from the device only for a row.

    With several workers of torch.distributed, means are over all their shares of the batch, and every worker must call
    `row`.
    """

    started: float = field(default_factory=time.monotonic)
    paused: float = 0.0  # seconds
    steps: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, loss: torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        """`loss` is the total; of the single terms, only those of the last prediction are logged."""
        self.steps += 1
        last = {name: value for name, value in losses.items() if not name[-1].isdigit()}
        for name, value in {"loss": loss, **last}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def row(self) -> Row:
        """The means since the last row; then start again from zero."""
        seconds = time.monotonic() - self.started - self.paused
        sums = torch.stack(list(self.sums.values()))
        if is_distributed():
            torch.distributed.all_reduce(sums)
            sums /= torch.distributed.get_world_size()
        row = {name: round(value / self.steps, 6) for name, value in zip(self.sums, sums.tolist(), strict=True)}
        row["iterations_per_second"] = round(self.steps / seconds, 3)
        self.started, self.paused, self.steps, self.sums = time.monotonic(), 0.0, 0, {}
        return row

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time meanwhile (validation, saving) as part of a step."""
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began


class Training:
    """`wrapped` is `model`, or a wrapper that averages the gradients over the workers."""

    def __init__(
        self,
        model: SegmentationModel,
        wrapped: nn.Module,
        settings: FinetuneSettings,
        labels: LabelMap,
        processor: ImageProcessor,
        rank: int = 0,
    ) -> None:
        self.model = model
        self.wrapped = wrapped
        self.settings = settings
        self.labels = labels
        self.processor = processor
        self.rank = rank
        self.license_name = license_of_start(settings.model)
        self.device = next(model.parameters()).device
        if settings.recompute_activations:
            recompute_activations(model)
        groups = parameter_groups(model, settings.learning_rate, settings.weight_decay, settings.backbone_multiplier)
        self.optimizer = torch.optim.AdamW(groups)
        self.base_rates = [group["lr"] for group in groups]
        self.course = LearningRate(settings.schedule, settings.iterations, settings.warmup_iterations)
        self.iteration = 0
        self._tell_progress()
        self.log: list[Row] = []
        self.meter = LossMeter()

    def step(self, batch: Batch) -> None:
        """One optimizer step. RunError if the gradient is not finite, because all later weights would not be finite."""
        # Seed every step anew, so that a resumed training draws the same numbers as an uninterrupted one.
        torch.manual_seed(_mix(self.settings.seed, self.iteration, self.rank))
        height, width = batch.pixels_Bhw3.shape[1:3]
        pixels_B3HW = self.processor.to_batch(list(batch.pixels_Bhw3), (height, width), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            output = self.wrapped(
                pixels_B3HW,
                mask_labels=[masks.to(self.device) for masks in batch.mask_labels],
                class_labels=[classes.to(self.device) for classes in batch.class_labels],
            )
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        if not math.isfinite(norm.item()):
            raise RunError(
                f"the gradient of step {self.iteration + 1} is not finite (loss {output.loss.item()}): train again "
                "in a new --output with a lower --learning-rate or with --precision fp32"
            )
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * self.course.factor(self.iteration)
        self.optimizer.step()
        self.iteration += 1
        self._tell_progress()
        self.meter.add(output.loss, output.losses)

    def add_log_row(self) -> Row:
        """Add a row with the means of the steps since the last row."""
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        row = {"iteration": self.iteration, **self.meter.row(), "learning_rate": rate}
        self.log.append(row)
        return row

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder, and beside it the files that `resume` needs."""
        save_model(self.model, folder, self.labels, self.processor, self.license_name)
        torch.save(self.optimizer.state_dict(), folder / _OPTIMIZER_FILE)
        (folder / LOG_FILE).write_bytes(to_lines(self.log))
        (folder / _PLACE_FILE).write_text(json.dumps({"iteration": self.iteration}))

    def resume(self, folder: Path) -> None:
        """Restore everything but the model's weights, which the caller loads from `folder` as from any checkpoint.

        RunError if a file of the checkpoint is damaged, or not of this training.
        """
        name = _OPTIMIZER_FILE
        try:
            self.optimizer.load_state_dict(read_optimizer_state(folder / name))
            name = _PLACE_FILE
            self.iteration = parse_record(_PLACE, (folder / name).read_bytes())["iteration"]
            if self.iteration > self.settings.iterations:
                raise ValueError(f"iteration is {self.iteration}, but the training has {self.settings.iterations}")
            name = LOG_FILE
            self.log = from_lines((folder / name).read_bytes())
        except Exception as error:  # PyTorch raises errors of many types for a damaged file
            raise RunError(f"the checkpoint {folder.name} cannot be continued, {name}: {one_line(error)}") from error
        self.meter = LossMeter()
        self._tell_progress()

    def _tell_progress(self) -> None:
        self.model.set_progress(self.iteration / self.settings.iterations)


def read_optimizer_state(file: Path) -> Any:
    """The state that `Training.save` wrote. Raises errors of many types if the file is another one.

    PyTorch writes an archive without compression; in another, a few bytes could stand for gigabytes.
    """
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which PyTorch never does")
    return torch.load(file, map_location="cpu", weights_only=True)


def _mix(*numbers: int) -> int:
    """Make one seed of several numbers."""

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def training_files() -> tuple[str, ...]:
    """Names of a checkpoint's files that do not belong to the model."""
    return (_OPTIMIZER_FILE, _PLACE_FILE, LOG_FILE)
