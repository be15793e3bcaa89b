"""The settings of a recut, checked: the run that it will be. Nothing is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2f_core.checkpoints.zoo import task_of_name
from m2f_core.config.fields import ConfigError
from m2f_core.config.labels import Category, LabelMap
from m2f_core.families.registry import family_of_type
from m2f_core.inference.settings import SemanticSettings
from pipeline.commit.run_record import RunRecord
from pipeline.config import Settings, fingerprint
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.input_spec import Source as InputSource
from pipeline.recut.settings import RecutSettings
from pipeline.recut.source import Source, find_source
from pipeline.runs.check import Checked, Model
from pipeline.runs.places import usable_output
from pipeline.segment.inference_settings import InferenceSettings, inference_settings, results_of, with_given_stuff
from pipeline.segment.spec import RecutSpec
from pipeline.store.filesystem import full_uri, one_line, whole_path

# Of the runs that kept the logits: settings that say what the images and the logits are.
_OF_THE_SOURCE = (
    "model",
    "preprocess",
    "image_size",
    "exif",
    "scaled_jpeg",
    "max_image_pixels",
    "tile",
    "precision",
    "anonymous",
    "requester_pays",
)
_OF_RESULTS = (
    "score_threshold",
    "overlap_threshold",
    "mask_threshold",
    "label_ids_to_fuse",
    "top_k",
    "classes",
)


def check_recut(given: RecutSettings) -> Checked:
    """The run that applies `given` to kept logits.

    Raises RunError if the tables hold no logits, or not those that these settings need, or if the output is not usable.
    """
    given = replace(given, tables=whole_path(given.tables), output=whole_path(given.output))
    source = find_source(given.tables, given.of_run)
    record = source.record
    model = record.model
    try:
        family = family_of_type(model.model_type)
    except ConfigError as error:
        raise source.output.damaged(f"run.json of run {record.run_id}", one_line(error)) from None
    settings = _settings(given, source)
    if family.reads_task and settings.task != record.results["task"]:
        raise RunError(
            f"--task {settings.task} cannot be recut: the model of run {record.run_id} reads the task, so the logits "
            f"that the run kept are those of --task {record.results['task']}; run jobs/segment_bucket.py with --task "
            f"{settings.task}"
        )
    labels = _labels(given, record)
    trained_for = None if family.reads_task else task_of_name(model.name, labels)
    labels = with_given_stuff(settings, labels)
    inference = inference_settings(settings, labels, trained_for, family.rules)
    _check_floor(settings, inference, source.floor)
    results = {
        **settings.results_dict(),
        "image_size": record.results["image_size"],
        **results_of(inference),
        "recut_of": record.fingerprint,
    }
    if given.labels is not None:
        results["labels"] = labels.to_list()
    place = f"{full_uri(given.tables).rstrip('/')}/logits"
    spec = RecutSpec(given.tables, inference, len(labels.categories), settings.parsed_tile(), given.step_timeout)
    return Checked(
        settings,
        InputSpec((InputSource(place),), format="logits"),
        usable_output(settings),
        Model(model.name, model.model_type, record.model_license, model.weights_sha256, labels, None, inference, ()),
        results,
        fingerprint(results, model.weights_sha256),
        spec,
        source.images,
    )


def _settings(given: RecutSettings, source: Source) -> Settings:
    """The settings of the new run; its inputs are those of the old runs, so that others find the images again."""
    record = source.record
    values = {name: record.settings[name] for name in _OF_THE_SOURCE if name in record.settings}
    inputs = tuple(dict.fromkeys(place for one in source.records for place in one.input))
    task = given.task or record.results["task"]
    postprocess = given.postprocess or record.results["postprocess"]
    values |= {"input": inputs, "task": task, "postprocess": postprocess}
    chosen = given.given(*_OF_RESULTS)
    if (task, postprocess) == (record.results["task"], record.results["postprocess"]):
        old = {name: record.settings.get(name) for name in _OF_RESULTS}
        fused = old["label_ids_to_fuse"]
        old["label_ids_to_fuse"] = None if fused is None else tuple(fused)
        old["classes"] = tuple(old["classes"] or ())
        chosen = {**old, **chosen}
    try:
        return replace(given.of_night(), **values, **chosen)
    except TypeError as error:
        raise source.output.damaged(f"run.json of run {record.run_id}", one_line(error)) from None


def _labels(given: RecutSettings, record: RunRecord) -> LabelMap:
    categories = record.model.categories
    if given.labels is None:
        return LabelMap(
            tuple(Category(n, one["id"], one["name"], bool(one["isthing"])) for n, one in enumerate(categories))
        )
    try:
        entries: Any = json.loads(Path(given.labels).read_bytes())
        names = {str(number): one["name"] for number, one in enumerate(categories)}
        return LabelMap.from_config_dict({"id2label": names, "categories": entries})
    except (OSError, ConfigError, ValueError) as error:
        raise RunError(f"--labels {given.labels}: {one_line(error)}") from None


def _check_floor(settings: Settings, inference: InferenceSettings, floor: float) -> None:
    """RunError if a query that was not kept could become a segment."""
    if isinstance(inference, SemanticSettings) or inference.score_threshold >= floor:
        return
    raise RunError(
        f"--task {settings.task} needs queries from a score of {inference.score_threshold:g} on, but the runs kept "
        f"queries from {floor:g} on; give --score-threshold {floor:g} or more"
    )
