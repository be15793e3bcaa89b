"""run.json, the record of a run, written once and never changed; and plan.json, if the plan was complete only later."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Interval, Len
from pydantic import AfterValidator, BeforeValidator, FailFast, Strict, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from m2f_core.config.fields import excerpt
from m2f_core.families.registry import FIRST_MODEL_TYPE
from pipeline.commit.receipt import MOST_SHARDS
from pipeline.errors import RunError
from pipeline.input_spec import Access
from pipeline.layout import PLAN_FILE, Output, RunFolder, numbered
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.conditional_writes import create_new
from pipeline.store.filesystem import put_object
from pipeline.store.json_records import STRICT, Count, moment, plain_values

NumShards = Annotated[int, Interval(ge=0, le=MOST_SHARDS)]
PlainValues = Annotated[dict[str, Any], AfterValidator(plain_values)]


@with_config(STRICT)
@dataclass(frozen=True)
class PlanFile:
    """One Parquet file of the plan. Row group i holds shard `first_shard + i`."""

    path: str
    first_shard: NumShards
    num_shards: NumShards


@with_config(STRICT)
@dataclass(frozen=True)
class PlanSummary:
    """A summary of the plan of a run."""

    files: Annotated[tuple[PlanFile, ...], FailFast()]
    num_images: Count
    num_shards: NumShards
    size_bytes: Count  # encoded bytes to read

    def with_file(self, path: str, num_shards: int, num_images: int, size_bytes: int) -> "PlanSummary":
        """This plan and one more file, whose shards follow those of this plan."""
        return PlanSummary(
            (*self.files, PlanFile(path, self.num_shards, num_shards)),
            self.num_images + num_images,
            self.num_shards + num_shards,
            self.size_bytes + size_bytes,
        )


NO_PLAN = PlanSummary((), 0, 0, 0)


@with_config(STRICT)
@dataclass(frozen=True)
class PlanRecord:
    """The fields of plan.json: what run.json could not say yet."""

    plan: PlanSummary
    counts: dict[str, Count]  # as in run.json

    def create(self, folder: RunFolder) -> bool:
        """Write plan.json; False if there is one already."""
        data = json.dumps(asdict(self), indent=1).encode()
        return create_new(folder.filesystem, folder.plan_json, data, folder.has_conditions)


@with_config(STRICT)
class CategoryRecord(TypedDict):
    """A category of the checkpoint's label map."""

    id: Annotated[int, Interval(ge=0, le=2**31 - 1)]
    name: str
    isthing: Annotated[int, Interval(ge=0, le=1)]


@with_config(STRICT)
@dataclass(frozen=True)
class ModelRecord:
    """The checkpoint that a run uses."""

    name: str  # as given
    weights_sha256: str
    categories: list[CategoryRecord]  # by the model's class_id
    # The architecture, as in config.json. Added without a new schema version: in older runs all were of this one.
    model_type: str = FIRST_MODEL_TYPE


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@with_config(STRICT)
@dataclass(frozen=True)
class RunRecord:
    """The fields of run.json."""

    schema_version: int
    run_id: str
    created: Annotated[str, AfterValidator(moment("microseconds"))]  # ISO 8601, UTC
    fingerprint: str
    # The canonical name of each --input. Runs of older programs had one, as a text.
    input: Annotated[tuple[Annotated[str, Len(1)], ...], Strict(False), Len(1), FailFast(), BeforeValidator(_several)]
    limit: Annotated[int, Interval(ge=1, le=2**62)] | None
    mode: str
    tombstone_removed: bool
    settings: PlainValues  # all settings, as given
    results: PlainValues  # the settings that change results, defaults filled in
    model_license: str
    model: ModelRecord
    plan: PlanSummary  # if the plan is not complete: as far as it goes
    counts: dict[str, Count]  # images by reason, including images that are not in the plan: see changes.Changes
    versions: dict[str, str]  # of Python and of the packages that results depend on
    # Device, precision and CPU instructions of the first attempt; report.json has the values of the last attempt. Added
    # without a new schema version: older runs have none.
    computed_on: dict[str, str | None] = field(default_factory=dict)
    # The settings that say which objects of the inputs are images, as far as they are not defaults; added likewise.
    selection: PlainValues = field(default_factory=dict)
    # False: the first shards were planned while the input was still being listed; plan.json says when all are. Added
    # likewise.
    plan_is_complete: bool = True

    @property
    def access(self) -> Access:
        """How requests to the inputs are signed and paid."""
        return Access(self.settings.get("anonymous") is True, self.settings.get("requester_pays") is True)

    def write(self, folder: RunFolder) -> None:
        put_object(folder.filesystem, folder.run_json, json.dumps(asdict(self), indent=1).encode())


