"""A finished run as a reader sees it: what it was, and its parts as the journal names them. Nothing is written."""

import hashlib
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.journal import Journal
from pipeline.commit.receipt import PartRecord
from pipeline.errors import RunError
from pipeline.schema import SCHEMA_VERSION
from pipeline.store.filesystem import STORE_ERRORS, list_folder, one_line, open_filesystem
from pipeline.store.objects import read_bytes, read_json_or_none

_FLAG = "--tables"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has a report.json."""

    tables: str  # folder or URI, as given
    run_id: str
    task: str
    fingerprint: str
    categories: tuple[dict[str, Any], ...]  # by the model's class_id: id, name, isthing
    parts: tuple[dict[str, PartRecord], ...]  # by shard: table -> part


def find_finished_run(tables: str, run_id: str | None) -> FinishedRun:
    """The run named, or the one that finished last. RunError where there is none, or it is not finished."""
    filesystem, root = open_filesystem(tables)
    name = run_id or _last_finished(filesystem, root)
    folder = f"{root}/_runs/{name}"
    run = read_json_or_none(filesystem, f"{folder}/run.json", f"{_FLAG}:")
    if run is None:
        raise RunError(f"{_FLAG} {tables} holds no run {name}; there are {_some_runs(filesystem, root)}")
    if run["schema_version"] != SCHEMA_VERSION:
        raise RunError(
            f"run {name} has tables of schema version {run['schema_version']}, this program reads {SCHEMA_VERSION}"
        )
    if read_json_or_none(filesystem, f"{folder}/report.json", f"{_FLAG}:") is None:
        raise RunError(f"run {name} is not finished; the command that started it goes on with it")
    parts = _parts(Journal(filesystem, folder), name, run["plan"]["num_shards"])
    return FinishedRun(
        tables, name, run["results"]["task"], run["fingerprint"], tuple(run["model"]["categories"]), parts
    )


def read_part(tables: str, part: PartRecord, columns: list[str]) -> pa.Table:
    """Some columns of a part. RunError where it is gone, damaged or not the one that the journal names."""
    filesystem, root = open_filesystem(tables)
    data = read_bytes(filesystem, f"{root}/{part.path}", f"{_FLAG}: the part")
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise RunError(f"{_FLAG}: the part {part.path} is damaged: it has not the sha256 that the journal names")
    return pq.read_table(pa.BufferReader(data), columns=columns)


def _last_finished(filesystem: fsspec.AbstractFileSystem, root: str) -> str:
    folders = _run_folders(filesystem, root)
    if not folders:
        raise RunError(f"{_FLAG} {root} holds no run; give what was --output of the run")
    reports = [read_json_or_none(filesystem, f"{folder}/report.json", f"{_FLAG}:") for folder in folders]
    finished = [(report["finished_at"], report["run_id"]) for report in reports if report is not None]
    if not finished:
        raise RunError(f"{_FLAG} {root} holds no finished run; there are {_some_runs(filesystem, root)}")
    return str(max(finished)[1])


def _run_folders(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    try:
        listed = list_folder(filesystem, f"{root}/_runs")
    except STORE_ERRORS as error:
        raise RunError(f"{_FLAG} {root} cannot be listed: {one_line(error)}") from None
    return [path.rstrip("/") for path in listed if not path.endswith(".json")]


def _some_runs(filesystem: fsspec.AbstractFileSystem, root: str) -> str:
    """The names of the last few runs, for a message."""
    names = [path.rpartition("/")[2] for path in _run_folders(filesystem, root)]
    return ", ".join([*(["..."] if len(names) > 5 else []), *names[-5:]]) or "none"


def _parts(journal: Journal, run_id: str, num_shards: int) -> tuple[dict[str, PartRecord], ...]:
    """The parts of every shard."""
    by_shard: dict[int, dict[str, PartRecord]] = {}
    try:
        for receipt in journal.read():
            by_shard[receipt.shard] = receipt.parts
    except (*STORE_ERRORS, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{_FLAG}: the journal of run {run_id} cannot be read: {one_line(error)}") from None
    if len(by_shard) != num_shards:
        raise RunError(
            f"{_FLAG}: the journal of run {run_id} has receipts of {len(by_shard)} shards, its plan has {num_shards}"
        )
    return tuple(by_shard[shard] for shard in sorted(by_shard))
