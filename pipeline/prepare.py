"""Settings -> a run that can start: everything is checked before anything is written, then planned or taken up again.

A run lives in `<output>/_runs/<run_id>/`:

    run.json    identity: settings, fingerprint, plan files; written once the plan is complete
    plan/       the images, by shard
    journal/    receipts of done shards
    attempts/   one object per driver that worked on the run
    report.json the books; a run that has one is finished
"""

import contextlib
import itertools
import json
import os
import platform
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fsspec

from m2f_core.checkpoint import check_checkpoint, find_pickle, read_config, read_preprocessor_config, weights_sha256
from m2f_core.image_processor import ImageProcessor
from m2f_core.labels import LabelMap
from m2f_core.licenses import model_license
from m2f_core.zoo import trained_task, zoo_task
from pipeline.config import Settings, fingerprint
from pipeline.errors import RunError
from pipeline.inference_settings import (
    InferenceSettings,
    inference_settings,
    results_of,
    task_warnings,
    with_given_stuff,
)
from pipeline.journal import Journal
from pipeline.plan import PlanFile, PlanSummary, group_into_shards, list_images, write_plan
from pipeline.schema import SCHEMA_VERSION, TABLES
from pipeline.storage import STORE_ERRORS, is_local, list_folder, one_line, open_filesystem, put_object, uri_of
from pipeline.weights import is_embedded, is_local_path, stage_model


@dataclass(frozen=True)
class Model:
    """A checkpoint as the run uses it; checked, not loaded."""

    name: str
    license: str  # as its files state it
    weights_sha256: str
    labels: LabelMap
    inference: InferenceSettings
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """Settings with nothing wrong in them, and the run of theirs that is to be taken up, if there is one."""

    settings: Settings
    model: Model
    results: dict[str, Any]  # the settings that change results, defaults filled in
    identity: dict[str, Any]  # what two runs must have in common to be one
    found: dict[str, Any] | None  # run.json


@dataclass(frozen=True)
class Run:
    """A planned run. `attempt` counts the drivers that have worked on it, this one included."""

    run_id: str
    settings: Settings
    model: Model
    fingerprint: str
    plan: PlanSummary
    attempt: int

    @cached_property
    def journal(self) -> Journal:
        filesystem, root = open_filesystem(self.settings.output)
        return Journal(filesystem, f"{root}/_runs/{self.run_id}/journal", self.attempt)

    def read_object(self, name: str) -> dict[str, Any] | None:
        """An object of the run's folder as JSON, or None where there is none."""
        filesystem, root = open_filesystem(self.settings.output)
        return _read_json(filesystem, f"{root}/_runs/{self.run_id}/{name}")

    def put_object(self, name: str, content: dict[str, Any]) -> None:
        filesystem, root = open_filesystem(self.settings.output)
        put_object(filesystem, f"{root}/_runs/{self.run_id}/{name}", json.dumps(content, indent=1).encode())


def check_model(settings: Settings) -> Model:
    """The checkpoint of `settings.model` with everything that can be wrong with it found out.

    Raises RunError. The weights are matched by name and shape, not loaded.
    """
    path = stage_model(settings.model)
    try:
        check_checkpoint(path)
        labels = LabelMap.from_config_dict(read_config(path))
        processor = ImageProcessor.from_preprocessor_config(
            read_preprocessor_config(path), settings.preprocess, settings.parsed_image_size()
        )
        identity = weights_sha256(path)
        license_name = model_license(path, settings.model)
        pickled = find_pickle(path)
    except (ValueError, OSError) as error:  # CheckpointError and ConfigError are ValueErrors
        raise RunError(f"--model {settings.model}: {one_line(error)}") from None
    trained_for = trained_task(path, settings.model, labels)
    warnings = [
        *_scenes_warning(settings.model),
        *processor.warnings(),
        *_names_warning(pickled, labels),
        *task_warnings(settings, labels, trained_for),
    ]
    labels = with_given_stuff(settings, labels)
    inference = inference_settings(settings, labels, trained_for)
    return Model(settings.model, license_name, identity, labels, inference, tuple(warnings))


def _scenes_warning(model: str) -> Iterator[str]:
    if is_embedded(model):
        yield f"{model} knows the scenes that jobs/make_scenes.py draws, nothing else; give --model for photographs"


def _names_warning(pickled: Path | None, labels: LabelMap) -> Iterator[str]:
    if pickled is not None and labels.known and zoo_task(pickled) is None:
        yield (
            f"{pickled.name} holds no names of classes: its {len(labels.categories)} are taken to be "
            f"{labels.categories[0].name}, {labels.categories[1].name}, ..., {labels.categories[-1].name}, because a "
            "dataset has as many"
        )


def resolved_results(settings: Settings, model: Model) -> dict[str, Any]:
    """The settings that change results with their defaults filled in, so that a spelled-out default is no change."""
    return {**settings.results_dict(), **results_of(model.inference)}


def check(settings: Settings) -> Checked:
    """Find out, quickly and without writing, all that is wrong with the settings.

    Raises RunError where the checkpoint cannot be used; where the output belongs to another schema version or lies
    inside the input; where the input is missing, may not be listed or is empty; where --run-id names another run.
    """
    settings = _with_whole_paths(settings)
    _check_places(settings)
    model = check_model(settings)
    results = resolved_results(settings, model)
    mark = fingerprint(results, model.weights_sha256)
    identity = {"fingerprint": mark, "input": _canonical(settings.input), "limit": settings.limit}
    filesystem, root = open_filesystem(settings.output)
    with _output_errors(settings):
        _check_schema_version(filesystem, root)
        found = _find_run(filesystem, root, settings.run_id, identity, results)
    if found is None and next(list_images(settings.input), None) is None:
        raise RunError(f"--input {settings.input} holds no objects")
    return Checked(settings, model, results, identity, found)


