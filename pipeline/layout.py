"""An output, opened once: its file system and the names of all objects below it.

images/ segments/                 the published tables (Delta Lake)
    run=<run_id>/                 the parts of a run, shard-000042-<sha256>.parquet
_runs/
    format.json                   the schema version of everything in the output
    lease.json                    the lease: only one driver at a time works on the output
    _nights/2026-11/              a record for each command of segment_bucket.py, also one that did nothing
    claim-*.json holder-*.json    the lease with --allow-unsafe-store; proof-*.json: the store is being tried
    <run_id>/
        run.json                  settings, fingerprint and plan files of the run; written once the plan is complete
        plan/                     the images of each shard
        attempts/                 one object per driver that worked on the run
        journal/                  receipts of finished shards
        started/                  a start marker for each start of a shard; removed when the run is finished
        report.json               the counts of the run; a run that has this object is finished and published
        rolled_back.json          a note that the rows of this finished run are being or have been taken out again
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
_NIGHTS = "_nights"


def part_path(table: str, run_id: str, shard: int, sha256: str) -> str:
    """The path of a part, relative to the output."""
    return f"{parts_folder(table, run_id)}/shard-{shard:06d}-{sha256[:16]}.parquet"


def parts_folder(table: str, run_id: str) -> str:
    """The folder with the parts of a run, relative to the output."""
    return f"{table}/run={run_id}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its path and the names of the objects in it."""

    filesystem: fsspec.AbstractFileSystem
    path: str
    has_conditions: bool = True  # see Output

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
    def rolled_back_json(self) -> str:
        return f"{self.path}/rolled_back.json"

    def is_rolled_back(self) -> bool:
        """Whether the rows of this finished run are being or have been taken out of the tables. Raises STORE_ERRORS."""
        return bool(self.filesystem.exists(self.rolled_back_json))

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
    """A folder or bucket prefix that holds runs and their tables. Messages name it by `flag`."""

    uri: str
    filesystem: fsspec.AbstractFileSystem
    root: str  # path of `uri` in the file system
    flag: str = "--output"
    has_conditions: bool = True  # False: conditional writes do not hold there (--allow-unsafe-store)

    @classmethod
    def open(cls, uri: str, flag: str = "--output", has_conditions: bool = True) -> "Output":
        """Open the output `uri`. RunError if there is no such store or the environment does not say how to reach it."""
        return cls(uri, *open_filesystem(uri), flag, has_conditions)

    @property
    def runs(self) -> str:
        return f"{self.root}/{RUNS}"

    @property
    def format_json(self) -> str:
        return f"{self.runs}/format.json"

    @property
    def lease_json(self) -> str:
        return f"{self.runs}/lease.json"

    @property
    def nights(self) -> str:
        return f"{self.runs}/{_NIGHTS}"

    def night(self, name: str) -> str:
        """The path of the record of a night; `name` includes the folder of the month."""
        return f"{self.nights}/{name}"

    def run(self, run_id: str) -> RunFolder:
        """The folder of the run `run_id`, which need not exist."""
        return RunFolder(self.filesystem, f"{self.runs}/{run_id}", self.has_conditions)

    def list_runs(self) -> list[RunFolder]:
        """The folders of all runs, sorted by name. Raises errors of STORE_ERRORS."""
        paths = [path.rstrip("/") for path in list_folder(self.filesystem, self.runs)]
        names = [path.rpartition("/")[2] for path in paths if not path.endswith((".json", ".lock"))]
        return [self.run(name) for name in names if name != _NIGHTS]

    def at(self, path: str) -> str:
        """The path in the file system of a table or part whose path in the output is `path`."""
        return f"{self.root}/{path}"

    def read_json_or_none(self, path: str) -> dict[str, Any] | None:
        """An object of the output as a JSON object. None if it does not exist, RunError if it cannot be read."""
        return read_json_or_none(self.filesystem, path, f"{self.flag} {self.uri}:")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the store into a RunError that names the output."""
        name = f"{self.flag} {self.uri}"
        with store_errors_as(RunError, f"{name} cannot be used", denied=f"no permission to use {name}"):
            yield
