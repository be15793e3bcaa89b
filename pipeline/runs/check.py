"""Check the settings, the checkpoint, and the places of input and output. Nothing is written or listed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from m2f_core.checkpoints.licenses import model_license
from m2f_core.checkpoints.zoo import guessed_names_warning, trained_task
from m2f_core.config.class_names import label_warnings
from m2f_core.config.labels import LabelMap
from m2f_core.images.image_size import ImageSize
from pipeline.config import Settings, fingerprint
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.sources import input_spec
from pipeline.layout import Output
from pipeline.runs.places import usable_output, with_whole_places
from pipeline.segment.checkpoint import check_once, is_embedded, is_local_path, stage_model
from pipeline.segment.inference_settings import (
    InferenceSettings,
    inference_settings,
    results_of,
    task_warnings,
    with_given_stuff,
)
from pipeline.segment.spec import RecutSpec
from pipeline.store.filesystem import one_line, whole_path


@dataclass(frozen=True)
class Model:
    """The checkpoint as the run uses it: checked, but not loaded."""

    name: str
    model_type: str  # of its family
    license: str  # as the checkpoint's files state it
    weights_sha256: str
    labels: LabelMap
    image_size: ImageSize | None  # from the flag, else from the checkpoint's files; None if no image is resized
    inference: InferenceSettings
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """Settings that passed all checks, with the output and the model that they name."""

    settings: Settings
    inputs: InputSpec
    output: Output
    model: Model
    results: dict[str, Any]  # the settings that change results, defaults filled in
    fingerprint: str
    # Of a run that reduces kept logits again in place of segmenting images: the logits, and the listing of their images
    recut: RecutSpec | None = None
    list_kept: Callable[[], Iterator[pa.Table]] | None = None


def check_model(settings: Settings) -> Model:
    """Open and check the checkpoint of `settings.model`. Raise RunError if a run could not use it.

    The weights are checked by name and shape, but not loaded.
    """
    checkpoint = stage_model(settings.model)
    try:
        check_once(checkpoint)
        labels = checkpoint.labels
        processor = checkpoint.image_processor(settings.preprocess, settings.parsed_image_size(), settings.task)
        identity = checkpoint.sha256
        license_name = model_license(checkpoint, settings.model)
    except (ValueError, OSError) as error:  # CheckpointError and ConfigError are ValueErrors
        raise RunError(f"--model {settings.model}: {one_line(error)}") from None
    family = checkpoint.family
    if settings.precision == "int8" and not family.has_int8:
        raise RunError(f"--precision int8 is not for models of the family {family.name}")
    # A model that reads the task was trained for all.
    trained_for = None if family.reads_task else trained_task(checkpoint, settings.model, labels)
    warnings = [
        *_scenes_warning(settings.model),
        *processor.warnings(),
        *guessed_names_warning(checkpoint),
        *(f"--model {settings.model}: {warning}" for warning in label_warnings(checkpoint.config_dict)),
        *task_warnings(settings, labels, trained_for),
    ]
    labels = with_given_stuff(settings, labels)
    inference = inference_settings(settings, labels, trained_for, family.rules)
    if settings.keep_logits is not None and processor.geometry(1, 1).windows:
        raise RunError(
            f"--keep-logits: for --task {settings.task}, --model {settings.model} sees an image as several windows, "
            "whose logits are not kept; leave the flag out"
        )
    return Model(
        settings.model,
        family.model_types[0],
        license_name,
        identity,
        labels,
        processor.size,
        inference,
        tuple(warnings),
    )


def _scenes_warning(model: str) -> Iterator[str]:
    if is_embedded(model):
        yield f"{model} was trained only on scenes of jobs/make_scenes.py; for photographs give another --model"


def resolved_results(settings: Settings, model: Model) -> dict[str, Any]:
    """The settings that change results, with defaults filled in, so that an explicit default changes nothing."""
    return {**settings.results_dict(), "image_size": str(model.image_size), **results_of(model.inference)}


def check(settings: Settings) -> Checked:
    """Check the settings, quickly and without writing.

    Raise RunError if the checkpoint cannot be used, if the output belongs to another schema version, or if the output
    lies inside the input. Other errors of an input appear only when the input is listed.
    """
    settings = _with_whole_paths(settings)
    output, inputs = usable_output(settings), input_spec(settings)
    model = check_model(settings)
    results = resolved_results(settings, model)
    return Checked(settings, inputs, output, model, results, fingerprint(results, model.weights_sha256))


def _with_whole_paths(settings: Settings) -> Settings:
    """The settings with all local paths made absolute."""
    settings = with_whole_places(settings)
    return replace(settings, model=whole_path(settings.model)) if is_local_path(settings.model) else settings
