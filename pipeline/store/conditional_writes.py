"""Conditional writes: create an object only if it does not exist, replace an object only if it is unchanged.

S3 supports both (PUT with If-None-Match or If-Match); local disks use a hard link and a lock. The lease and the numbers
of attempts rely on these writes.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
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
from pipeline.store.objects import DamagedError, get_object, read_file
from pipeline.store.retries import CONDITIONAL_WRITE, OBJECT

# Error codes that mean that the condition does not hold. If-Match on a missing object gives NoSuchKey on AWS and
# PreconditionFailed on SeaweedFS.
_LOST = ("PreconditionFailed", "412", "NoSuchKey")


# Answers of a store that does not know conditional writes: mostly 501, but 400 or 405 from some gateways. A 400 may
# have another cause, such as a token that has expired; then a plain write fails, too.
_NOT_IMPLEMENTED = (400, 405, 501)
# The same for the calls of a local disk: no hard links (FAT, some FUSE file systems) or no locks.
_NOT_IMPLEMENTED_LOCALLY = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class ConditionsRefusedError(OSError):
    """The store refused a conditional write as such, not because the condition does not hold."""


class _ConflictError(Exception):
    """Two conditional writes happened at the same moment; S3 asks to try again (409)."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read: its bytes, the name of this version, and its age by the store's clock."""

    data: bytes
    version: str
    age_seconds: float


def supports_conditions(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether this program knows how to write conditionally there. `proofs.py` tries whether the store obeys."""
    return is_local(filesystem) or is_s3(filesystem)


def create_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> str | None:
    """Write `data` at `path` unless an object exists there. Returns the new version, or None if an object existed.

    `data` must differ from everything that another writer would write: if an answer is lost and the client tries again,
    only the content shows whose object it is.
    """
    if is_local(filesystem):
        return _create_file(Path(path), data)
    return _conditional_put(filesystem, path, data, IfNoneMatch="*")


def create_new(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes, has_conditions: bool) -> bool:
    """Like `create_object`, also for a store whose conditional writes do not hold. Returns whether `data` was written.

    On such a store (`has_conditions` is False) this looks first; of several writers at the same moment all succeed.
    """
    if has_conditions and supports_conditions(filesystem):
        return create_object(filesystem, path, data) is not None
    if filesystem.exists(path):
        return False
    put_object(filesystem, path, data)
    return True


def replace_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes, version: str) -> str | None:
    """Write `data` at `path` if the object there still is `version`. Returns the new version, or None if it is not."""
    if is_local(filesystem):
        with _as_refusal("locks"):
            locked = FileLock(f"{path}.lock", fallback_to_soft=False).acquire()
        with locked:
            there = read_stored(filesystem, path)
            if there is None or there.version != version:
                return None
            put_object(filesystem, path, data)
            return _digest(data)
    return _conditional_put(filesystem, path, data, IfMatch=version)


@OBJECT.retrying(retry_if_exception_type(DamagedError)).wraps
def read_stored(filesystem: fsspec.AbstractFileSystem, path: str, most_bytes: int | None = None) -> Stored | None:
    """The object at `path` with its version and age, or None if there is no object.

    TooManyBytesError if it has more than `most_bytes`.
    """
    if is_local(filesystem):
        return _read_file(Path(path), most_bytes)
    try:
        answer = get_object(filesystem, path, most_bytes)
    except FileNotFoundError:
        return None
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return Stored(answer["Body"], answer["ETag"], (now - answer["LastModified"]).total_seconds())


@CONDITIONAL_WRITE.retrying(retry_if_exception_type(_ConflictError)).wraps
def _conditional_put(filesystem: Any, path: str, data: bytes, **condition: str) -> str | None:
    bucket, key = path.split("/", 1)

    async def put() -> str:
        # Use the client itself: s3fs's call_s3 turns a failed condition into errors that differ between servers.
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
    # The object may be our own: the first answer was lost, and the client sent the request again.
    there = read_stored(filesystem, path)
    return there.version if there is not None and there.data == data else None


def _create_file(path: Path, data: bytes) -> str | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        temporary.write_bytes(data)
        sync_file(temporary)
        try:
            with _as_refusal("hard links"):
                os.link(temporary, path)
        except FileExistsError:
            return None
    return _digest(data)


def _read_file(path: Path, most_bytes: int | None) -> Stored | None:
    try:
        data, written = read_file(str(path), most_bytes), path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Use the disk's clock, which on a network file system is not this machine's clock.
    with temporary_beside(path) as probe:
        probe.touch()
        now = probe.stat().st_mtime
    return Stored(data, _digest(data), now - written)


@contextlib.contextmanager
def _as_refusal(what: str) -> Iterator[None]:
    """Turn the error of a disk that has no `what` into a ConditionsRefusedError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_IMPLEMENTED_LOCALLY:
            raise
        raise ConditionsRefusedError(f"{what}: {error.strerror}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _as_os_error(error: ClientError) -> OSError:
    """`error` as an OSError, the way the rest of the program knows errors of stores."""
    known: dict[int, type[OSError]] = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
    known |= dict.fromkeys(_NOT_IMPLEMENTED, ConditionsRefusedError)
    return known.get(_status(error), OSError)(str(error))
