"""Writes that happen only if nobody was faster: create what must not exist, replace what must be unchanged.

S3 does both itself (PUT with If-None-Match or If-Match); local disks by a hard link and by a lock. They are what the
lease and the numbering of attempts stand on.
"""

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import ClientError
from filelock import FileLock
from fsspec.asyn import sync
from tenacity import retry_if_exception_type

from m2f_core.whole_files import sync_file, temporary_beside
from pipeline.store.filesystem import is_local, is_s3, put_object
from pipeline.store.objects import DamagedError, get_object
from pipeline.store.retries import CONDITIONAL_WRITE, OBJECT

# The condition does not hold. For If-Match on nothing AWS says NoSuchKey, SeaweedFS PreconditionFailed.
_LOST = ("PreconditionFailed", "412", "NoSuchKey")


class _ConflictError(Exception):
    """Two conditional writes at one moment; S3 asks to try again (409)."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read: its bytes, what names this version of it, and how old it is by the store's clock."""

    data: bytes
    version: str
    age_seconds: float


def supports_conditions(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether this store can be asked for conditional writes."""
    return is_local(filesystem) or is_s3(filesystem)


def create_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> str | None:
    """Write `data` at `path` unless there is an object already: its version, or None where there was one.

    `data` must be unlike what anybody else would write: after a lost answer and the client's own second try, only the
    content tells whose object it is.
    """
    if is_local(filesystem):
        return _create_file(Path(path), data)
    return _conditional_put(filesystem, path, data, IfNoneMatch="*")


def replace_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes, version: str) -> str | None:
    """Write `data` at `path` if the object there still is `version`: its new version, or None where it is not."""
    if is_local(filesystem):
        with FileLock(f"{path}.lock"):
            there = read_stored(filesystem, path)
            if there is None or there.version != version:
                return None
            put_object(filesystem, path, data)
            return _digest(data)
    return _conditional_put(filesystem, path, data, IfMatch=version)


@OBJECT.retrying(retry_if_exception_type(DamagedError)).wraps
def read_stored(filesystem: fsspec.AbstractFileSystem, path: str) -> Stored | None:
    """The object at `path` with its version and age, or None where there is none."""
    if is_local(filesystem):
        return _read_file(Path(path))
    try:
        answer = get_object(filesystem, path)
    except FileNotFoundError:
        return None
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return Stored(answer["Body"], answer["ETag"], (now - answer["LastModified"]).total_seconds())


@CONDITIONAL_WRITE.retrying(retry_if_exception_type(_ConflictError)).wraps
def _conditional_put(filesystem: Any, path: str, data: bytes, **condition: str) -> str | None:
    bucket, key = path.split("/", 1)

    async def put() -> str:
        # The client itself, not s3fs's call_s3: that turns a failed condition into different errors by server.
        client = await filesystem.get_s3(bucket)
        answer = await client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        return str(answer["ETag"])

    filesystem.connect()
    try:
        return sync(filesystem.loop, put)
    except ClientError as error:
        if _status(error) == 409:
            raise _ConflictError(str(error)) from error
        if error.response["Error"]["Code"] not in _LOST:
            raise _as_os_error(error) from error
    # Perhaps it is ours: the first answer was lost, and the client asked again.
    there = read_stored(filesystem, path)
    return there.version if there is not None and there.data == data else None


def _create_file(path: Path, data: bytes) -> str | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        temporary.write_bytes(data)
        sync_file(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return None
    return _digest(data)


def _read_file(path: Path) -> Stored | None:
    try:
        data, written = path.read_bytes(), path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    # The disk's clock, which on a network file system is not this machine's.
    with temporary_beside(path) as probe:
        probe.touch()
        now = probe.stat().st_mtime
    return Stored(data, _digest(data), now - written)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _as_os_error(error: ClientError) -> OSError:
    """As the rest of the program knows errors of stores."""
    known: dict[int, type[OSError]] = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
    return known.get(_status(error), OSError)(str(error))
