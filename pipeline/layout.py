"""An output, opened once: its file system, and the name of every object below it.

images/ segments/                 the published tables (Delta Lake)
    run=<run_id>/                 the parts of a run, shard-000042-<sha256>.parquet
_runs/
    format.json                   the schema version of all that lies in the output
    lease.json                    one driver at a time
    <run_id>/
        run.json                  what the run is: settings, fingerprint, plan files; written once the plan is whole
        plan/                     the images, by shard
        attempts/                 one object per driver that worked on the run
        journal/                  receipts of done shards
        started/                  a marker for each start of a shard; removed when the run is done
        report.json               the books; a run that has one is finished and published
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import RunError
from pipeline.store.filesystem import list_folder, open_filesystem, store_errors_as
from pipeline.store.objects import read_json_or_none

RUNS = "_runs"


def part_path(table: str, run_id: str, shard: int, sha256: str) -> str:
    """Where a part lies, relative to the output."""
    return f"{parts_folder(table, run_id)}/shard-{shard:06d}-{sha256[:16]}.parquet"


def parts_folder(table: str, run_id: str) -> str:
    """Where the parts of a run lie, relative to the output."""
    return f"{table}/run={run_id}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: where it lies, and the names in it."""

    filesystem: fsspec.AbstractFileSystem
    path: str

    @property
    def run_id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def run_json(self) -> str:
        return f"{self.path}/run.json"

    @property
    def report_json(self) -> str:
        return f"{self.path}/report.json"

    @property
    def plan(self) -> str:
        return f"{self.path}/plan"

    @property
    def attempts(self) -> str:
        return f"{self.path}/attempts"

    @property
    def journal(self) -> str:
        return f"{self.path}/journal"

    @property
    def started(self) -> str:
        return f"{self.path}/started"


@dataclass(frozen=True)
class Output:
    """A folder or bucket prefix that holds runs and their tables. `flag` names it in messages."""

    uri: str
    filesystem: fsspec.AbstractFileSystem
    root: str  # path of `uri` in the file system
    flag: str = "--output"

    @classmethod
    def open(cls, uri: str, flag: str = "--output") -> "Output":
        """RunError where there is no such store, or the environment does not say how to reach it."""
        return cls(uri, *open_filesystem(uri), flag)

    @property
    def runs(self) -> str:
        return f"{self.root}/{RUNS}"

    @property
    def format_json(self) -> str:
        return f"{self.runs}/format.json"

    @property
    def lease_json(self) -> str:
        return f"{self.runs}/lease.json"

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, whether or not there is one."""
        return RunFolder(self.filesystem, f"{self.runs}/{run_id}")

    def list_runs(self) -> list[RunFolder]:
        """The folders of all runs, sorted by name. Raises errors of STORE_ERRORS."""
        paths = [path.rstrip("/") for path in list_folder(self.filesystem, self.runs)]
        return [RunFolder(self.filesystem, path) for path in paths if not path.endswith((".json", ".lock"))]

    def at(self, path: str) -> str:
        """The path in the file system of what lies at `path` in the output: a table, a part."""
        return f"{self.root}/{path}"

    def read_json_or_none(self, path: str) -> dict[str, Any] | None:
        """An object of the output as JSON with names at the top; RunError where it is there and cannot be read."""
        return read_json_or_none(self.filesystem, path, f"{self.flag} {self.uri}:")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What the store raises, as a RunError that names the output."""
        name = f"{self.flag} {self.uri}"
        with store_errors_as(RunError, f"{name} cannot be used", denied=f"no permission to use {name}"):
            yield
