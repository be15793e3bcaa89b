"""The contract of a family of models: what a checkpoint of another architecture has to say. See docs/families.md.

Does not import torch: a driver reads configurations and labels, and functions that build a model import it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from re import Pattern
from typing import TYPE_CHECKING, Any

from m2f_core.config.labels import TASKS, Task
from m2f_core.families.rules import Source
from m2f_core.inference.settings import FamilyRules

if TYPE_CHECKING:
    from m2f_core.config.model_config import ModelConfig
    from m2f_core.images.image_processor import ImageProcessor
    from m2f_core.images.image_size import ImageSize
    from m2f_core.model.contract import SegmentationModel


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class WeightNames:
    """How the files of a Hugging Face folder name a model's tensors.

    `sources`: our name -> the possible sources, each with one spelling of the names; the first is the hub's, which
    `save_checkpoint` writes. `ignored`: tensors in files that the model does not compute with. `read_as`: a name in a
    file -> its name in one of the spellings.
    """

    sources: Callable[[str], Sequence[Source]]
    ignored: Pattern[str]
    read_as: Callable[[str], str] = _same


@dataclass(frozen=True)
class OriginalFormat:
    """The `.pkl` files of the family's authors.

    `recognises`: the names of all arrays of a file -> whether the file holds a model of the family. `renamed`: a name
    in a file of older code -> the name in a file of today's. `config`: shapes by today's names -> the configuration,
    ConfigError if they do not belong together. `source`: our name -> the source. `ignored` as in `WeightNames`.
    """

    recognises: Callable[[Sequence[str]], bool]
    renamed: Callable[[str], str]
    config: Callable[[Mapping[str, tuple[int, ...]]], ModelConfig]
    source: Callable[[str], Source]
    ignored: Pattern[str]


def _trains(config: ModelConfig) -> None:
    pass


def any_size(
    config: ModelConfig, preprocessor: Mapping[str, Any] | None, mode: str, image_size: ImageSize | None, task: Task
) -> ImageProcessor:
    """`ImageProcessor`: any size, padded to a multiple of 32."""
    from m2f_core.images.image_processor import ImageProcessor

    return ImageProcessor.from_preprocessor_config(preprocessor, mode, image_size)


@dataclass(frozen=True)
class TrainingParts:
    """How models of the family are trained.

    `initial_model`: the configuration and a seed -> a model to train from scratch, in training mode. `criterion`: the
    configuration -> the loss. `architectures`: published sizes by name, each a function that takes `id2label`.
    `check`: ConfigError if a model with this configuration cannot be trained here.
    """

    initial_model: Callable[[Any, int], SegmentationModel]
    criterion: Callable[[Any], Any]
    architectures: Mapping[str, Callable[..., ModelConfig]]
    check: Callable[[Any], None] = _trains


@dataclass(frozen=True)
class Family:
    """One architecture. `name` is for people; `model_types` are those of config.json.

    `config`: the content of config.json -> the configuration; ConfigError names a field that is wrong.
    `build_model`: the model with PyTorch's own initial weights, in training mode.
    `image_processor`: the configuration, the content of preprocessor_config.json, the mode, the wanted size if there is
    one, and the task -> how images are resized, normalised and padded. ValueError names a field that is wrong.
    `tasks`: those that its models can be asked for.
    `hub_names`: how the names of the checkpoints begin that its authors have published, and the licence of these.
    `rules`: what its post-processing has of its own.
    `image_processor_type`: the class of transformers that reads a preprocessor_config.json of the family.
    `task_in_name`: a regular expression with `{task}`, by which the names of its checkpoints show the task; None if
    they do not. `task_words`: the expressions for a task there, where they are not its name.
    `reads_task`: whether its models read the task that they are asked for. Then one checkpoint serves all `tasks`, and
    its logits are those of one task.
    `has_int8`: its models have `parts_in_8_bits`. `training`: None if its models cannot be trained here.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], ModelConfig]
    build_model: Callable[[Any], SegmentationModel]
    weight_names: WeightNames
    hub_names: tuple[str, ...]
    license: str
    task_in_name: str | None = None
    reads_task: bool = False
    image_processor: Callable[[Any, Mapping[str, Any] | None, str, ImageSize | None, Task], ImageProcessor] = any_size
    original: OriginalFormat | None = None
    tasks: tuple[Task, ...] = TASKS
    task_words: Mapping[Task, str] = field(default_factory=dict)
    rules: FamilyRules = field(default_factory=FamilyRules)
    image_processor_type: str = "Mask2FormerImageProcessor"
    training: TrainingParts | None = None
    has_int8: bool = False