def prepare(checked: Checked, images_per_shard: int) -> Run:
    """Take up the run that was found, or plan a new one.

    Raises RunError where the output cannot be written; a plan that breaks off on the way is no run.
    """
    filesystem, root = open_filesystem(checked.settings.output)
    with _output_errors(checked.settings):
        content = checked.found or _plan_run(filesystem, root, checked, images_per_shard)
        attempt = 1 + len(list_folder(filesystem, f"{root}/_runs/{content['run_id']}/attempts"))
    plan = {**content["plan"], "files": tuple(PlanFile(**file) for file in content["plan"]["files"])}
    return Run(content["run_id"], checked.settings, checked.model, content["fingerprint"], PlanSummary(**plan), attempt)


@contextlib.contextmanager
def _output_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise RunError(f"--output {settings.output} may not be used: {one_line(error)}") from None
    except STORE_ERRORS as error:
        raise RunError(f"--output {settings.output} cannot be used: {one_line(error)}") from None


def _with_whole_paths(settings: Settings) -> Settings:
    """Local paths made absolute, once: actors have working directories of their own."""

    def whole(given: str) -> str:
        filesystem, path = open_filesystem(given)
        return path if is_local(filesystem) else given

    return replace(
        settings,
        input=whole(settings.input),
        output=whole(settings.output),
        model=whole(settings.model) if is_local_path(settings.model) else settings.model,
    )


def _check_places(settings: Settings) -> None:
    source, target = _canonical(settings.input), _canonical(settings.output)
    for written in (target, *(f"{target}/{name}" for name in (*TABLES, "_runs"))):
        if f"{written}/".startswith(f"{source}/"):
            raise RunError(
                f"--output {settings.output} has {written} inside --input: the next run would take it for images"
            )
    filesystem, root = open_filesystem(settings.output)
    if is_local(filesystem) and filesystem.isfile(root):
        raise RunError(f"--output {settings.output} is a file; name a folder")


def _canonical(uri: str) -> str:
    filesystem, path = open_filesystem(uri)
    return uri_of(filesystem, os.path.realpath(path) if is_local(filesystem) else path).rstrip("/")


def _check_schema_version(filesystem: fsspec.AbstractFileSystem, root: str) -> None:
    format_json = _read_json(filesystem, f"{root}/_runs/format.json")
    if format_json is not None and format_json.get("schema_version") != SCHEMA_VERSION:
        raise RunError(
            f"--output holds tables of schema version {format_json.get('schema_version')}, this program writes "
            f"version {SCHEMA_VERSION}; choose another --output"
        )


def _find_run(
    filesystem: fsspec.AbstractFileSystem,
    root: str,
    run_id: str | None,
    identity: dict[str, Any],
    results: dict[str, Any],
) -> dict[str, Any] | None:
    """run.json of the run to go on with: the named one, or the newest unfinished one of the same identity."""
    if run_id is not None:
        found = _read_json(filesystem, f"{root}/_runs/{run_id}/run.json")
        if found is not None and any(found[key] != value for key, value in identity.items()):
            there, here = {**found["results"], **found}, {**results, **identity}
            del here["fingerprint"]  # says that something differs, not what
            different = [f"{k} ({there.get(k)!r} there, {v!r} here)" for k, v in here.items() if there.get(k) != v]
            raise RunError(f"--run-id {run_id} exists with other settings: {', '.join(different) or 'other weights'}")
        return found
    unfinished = []
    for folder in list_folder(filesystem, f"{root}/_runs"):
        if not filesystem.exists(f"{folder}/report.json"):  # first, because run.json is large and nights are many
            found = _read_json(filesystem, f"{folder}/run.json")
            if found is not None and all(found[key] == value for key, value in identity.items()):
                unfinished.append(found)
    return max(unfinished, key=lambda found: (found["created"], found["run_id"]), default=None)


def _plan_run(
    filesystem: fsspec.AbstractFileSystem, root: str, checked: Checked, images_per_shard: int
) -> dict[str, Any]:
    settings, model = checked.settings, checked.model
    images = itertools.islice(list_images(settings.input), settings.limit)
    now = datetime.now(timezone.utc)
    run_id = settings.run_id or f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    shards = group_into_shards(images, max_images=images_per_shard, max_bytes=settings.shard_mib * 2**20)
    folder = f"{root}/_runs/{run_id}/plan"
    try:
        plan = write_plan(shards, filesystem, folder)
    except BaseException:
        # Half a plan is no run; nothing of it stays. No more than that: a named run's folder may hold others' work.
        with contextlib.suppress(*STORE_ERRORS):
            filesystem.rm(folder, recursive=True)
        raise
    run_json = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "created": now.isoformat(timespec="seconds"),
        **checked.identity,
        "settings": settings.to_dict(),
        "results": checked.results,
        "model_license": model.license,
        "model": {"name": model.name, "weights_sha256": model.weights_sha256, "categories": model.labels.to_list()},
        "plan": asdict(plan),
        "versions": _versions(),
    }
    put_object(filesystem, f"{root}/_runs/format.json", json.dumps({"schema_version": SCHEMA_VERSION}).encode())
    put_object(filesystem, f"{root}/_runs/{run_id}/run.json", json.dumps(run_json, indent=1).encode())
    return run_json


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("m2f-pipeline", "torch", "numpy", "numba", "pillow", "pyarrow", "ray"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # m2f-pipeline itself, where a job runs from a working directory
            versions[name] = "not installed"
    return versions


def _read_json(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"--output holds a damaged {path}: {one_line(error)}") from None
    return content
