"""A run planned, and an attempt at it begun."""

import contextlib
import json
import logging
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from pipeline.commit.journal import Journal
from pipeline.config import Settings
from pipeline.errors import BrokenRunError
from pipeline.guard.kill_points import reached
from pipeline.plan.shards import PlanFile, PlannedImage, PlanSummary, group_into_shards, write_plan
from pipeline.runs.check import Checked, Model, output_errors
from pipeline.runs.find import RunJson, identity
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.filesystem import STORE_ERRORS, open_filesystem, put_object

logger = logging.getLogger(__name__)


T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A planned run with the journal of one attempt at it."""

    run_id: str
    created: datetime
    settings: Settings
    model: Model
    fingerprint: str
    plan: PlanSummary
    counts: dict[str, int]  # images by reason, also of those that are not in the plan: see changes.Changes
    journal: Journal

    def put_object(self, name: str, content: dict[str, Any]) -> None:
        """Write an object of the run's folder as JSON."""
        filesystem, root = open_filesystem(self.settings.output)
        put_object(filesystem, f"{root}/_runs/{self.run_id}/{name}", json.dumps(content, indent=1).encode())


def plan_run(
    checked: Checked,
    images: Iterable[PlannedImage],
    counts: dict[str, int],
    images_per_shard: int,
    computed_on: dict[str, str | None],
    may_write: Callable[[], None] = lambda: None,
) -> RunJson:
    """Write the plan of a new run, then its run.json. A plan that breaks off on the way is no run.

    `computed_on`: device, precision and CPU instructions of the models, for the record.
    `may_write` is called for every shard, and raises BrokenRunError where another driver has taken over.
    """
    settings = checked.settings
    filesystem, root = open_filesystem(settings.output)
    now = datetime.now(UTC)
    run_id = settings.run_id or f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    shards = group_into_shards(images, max_images=images_per_shard, max_bytes=settings.shard_mib * 2**20)
    folder = f"{root}/_runs/{run_id}"
    with output_errors(settings):
        try:
            plan = write_plan(_while(may_write, shards), filesystem, f"{folder}/plan")
            may_write()
        except BaseException:
            # Half a plan is no run; nothing of it stays. No more than that: a named run's folder may hold others' work.
            with contextlib.suppress(BrokenRunError, *STORE_ERRORS):
                may_write()
                filesystem.rm(f"{folder}/plan", recursive=True)
            raise
        reached("plan written")
        run_json = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "created": now.isoformat(timespec="microseconds"),
            **identity(checked),
            "settings": settings.to_dict(),
            "results": checked.results,
            "model_license": checked.model.license,
            "model": {
                "name": checked.model.name,
                "weights_sha256": checked.model.weights_sha256,
                "categories": checked.model.labels.to_list(),
            },
            "plan": asdict(plan),
            "counts": counts,
            "computed_on": computed_on,
            "versions": _versions(),
        }
        put_object(filesystem, f"{root}/_runs/format.json", json.dumps({"schema_version": SCHEMA_VERSION}).encode())
        put_object(filesystem, f"{folder}/run.json", json.dumps(run_json, indent=1).encode())
        reached("run.json written")
    return run_json


def _while(may_write: Callable[[], None], shards: Iterable[T]) -> Iterator[T]:
    for shard in shards:
        may_write()
        yield shard


def take_up(checked: Checked, run_json: RunJson) -> Run:
    """Begin an attempt at the run: from here on, earlier drivers cannot add to its journal."""
    filesystem, root = open_filesystem(checked.settings.output)
    with output_errors(checked.settings):
        journal = Journal.start_attempt(filesystem, f"{root}/_runs/{run_json['run_id']}")
    plan = {**run_json["plan"], "files": tuple(PlanFile(**file) for file in run_json["plan"]["files"])}
    return Run(
        run_id=run_json["run_id"],
        created=datetime.fromisoformat(run_json["created"]),
        settings=checked.settings,
        model=checked.model,
        fingerprint=run_json["fingerprint"],
        plan=PlanSummary(**plan),
        counts=run_json["counts"],
        journal=journal,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("m2f-pipeline", "torch", "numpy", "numba", "pillow", "pyarrow", "ray", "deltalake"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # m2f-pipeline itself, where a job runs from a working directory
            versions[name] = "not installed"
    return versions
