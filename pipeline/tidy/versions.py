"""Which versions of a table stay readable, and which files of the table they need.

`vacuum` of deltalake (1.6) does not do this. Without `full`, it forgets the files that older versions have as soon as a
checkpoint is older than a week. With `full`, it removes files that versions within --older-than need, for the same
reason, and the parts of unfinished runs, which no version names yet. Its `keep_versions` loads each version.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.store.json_records import STRICT
from pipeline.store.listed import StoredObject, objects_below
from pipeline.tables.current_view import check_log, open_table
from pipeline.tables.removals import segments_before_removal
from pipeline.tables.stream_table import check_files, check_table

_MOST_COMMIT_BYTES = 2**30
_COMMIT = re.compile(r"([0-9]{20})\.json")
_CHECKPOINT = re.compile(r"([0-9]{20})\.checkpoint\.parquet")
_OF_VERSION = re.compile(r"([0-9]{20})\.(?:json|crc|checkpoint\.(?:[0-9]{10}\.[0-9]{10}\.)?parquet)")


@with_config(STRICT)
class _File(TypedDict):
    path: str


@with_config(STRICT)
class _Action(TypedDict, total=False):
    """A line of a commit, as far as we read it."""

    add: _File


_ACTION: TypeAdapter[_Action] = TypeAdapter(_Action)


@dataclass(frozen=True)
class KeptVersions:
    """The versions `oldest` to `newest` of a table stay readable.

    snapshot: the newest version.
    files: the files of the newest version: path, size_bytes, num_records and statistics, as the log names them.
    needed: paths of files that one of these versions has, relative to the table.
    base: the version of the checkpoint with which reading of `oldest` begins.
    log: objects of the log that only versions before `base` need, the oldest first.
    commits_since_checkpoint: the number of versions after the newest checkpoint.
    """

    name: str
    snapshot: DeltaTable
    newest: int
    oldest: int
    files: pa.Table
    needed: frozenset[str]
    base: int
    log: tuple[StoredObject, ...]
    commits_since_checkpoint: int


def versions_to_keep(
    output: Output, name: str, last: int, cutoff: float, for_images: int | None = None
) -> KeptVersions | None:
    """The last `last` versions of the table, and all that were the newest at some time since `cutoff`.

    `for_images`: keep this version of `segments` too, and all later ones, because kept versions of `images` need it.
    None if nothing is published. RunError if the table or its log cannot be read.
    """
    check_log(output, name)
    snapshot = open_table(output, name)
    if snapshot is None:
        return None
    check_table(output, name, snapshot)
    newest = snapshot.version()
    with output.errors():
        listed = [*objects_below(output.filesystem, output.at(f"{name}/_delta_log"))]
    commits, checkpoints = _by_version(_COMMIT, listed), _by_version(_CHECKPOINT, listed)
    oldest = max(newest - last + 1, 0)
    while oldest > 0 and (oldest not in commits or commits[oldest].written_at >= cutoff):
        oldest -= 1  # the version before was the newest until this one was written
    oldest = min(oldest, newest if for_images is None else for_images)
    base = _base(output, name, newest, oldest, commits, checkpoints)
    oldest = max(oldest, base)
    needed = _files_of(output, name, snapshot)
    if oldest < newest:
        needed |= _files_of(output, name, _at(output, name, oldest))
    for version in range(oldest + 1, newest + 1):
        needed |= _added(output, commits[version].path)
    return KeptVersions(
        name,
        snapshot,
        newest,
        oldest,
        check_files(output, name, snapshot),
        frozenset(needed),
        base,
        tuple(found for found, version in _versions(listed) if version < base),
        newest - max((v for v in checkpoints if v <= newest), default=-1),
    )


def segments_needed_by(images: KeptVersions) -> int | None:
    """The oldest version of `segments` that the kept versions of `images` need beside the newest."""
    return segments_before_removal(images.snapshot, images.oldest)


def _base(
    output: Output,
    name: str,
    newest: int,
    oldest: int,
    commits: dict[int, StoredObject],
    checkpoints: dict[int, StoredObject],
) -> int:
    """The version with which reading of `oldest` begins: the last checkpoint up to there, or the first version.

    If `oldest` can no longer be read, the oldest version that can be read. RunError if the log has a gap.
    """
    first = newest + 1
    while first - 1 in commits:
        first -= 1
    bases = sorted(v for v in {*checkpoints, *({0} if first == 0 else ())} if first - 1 <= v <= newest)
    if not bases:
        raise RunError(
            f"{output.name}: the log of the table {name} begins with commit {first} and has no checkpoint in one file "
            f"from there on; nothing is removed"
        )
    return max((version for version in bases if version <= oldest), default=bases[0])


def _at(output: Output, name: str, version: int) -> DeltaTable:
    snapshot = open_table(output, name, version)
    assert snapshot is not None, "the table is there"
    return snapshot


def _files_of(output: Output, name: str, snapshot: DeltaTable) -> set[str]:
    return set(map(unquote, check_files(output, name, snapshot)["path"].to_pylist()))


def _added(output: Output, path: str) -> set[str]:
    """The files that a commit has added."""
    lines = output.read(path, _MOST_COMMIT_BYTES).splitlines()
    actions: list[Any] = [output.parse(_ACTION, line, path) for line in lines if line.strip()]
    return {unquote(action["add"]["path"]) for action in actions if "add" in action}


def _by_version(kind: re.Pattern[str], listed: Iterable[StoredObject]) -> dict[int, StoredObject]:
    matches = ((kind.fullmatch(found.path.rpartition("/")[2]), found) for found in listed)
    return {int(match[1]): found for match, found in matches if match is not None}


def _versions(listed: Iterable[StoredObject]) -> list[tuple[StoredObject, int]]:
    """The objects of versions in the log, the oldest version first, with their versions."""
    matches = ((found, _OF_VERSION.fullmatch(found.path.rpartition("/")[2])) for found in listed)
    return sorted(((found, int(match[1])) for found, match in matches if match is not None), key=lambda pair: pair[1])
