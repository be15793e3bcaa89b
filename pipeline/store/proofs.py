"""Prove that a store does what a run relies on, with one small object and twelve requests.

Some S3 servers accept the conditions of conditional writes and ignore them. Two drivers would then both hold the lease,
and both would write. Others show old content for a while after a write, and a resumed run would miss receipts. Neither
shows in an error message, so a run tries it at its start.
"""

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import psutil

from pipeline.store.conditional_writes import (
    ConditionsRefusedError,
    create_object,
    replace_object,
    supports_conditions,
)
from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3, list_folder, one_line, put_object, uri_of
from pipeline.store.objects import read_once

logger = logging.getLogger(__name__)

_NAME = re.compile(r"proof-(\d+)-[0-9a-f]{32}\.json(\.lock)?")
# Another job may be in the middle of its proof, and its clock may be wrong; no clock is wrong by a day.
_LEFT_OVER_SECONDS = 86_400


@dataclass(frozen=True)
class Fault:
    """Something that a run relies on and the store does not do: a clause that goes on after "the store"."""

    words: str
    is_usable: bool  # with --allow-unsafe-store: only the exclusion of a second driver is missing


def find_faults(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[Fault]:
    """Try the store with an object below `folder`; returns what it does not do as a run needs it, most important first.

    The object is removed, whatever happens. Objects that killed processes have left here are removed after a day.
    Raises errors of STORE_ERRORS.
    """
    path = f"{folder}/proof-{int(time.time())}-{uuid.uuid4().hex}.json"
    faults: list[Fault] = []
    with _removed_at_the_end(filesystem, path):
        conditions = _fault_of_conditions(filesystem, path)
        if conditions is not None:
            faults.append(conditions)
        visibility = _fault_of_visibility(filesystem, folder, path, conditions is None)
        if visibility is not None:
            faults.append(visibility)
    return sorted(faults, key=lambda fault: fault.is_usable)


def _fault_of_conditions(filesystem: fsspec.AbstractFileSystem, path: str) -> Fault | None:
    """The first conditional write that does not do what it must. Afterwards there may be an object at `path`."""
    if not supports_conditions(filesystem):
        return Fault("has no conditional writes that this program knows", True)
    create, replace = _names_of_writes(filesystem)
    version = None
    try:
        version = create_object(filesystem, path, _content())
        if version is None:
            return Fault(f"refuses to create an object that does not exist ({create})", False)
        if create_object(filesystem, path, _content()) is not None:
            return Fault(f"accepts a second conditional create of one object and overwrites the first ({create})", True)
        if replace_object(filesystem, path, _content(), version) is None:
            return Fault(f"refuses to replace an object that nobody has changed ({replace})", True)
        if replace_object(filesystem, path, _content(), version) is not None:
            return Fault(f"accepts a conditional replace of an object that has changed since ({replace})", True)
    except ConditionsRefusedError as error:
        # Refused for another reason than its condition, such as a token that has run out? Then this fails too.
        put_object(filesystem, path, _content())
        if version is None:  # the library that writes the Delta tables cannot do without conditional creates
            return Fault(f"has no conditional creates ({create}): {one_line(error)}", False)
        return Fault(f"has no conditional replaces ({replace}): {one_line(error)}", True)
    return None


def _fault_of_visibility(
    filesystem: fsspec.AbstractFileSystem, folder: str, path: str, has_conditions: bool
) -> Fault | None:
    """The first read or listing that does not show what was written or removed just before."""
    last = _content()
    put_object(filesystem, path, last)
    if _read(filesystem, path) != last:
        return Fault("does not show an object that was just overwritten", False)
    names = {there.rpartition("/")[2]: there for there in list_folder(filesystem, folder)}
    _remove_left_overs(filesystem, names)
    if path.rpartition("/")[2] not in names:
        return Fault("does not list an object that was just written", False)
    try:
        filesystem.rm_file(path)
    except PermissionError as error:
        logger.warning("objects of --output may not be removed, so %s stays: %s", path, one_line(error))
        return None
    last = _content()
    if has_conditions:
        if create_object(filesystem, path, last) is None:
            return Fault("refuses to create an object that was just removed", False)
    elif _read(filesystem, path) is not None:
        return Fault("still shows an object that was just removed", False)
    return None


def store_name(filesystem: Any, path: str) -> str:
    """The store that holds `path`, for messages: `the store at http://127.0.0.1:8333`. Without credentials."""
    if is_s3(filesystem):
        endpoint = urlsplit(filesystem.s3.meta.endpoint_url)
        return f"the store at {endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}"
    if not is_local(filesystem):
        return f"the store {uri_of(filesystem, '')}"
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    above = next((str(at) for at in (Path(path), *Path(path).parents) if str(at) in mounts), None)
    return "the disk" if above is None else f"the file system at {above} ({mounts[above]})"


def _names_of_writes(filesystem: fsspec.AbstractFileSystem) -> tuple[str, str]:
    return ("link", "flock, rename") if is_local(filesystem) else ("PUT with If-None-Match", "PUT with If-Match")


def _content() -> bytes:
    return uuid.uuid4().hex.encode()  # conditional writes need content that nobody else writes


def _read(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return read_once(filesystem, path)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _removed_at_the_end(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Remove `path`, and on a disk the file of its lock, at the end of the body."""
    try:
        yield
    finally:
        for name in (path, f"{path}.lock") if is_local(filesystem) else (path,):
            with contextlib.suppress(*STORE_ERRORS):  # a day later, the left-over is removed
                filesystem.rm_file(name)


def _remove_left_overs(filesystem: fsspec.AbstractFileSystem, names: dict[str, str]) -> None:
    """Remove the objects of proofs that were killed more than a day ago. `names`: the folder's paths by name."""
    for name, path in names.items():
        match = _NAME.fullmatch(name)
        if match is not None and time.time() - int(match[1]) > _LEFT_OVER_SECONDS:
            with contextlib.suppress(*STORE_ERRORS):
                filesystem.rm_file(path)
