"""The model that a training starts from, and the files of a trained model."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from m2f_core.checkpoints.checkpoint import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    Checkpoint,
    save_checkpoint,
)
from m2f_core.checkpoints.licenses import model_license
from m2f_core.checkpoints.zoo import guessed_names_warning
from m2f_core.config.class_names import label_warnings
from m2f_core.config.labels import LabelMap, name_keys
from m2f_core.config.model_config import ModelConfig
from m2f_core.families.registry import architectures, family_of, read_config, training_of
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.model.contract import SegmentationModel
from m2f_core.training.initial_weights import new_class_predictor, reorder_class_predictor
from pipeline.errors import RunError
from pipeline.segment.checkpoint import stage_model
from pipeline.store.filesystem import one_line
from pipeline.store.json_records import parse_json_object
from pipeline.store.objects import read_uri
from pipeline.train.settings import FinetuneSettings


def check_start(settings: FinetuneSettings) -> ImageProcessor:
    """Check --model or --architecture without building the model. RunError if it is wrong; returns the preprocessor."""
    size, task = settings.parsed_image_size(), settings.task()
    try:
        if settings.model is None:
            config = _architecture(settings, LabelMap(()))
            training_of(config)
            processor = family_of(config.to_dict()).image_processor(config, None, "reference", size, task)
        else:
            checkpoint = stage_model(settings.model)
            checkpoint.check()
            training_of(checkpoint.config)
            _points(settings, checkpoint.config)
            processor = checkpoint.image_processor("reference", size, task)
    except (ValueError, OSError) as error:  # CheckpointError and ConfigError are ValueErrors
        raise RunError(f"{_source(settings)}: {one_line(error)}") from None
    try:
        processor.check_crop(settings.crop_hw())
    except ValueError as error:
        raise RunError(f"--crop-size: {one_line(error)}") from None
    return processor


def number_of_queries(settings: FinetuneSettings) -> int:
    """Of the starting model, which `check_start` has checked."""
    if settings.model is None:
        return _architecture(settings, LabelMap(())).num_queries
    return stage_model(settings.model).config.num_queries


def start_warnings(settings: FinetuneSettings) -> list[str]:
    """Warnings about the starting model. Raises RunError as `check_start` does."""
    warnings = check_start(settings).warnings()
    if settings.model is not None:
        checkpoint = stage_model(settings.model)
        _labels_of_start(checkpoint, settings)
        warnings += guessed_names_warning(checkpoint)
        warnings += (f"{_source(settings)}: {warning}" for warning in label_warnings(checkpoint.config_dict))
    return warnings


def starting_model(settings: FinetuneSettings, labels: LabelMap) -> tuple[SegmentationModel, bool]:
    """A model for the classes of `labels`, in training mode, and whether its class head is new."""
    if settings.model is None:
        config = _architecture(settings, labels)
        return training_of(config).initial_model(config, settings.seed), True
    checkpoint = stage_model(settings.model)
    model = checkpoint.load()
    class_ids = _class_ids_by_name(_labels_of_start(checkpoint, settings), labels)
    model.config = replace(model.config, id2label=_names(labels), **_points(settings, model.config))
    model.criterion = training_of(model.config).criterion(model.config)
    if class_ids is None:
        new_class_predictor(model, len(labels.categories), settings.seed)
    else:
        reorder_class_predictor(model, class_ids)
    return model.train(), class_ids is None


def license_of_start(model: str | None) -> str | None:
    """The licence that the files of --model state; the trained model has the same licence. None without --model."""
    return None if model is None else model_license(stage_model(model), model)


def save_model(
    model: SegmentationModel, folder: Path, labels: LabelMap, processor: ImageProcessor, license_name: str | None
) -> None:
    """Write a Hugging Face folder: config.json with the data set's categories, weights, preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"image_processor_type": family_of(model.config.to_dict()).image_processor_type}
    config = json.dumps(processor.to_preprocessor_config() | kind, indent=2)
    (folder / PREPROCESSOR_FILE).write_text(config + "\n", encoding="utf-8")
    save_checkpoint(model, folder, labels, license_name)


def _architecture(settings: FinetuneSettings, labels: LabelMap) -> ModelConfig:
    """The configuration of --architecture with the classes of `labels`. ConfigError, or RunError if it is unknown."""
    assert settings.architecture is not None
    names = _names(labels) or {0: "any"}
    if settings.architecture in (known := architectures()):
        config = known[settings.architecture](id2label=names)
        return replace(config, **_points(settings, config))
    if not settings.architecture.endswith(".json"):
        raise RunError(
            f"--architecture {settings.architecture} is neither one of {', '.join(known)} nor the path of "
            f"a {CONFIG_FILE}"
        )
    flag = "--architecture"
    content = parse_json_object(read_uri(settings.architecture, flag), settings.architecture, flag)
    config = read_config(content)
    return replace(config, id2label=names, **_points(settings, config))


def _labels_of_start(checkpoint: Checkpoint, settings: FinetuneSettings) -> LabelMap:
    try:
        return checkpoint.labels
    except ValueError as error:  # from `categories`, which building the model does not read
        raise RunError(f"{_source(settings)}: {one_line(error)}") from None


def _class_ids_by_name(of_model: LabelMap, labels: LabelMap) -> list[int] | None:
    """For each class of `labels`, the checkpoint's class id of the same name and kind; None if the classes differ.

    The order may differ: published models of ADE20K and Mapillary mix things and stuff, a training never does. The
    spelling may differ too: ADE20K's own files have "road, route" and "tub", published models "road" and "bathtub".
    """
    as_they_are: Callable[[str], str] = str
    for key in (as_they_are, *name_keys()):
        (names_found, found), (names_wanted, wanted) = _by_name(of_model, key), _by_name(labels, key)
        # "person, adult" and "person, child" have the same key; only the whole names tell them apart.
        tells_apart = key is as_they_are or len(set(names_wanted)) == len(names_wanted)
        if names_found == names_wanted and tells_apart:
            class_ids = dict(zip(wanted, found, strict=True))
            return [class_ids[category.class_id] for category in labels.categories]
    return None


def _by_name(labels: LabelMap, key: Callable[[str], str]) -> tuple[list[tuple[str, bool]], list[int]]:
    """Sorted (key, kind) of the classes, and their class ids in the same order."""
    categories = sorted(labels.categories, key=lambda c: (key(c.name), c.isthing, c.name))
    return [(key(c.name), c.isthing) for c in categories], [c.class_id for c in categories]


def _points(settings: FinetuneSettings, config: ModelConfig) -> dict[str, Any]:
    """The fields of the model's configuration that flags replace: they say how masks are sampled.

    RunError if the family's loss samples no points.
    """
    flags = {name: getattr(settings, name) for name in ("train_num_points", "importance_sample_ratio")}
    given = {name: value for name, value in flags.items() if value is not None}
    known = {field.name for field in fields(config)}
    for name in (name for name in given if name not in known):
        raise RunError(
            f"--{name.replace('_', '-')}: the loss of a {family_of(config.to_dict()).name} compares masks at every "
            "pixel; leave this flag out"
        )
    return given


def _names(labels: LabelMap) -> dict[int, str]:
    return {category.class_id: category.name for category in labels.categories}


def _source(settings: FinetuneSettings) -> str:
    return f"--model {settings.model}" if settings.model is not None else f"--architecture {settings.architecture}"
