"""run.json, the record of a run: written once the plan of the run is complete, and never changed."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipeline.errors import RunError
from pipeline.layout import Output, RunFolder
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.filesystem import put_object


@dataclass(frozen=True)
class PlanFile:
    """One Parquet file of the plan. Row group i holds shard `first_shard + i`."""

    path: str
    first_shard: int
    num_shards: int


@dataclass(frozen=True)
class PlanSummary:
    """A summary of the plan of a run."""

    files: tuple[PlanFile, ...]
    num_images: int
    num_shards: int
    size_bytes: int  # encoded bytes to read


@dataclass(frozen=True)
class ModelRecord:
    """The checkpoint that a run uses."""

    name: str  # as given
    weights_sha256: str
    categories: list[dict[str, Any]]  # by the model's class_id: id, name, isthing


@dataclass(frozen=True)
class RunRecord:
    """The fields of run.json."""

    schema_version: int
    run_id: str
    created: str  # ISO 8601, UTC
    fingerprint: str
    input: str  # the canonical name of --input
    limit: int | None
    mode: str
    tombstone_removed: bool
    settings: dict[str, Any]  # all settings, as given
    results: dict[str, Any]  # the settings that change results, defaults filled in
    model_license: str
    model: ModelRecord
    plan: PlanSummary
    counts: dict[str, int]  # images by reason, including images that are not in the plan: see changes.Changes
    versions: dict[str, str]  # of Python and of the packages that results depend on
    # Device, precision and CPU instructions of the first attempt; report.json has the values of the last attempt. Added
    # without a new schema version: older runs have none.
    computed_on: dict[str, str | None] = field(default_factory=dict)

    def write(self, folder: RunFolder) -> None:
        put_object(folder.filesystem, folder.run_json, json.dumps(asdict(self), indent=1).encode())


def read_run_record(output: Output, folder: RunFolder) -> RunRecord | None:
    """The run in `folder`, or None if there is none. RunError if run.json is damaged or has another schema version."""
    content = output.read_json_or_none(folder.run_json)
    if content is None:
        return None
    if content.get("schema_version") != SCHEMA_VERSION:
        raise RunError(
            f"run {folder.run_id} has tables of schema version {content.get('schema_version')}, but this program reads "
            f"version {SCHEMA_VERSION}"
        )
    try:
        names = {field.name for field in fields(RunRecord)}
        known = {name: value for name, value in content.items() if name in names}  # others come from later programs
        plan = {**known["plan"], "files": tuple(PlanFile(**file) for file in known["plan"]["files"])}
        return RunRecord(**{**known, "model": ModelRecord(**known["model"]), "plan": PlanSummary(**plan)})
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{output.flag} {output.uri}: {folder.run_json} is not a valid run record ({type(error).__name__}: "
            f"{error}); move the folder of the run away"
        ) from None
