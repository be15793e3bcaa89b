"""Plan a run, and begin an attempt at a run."""

import contextlib
import json
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar, cast

import pyarrow as pa

from m2f_core import __version__
from pipeline.commit.journal import Journal
from pipeline.commit.run_record import CategoryRecord, ModelRecord, PlanSummary, RunRecord
from pipeline.config import Settings
from pipeline.errors import BrokenRunError
from pipeline.guard.kill_points import reached
from pipeline.input_spec import InputSpec
from pipeline.layout import PLAN_FILE, Output, RunFolder
from pipeline.plan.shards import group_into_shards, write_plan
from pipeline.plan.taper import ShardSize
from pipeline.runs.check import Checked, Model
from pipeline.runs.find import identity
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.filesystem import STORE_ERRORS, put_object
from pipeline.store.removal import remove_objects

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A planned run with the journal of one attempt at the run."""

    run_id: str
    created: datetime
    settings: Settings
    inputs: InputSpec
    output: Output
    model: Model
    fingerprint: str
    plan: PlanSummary
    counts: dict[str, int]  # images by reason, including images that are not in the plan: see changes.Changes
    journal: Journal

    @property
    def failure_budget(self) -> float:
        """How many images may fail before the run stops or ends with exit code 1."""
        by_rate = self.settings.max_failure_rate * self.plan.num_images
        return by_rate if self.settings.max_failures is None else min(by_rate, self.settings.max_failures)

    @property
    def deadline(self) -> float | None:
        """When the run has to be done, in seconds since the epoch; None without --deadline-hours."""
        hours = self.settings.deadline_hours
        return None if hours is None else self.created.timestamp() + 3600 * hours

    @property
    def folder(self) -> RunFolder:
        return self.journal.folder


def plan_run(
    checked: Checked,
    images: Iterable[pa.Table],
    counts: dict[str, int],
    images_per_shard: int,
    computed_on: dict[str, str | None],
    may_write: Callable[[], None] = lambda: None,
    tapered_for: tuple[int, int] | None = None,
) -> RunRecord:
    """Write the plan of a new run, then its run.json. Without run.json, an incomplete plan is not a run.

    `images` are tables of PLANNED_IMAGES, in the order of the plan.
    `computed_on`: device, precision and CPU instructions of the models, to be stored in run.json. `may_write` is called
    for every shard and raises BrokenRunError if another driver has taken over. `tapered_for`: images of the plan, and
    the most model actors; the last shards are small then.
    """
    settings, output = checked.settings, checked.output
    now = datetime.now(UTC)
    folder = output.run(settings.run_id or f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    size = ShardSize(images_per_shard, settings.shard_mib * 2**20, *(tapered_for or ()))
    shards = group_into_shards(images, size)
    with output.errors():
        try:
            plan = write_plan(_while(may_write, shards), output.filesystem, folder.plan)
            may_write()
        except BaseException:
            # An incomplete plan is not a run, so delete the plan. Delete nothing else: the folder of a named run may
            # hold work of other drivers.
            with contextlib.suppress(BrokenRunError, *STORE_ERRORS):
                may_write()
                plan_files = [path for _, path in output.list_numbered(folder.plan, PLAN_FILE)]
                remove_objects(output.filesystem, folder.plan, plan_files)
            raise
        reached("plan written")
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id=folder.run_id,
            created=now.isoformat(timespec="microseconds"),
            **identity(checked),
            settings=settings.to_dict(),
            results=checked.results,
            model_license=checked.model.license,
            model=ModelRecord(
                checked.model.name,
                checked.model.weights_sha256,
                cast(list[CategoryRecord], checked.model.labels.to_list()),
            ),
            plan=plan,
            counts=counts,
            versions=_versions(),
            computed_on=computed_on,
        )
        put_object(output.filesystem, output.format_json, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
        record.write(folder)
        reached("run.json written")
    return record


def take_up(checked: Checked, record: RunRecord) -> Run:
    """Begin an attempt at the run. From now on, earlier drivers cannot add to the journal of the run."""
    with checked.output.errors():
        folder = checked.output.run(record.run_id)
        for _ in Journal(folder).read(record.plan.num_shards):
            pass  # a damaged journal is refused before this driver writes anything
        journal = Journal.start_attempt(folder)
    return Run(
        run_id=record.run_id,
        created=datetime.fromisoformat(record.created),
        settings=checked.settings,
        inputs=checked.inputs,
        output=checked.output,
        model=checked.model,
        fingerprint=record.fingerprint,
        plan=record.plan,
        counts=record.counts,
        journal=journal,
    )


def _while(may_write: Callable[[], None], shards: Iterable[T]) -> Iterator[T]:
    for shard in shards:
        may_write()
        yield shard


def _versions() -> dict[str, str]:
    # The version of the code that runs, which may come from a working directory rather than from an installed package
    versions = {"python": platform.python_version(), "m2f-pipeline": __version__}
    for name in ("torch", "numpy", "numba", "pillow", "pyarrow", "ray", "deltalake"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
