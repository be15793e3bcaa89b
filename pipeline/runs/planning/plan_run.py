"""Write the plan of a run and its record: all at once, or the first part now and the rest while the run works."""

import contextlib
import json
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import fsspec
import pyarrow as pa

from m2f_core import __version__
from pipeline.commit.run_record import NO_PLAN, CategoryRecord, ModelRecord, PlanRecord, PlanSummary, RunRecord
from pipeline.errors import BrokenRunError
from pipeline.guard.kill_points import reached
from pipeline.layout import PLAN_FILE, RunFolder
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.shards import group_into_shards, write_plan
from pipeline.plan.taper import ShardSize
from pipeline.runs.check import Checked
from pipeline.runs.find import identity
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.conditional_writes import create_new
from pipeline.store.filesystem import STORE_ERRORS, put_object
from pipeline.store.removal import remove_objects


def plan_run(
    checked: Checked,
    images: Iterable[pa.Table],
    counts: dict[str, int],
    images_per_shard: int,
    computed_on: dict[str, str | None],
    may_write: Callable[[], None] = lambda: None,
    tapered_for: tuple[int, int] | None = None,
    *,
    is_complete: bool = True,
) -> RunRecord:
    """Write the plan of a new run, then its run.json. Without run.json, an incomplete plan is not a run.

    If the plan is not complete, because the listing goes on, `write_more` and `complete_plan` follow.

    `images` are tables of PLANNED_IMAGES, in the order of the plan.
    `computed_on`: device, precision and CPU instructions of the models, to be stored in run.json. `may_write` is called
    for every shard and raises BrokenRunError if another driver has taken over. `tapered_for`: the number of `images`,
    and the most model actors; the last shards are small then.
    """
    settings, output = checked.settings, checked.output
    now = datetime.now(UTC)
    folder = output.run(settings.run_id or f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    shards = _shards(checked, images, images_per_shard, may_write, tapered_for)
    with output.errors():
        try:
            plan = write_plan(shards, output.filesystem, folder.plan)
            may_write()
        except BaseException:
            # An incomplete plan is not a run, so delete the plan. Delete nothing else: the folder of a named run may
            # hold work of other drivers.
            with contextlib.suppress(BrokenRunError, *STORE_ERRORS):
                may_write()
                _remove_plan_files(folder)
            raise
        if not is_complete:
            _remove_plan_files(folder, behind=plan)  # of a driver that died before it wrote run.json
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
                checked.model.model_type,
            ),
            plan=plan,
            counts=counts,
            versions=_versions(),
            computed_on=computed_on,
            plan_is_complete=is_complete,
        )
        put_object(output.filesystem, output.format_json, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
        record.write(folder)
        reached("run.json written")
    return record


def write_more(
    checked: Checked,
    folder: RunFolder,
    images: Iterable[pa.Table],
    images_per_shard: int,
    plan: GrowingPlan,
    may_write: Callable[[], None],
    tapered_for: tuple[int, int] | None = None,
) -> None:
    """Add shards of `images` to a plan that is not complete. BrokenRunError if another driver adds to it, too.

    `tapered_for`: as in `plan_run`, with the number of `images`.
    """

    def create(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
        may_write()
        if not create_new(filesystem, path, data, folder.has_conditions):
            raise BrokenRunError(f"another driver has written {path}, a plan file of run {folder.run_id}")
        reached("plan extended")

    shards = _shards(checked, images, images_per_shard, may_write, tapered_for)
    with checked.output.errors():
        write_plan(shards, folder.filesystem, folder.plan, before=plan.summary, put=create, tell=plan.grow)


def complete_plan(folder: RunFolder, plan: GrowingPlan, counts: dict[str, int], may_write: Callable[[], None]) -> None:
    """Write plan.json: from now on, no shards follow. BrokenRunError if another driver has done so."""
    with folder.output.errors():
        may_write()
        if not PlanRecord(plan.summary, counts).create(folder):
            raise BrokenRunError(f"another driver has completed the plan of run {folder.run_id}")
    plan.complete(counts)
    reached("plan.json written")


def _shards(
    checked: Checked,
    images: Iterable[pa.Table],
    images_per_shard: int,
    may_write: Callable[[], None],
    tapered_for: tuple[int, int] | None,
) -> Iterator[pa.Table]:
    size = ShardSize(images_per_shard, checked.settings.shard_mib * 2**20, *(tapered_for or ()))
    for shard in group_into_shards(images, size):
        may_write()
        yield shard


def _remove_plan_files(folder: RunFolder, behind: PlanSummary = NO_PLAN) -> None:
    found = folder.output.list_numbered(folder.plan, PLAN_FILE)
    paths = [path for (number,), path in found if number >= len(behind.files)]
    remove_objects(folder.filesystem, folder.plan, paths)


def _versions() -> dict[str, str]:
    # The version of the code that runs, which may come from a working directory rather than from an installed package
    versions = {"python": platform.python_version(), "m2f-pipeline": __version__}
    for name in ("torch", "numpy", "numba", "pillow", "pyarrow", "ray", "deltalake"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