@with_config(STRICT)
class Versioned(TypedDict):
    """What run.json and format.json have in common in every version of the program."""

    schema_version: Annotated[int, Interval(ge=1, le=10**6)]


VERSIONED, _RECORD, _PLAN = TypeAdapter(Versioned), TypeAdapter(RunRecord), TypeAdapter(PlanRecord)


def read_run_record(output: Output, folder: RunFolder) -> RunRecord | None:
    """The run in `folder`, or None if there is none.

    The record has what plan.json adds. RunError if run.json is not a record of this run and this schema version, or if
    its plan does not lie in `folder`.
    """
    data = output.read_or_none(folder.run_json)
    if data is None:
        return None
    version = output.parse(VERSIONED, data, folder.run_json)
    if version["schema_version"] != SCHEMA_VERSION:
        raise RunError(
            f"run {folder.run_id} has tables of schema version {version['schema_version']}, but this program reads "
            f"version {SCHEMA_VERSION}"
        )
    record = output.parse(_RECORD, data, folder.run_json)
    try:
        if record.run_id != folder.run_id:
            raise ValueError(f"run_id is {excerpt(record.run_id)}; it must be the name of its folder")
        if not isinstance(record.results.get("task"), str):
            raise ValueError(f"results.task is {excerpt(record.results.get('task'))}; it must be a text")
        record = replace(record, plan=_plan_in(folder, record.plan))
    except ValueError as error:
        raise output.damaged(folder.run_json, f"{error}; move the folder of the run away") from None
    later = None if record.plan_is_complete else read_plan_record(output, folder)
    return record if later is None else replace(record, plan=later.plan, counts=later.counts, plan_is_complete=True)


def read_plan_record(output: Output, folder: RunFolder) -> PlanRecord | None:
    """plan.json of the run in `folder`, or None if there is none. RunError if it is no record of a plan there."""
    record = output.read_record(_PLAN, folder.plan_json)
    try:
        return None if record is None else replace(record, plan=_plan_in(folder, record.plan))
    except ValueError as error:
        raise output.damaged(folder.plan_json, f"{error}; move the folder of the run away") from None


def _plan_in(folder: RunFolder, plan: PlanSummary) -> PlanSummary:
    """The plan with its files in `folder`, wherever the output lay when the plan was written.

    ValueError if the files are not those of a plan, or do not hold each shard once.
    """
    files, num_shards = [], 0
    for number, file in enumerate(plan.files):
        name = numbered(PLAN_FILE, number)
        if file.path.rpartition("/")[2] != name:
            raise ValueError(f"plan.files[{number}].path is {excerpt(file.path)}; it must end in {name}")
        if file.first_shard != num_shards or file.num_shards < 1:
            raise ValueError(
                f"plan.files[{number}] begins with shard {file.first_shard} and has {file.num_shards}; it must begin "
                f"with shard {num_shards}"
            )
        num_shards += file.num_shards
        files.append(replace(file, path=f"{folder.plan}/{name}"))
    if num_shards != plan.num_shards:
        raise ValueError(f"plan.num_shards is {plan.num_shards}, but the files of the plan hold {num_shards}")
    if plan.num_images < plan.num_shards:
        raise ValueError(f"plan.num_images is {plan.num_images}, fewer than its {plan.num_shards} shards")
    return replace(plan, files=tuple(files))
