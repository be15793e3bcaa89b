"""An output, opened once: its file system, the names of all objects below it, and the one way to read them back.

Anybody who may write to the output can have put anything there, so whatever is read back is untrusted: the number of
bytes is bounded, each field is checked, and links that lead out of the output are not followed (docs/security.md).

images/ segments/                 the published tables (Delta Lake)
    run=<run_id>/                 the parts of a run, shard-000042-<sha256>.parquet
_runs/
    format.json                   the schema version of everything in the output
    lease.json                    the lease: only one driver at a time works on the output
    _indexes/                     the indexes of tars, <hash of the URI>-<hash of the ETag>-<version>.parquet;
                                  each only saves the next night the reading of the tar's headers, and may be removed
    _nights/2026-11/              a record for each command of segment_bucket.py, also one that did nothing
    claim-*.json holder-*.json    the lease with --allow-unsafe-store; proof-*.json: the store is being tried
    <run_id>/
        run.json                  settings, fingerprint and plan files of the run; written once the plan is complete,
                                  or once the first shards are planned while a long listing goes on
        plan.json                 the plan files of such a run; written once the plan is complete
        plan/                     the images of each shard
        attempts/                 one object per driver that worked on the run
        journal/                  receipts of finished shards
        started/                  a start marker for each start of a shard; removed when the run is finished
        gate.json                 with --gate: what was compared with earlier runs, and why the run is held back
        golden/                   an output of its own: the golden images of --gate, while they are segmented and scored
        report.json               the counts of the run; a run that has this object is finished and published
        page/                     report.html, the page of the run, and report.json, the figures on it
        rolled_back.json          a note that the rows of this finished run are being or have been taken out again
        tidied.json               a note that everything below plan/, attempts/, journal/ and started/ is being or has
                                  been removed
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import fsspec
from pydantic import TypeAdapter

from m2f_core.config.fields import excerpt
from pipeline.config import is_run_id
from pipeline.errors import DamagedRecordError, RunError
from pipeline.schema import ALL_TABLES
from pipeline.store.filesystem import is_local, list_folder, open_filesystem, store_errors_as
from pipeline.store.json_records import parse_record
from pipeline.store.objects import read_bytes, read_or_none

T = TypeVar("T")

RUNS = "_runs"
_NIGHTS = "_nights"
_INDEXES = "_indexes"
_INDEX = re.compile("[0-9a-f]{32}-[0-9a-f]{16}-[0-9]{1,9}[.]parquet")
PLAN_FILE, ATTEMPT, JOURNAL_OBJECT = "#.parquet", "#.json", "#-#.jsonl"  # see `numbered`
MOST_RECORD_BYTES = 64 * 2**20  # run.json names the files of its plan: 3,000 at 100 M images


def numbered(form: str, *numbers: int) -> str:
    """`form` with its `#`s replaced by numbers of at least six digits."""
    for number in numbers:
        form = form.replace("#", f"{number:06d}", 1)
    return form


def part_path(table: str, run_id: str, shard: int, sha256: str) -> str:
    """The path of a part, relative to the output."""
    return f"{parts_folder(table, run_id)}/shard-{shard:06d}-{sha256[:16]}.parquet"


def parts_folder(table: str, run_id: str) -> str:
    """The folder with the parts of a run, relative to the output."""
    return f"{table}/run={run_id}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its path and the names of the objects in it."""

    output: "Output"
    path: str

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return self.output.filesystem

    @property
    def has_conditions(self) -> bool:
        return self.output.has_conditions

    @property
    def run_id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def run_json(self) -> str:
        return f"{self.path}/run.json"

    @property
    def plan_json(self) -> str:
        return f"{self.path}/plan.json"

    @property
    def report_json(self) -> str:
        return f"{self.path}/report.json"

    @property
    def gate_json(self) -> str:
        return f"{self.path}/gate.json"

    @property
    def golden(self) -> str:
        return f"{self.path}/golden"

    @property
    def rolled_back_json(self) -> str:
        return f"{self.path}/rolled_back.json"

    def is_rolled_back(self) -> bool:
        """Whether the rows of this finished run are being or have been taken out of the tables. Raises STORE_ERRORS."""
        return bool(self.filesystem.exists(self.rolled_back_json))

    @property
    def tidied_json(self) -> str:
        return f"{self.path}/tidied.json"

    def is_tidied(self) -> bool:
        """Whether plan and journal of this run are being or have been removed. Raises STORE_ERRORS."""
        return bool(self.filesystem.exists(self.tidied_json))

    @property
    def page(self) -> str:
        return f"{self.path}/page"

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
        """Open the output `uri`. RunError if there is no such store or the environment does not say how to reach it.

        RunError also if one of the output's own folders is a link that leads out of the output.
        """
        output = cls(uri, *open_filesystem(uri), flag, has_conditions)
        for path in (
            output.runs,
            output.format_json,
            output.lease_json,
            output.nights,
            output.indexes,
            *map(output.at, ALL_TABLES),
        ):
            output.inside(path)
        return output

    @property
    def name(self) -> str:
        """The output in messages."""
        return f"{self.flag} {self.uri}"

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

    @property
    def indexes(self) -> str:
        return f"{self.runs}/{_INDEXES}"

    def tar_index(self, uri: str, etag: str, version: int) -> str:
        """The path of the index of a tar."""
        return f"{self.indexes}/{tar_index_stem(uri, etag)}-{version}.parquet"

    def list_indexes(self) -> list[str]:
        """The paths of all indexes of tars, of today's and of older tars; others are not ours. Raises STORE_ERRORS."""
        paths = list_folder(self.filesystem, self.inside(self.indexes))
        return [path for path in paths if _INDEX.fullmatch(path.rpartition("/")[2])]

    def run(self, run_id: str) -> RunFolder:
        """The folder of the run `run_id`, which need not exist.

        RunError if there can be no such run, or if one of its folders is a link that leads out of the output.
        """
        if not is_run_id(run_id):
            raise RunError(f"{self.name}: {excerpt(run_id)} cannot be the name of a run")
        folder = RunFolder(self, f"{self.runs}/{run_id}")
        for path in (
            folder.path,
            folder.golden,
            folder.page,
            folder.plan,
            folder.attempts,
            folder.journal,
            folder.started,
        ):
            self.inside(path)
        for table in ALL_TABLES:
            self.inside(self.at(parts_folder(table, run_id)))
        return folder

    def list_runs(self) -> list[RunFolder]:
        """The folders of all runs, sorted by name; others are not ours. Raises errors of STORE_ERRORS."""
        paths = [path.rstrip("/") for path in list_folder(self.filesystem, self.runs)]
        names = (path.rpartition("/")[2] for path in paths)
        return [self.run(name) for name in names if is_run_id(name)]

    def at(self, path: str) -> str:
        """The path in the file system of a table or part whose path in the output is `path`."""
        return f"{self.root}/{path}"

    # --- what is read back --------------------------------------------------------------------------------------------

    def inside(self, path: str) -> str:
        """`path`, whose name lies below the output. RunError if a link there leads out of the output."""
        if is_local(self.filesystem):
            root, real = os.path.realpath(self.root), os.path.realpath(path)
            if real != root and not real.startswith(f"{root.rstrip('/')}/"):
                raise RunError(
                    f"{self.name}: {path} is a link that leads out of the output, to {real}; remove the link"
                )
        return path

    def read(self, path: str, most_bytes: int = MOST_RECORD_BYTES) -> bytes:
        """The bytes of an object of the output. RunError if there are more than `most_bytes`, or it cannot be read."""
        return read_bytes(self.filesystem, self.inside(path), f"{self.name}:", most_bytes)

    def read_or_none(self, path: str, most_bytes: int = MOST_RECORD_BYTES) -> bytes | None:
        """Like `read`, but None if there is no object."""
        return read_or_none(self.filesystem, self.inside(path), f"{self.name}:", most_bytes)

    def read_record(self, adapter: TypeAdapter[T], path: str) -> T | None:
        """An object of the output as a record. None if there is no object, RunError if it is not such a record."""
        data = self.read_or_none(path)
        return None if data is None else self.parse(adapter, data, path)

    def parse(self, adapter: TypeAdapter[T], data: bytes, path: str) -> T:
        """`data`, read from `path`, as a record. RunError with one line that names the field."""
        try:
            return parse_record(adapter, data)
        except ValueError as error:
            raise self.damaged(path, str(error)) from None

    def damaged(self, path: str, why: str) -> DamagedRecordError:
        """What is said of an object that this program did not write, or that has changed since."""
        return DamagedRecordError(f"{self.name}: {path} is damaged, or another program wrote it: {why}")

    def list_numbered(self, folder: str, form: str) -> list[tuple[tuple[int, ...], str]]:
        """(numbers, path) of the objects in `folder` whose names `numbered(form)` gives, sorted by their numbers.

        Objects of other names are not ours. Raises errors of STORE_ERRORS.
        """
        pattern = re.compile(re.escape(form).replace(r"\#", "([0-9]{6,9})"))  # the tables hold attempts as int32
        found = []
        for path in list_folder(self.filesystem, self.inside(folder)):
            match = pattern.fullmatch(path.rpartition("/")[2])
            if match is not None:
                numbers = tuple(map(int, match.groups()))
                if numbered(form, *numbers) == match[0]:
                    found.append((numbers, self.inside(path)))
        return sorted(found)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the store into a RunError that names the output."""
        denied = f"no permission to use {self.name}"
        with store_errors_as(RunError, f"{self.name} cannot be used", denied=denied):
            yield


def tar_index_stem(uri: str, etag: str) -> str:
    """What the name of the index of a tar begins with. Neither URIs nor ETags can be names of objects as they are."""
    of_uri, of_etag = (hashlib.sha256(text.encode()).hexdigest() for text in (uri, etag))
    return f"{of_uri[:32]}-{of_etag[:16]}"
