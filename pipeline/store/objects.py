"""Read one whole object as the store holds it, or raise an error with one clear line."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import fsspec
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync
from tenacity import retry_if_not_exception_type

from pipeline.errors import RunError, StoreUnavailableError
from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3, one_line, open_filesystem
from pipeline.store.fsspec_private import call_s3
from pipeline.store.retries import OBJECT

_MD5_ETAG = re.compile('"?([0-9a-f]{32})"?')  # the ETag of a multipart upload ends in -N, and is no digest


class DamagedError(OSError):
    """An answer whose body is incomplete, or is not what the store holds."""

    retry_cause = "corrupt"


class TooManyBytesError(OSError):
    """An object is larger than its reader accepts."""


def get_object(filesystem: Any, path: str, most_bytes: int | None = None) -> dict[str, Any]:
    """The answer of S3 to one GET of the whole object: `Body` as bytes, checked against `ETag`, and the other fields.

    The client itself checks only objects that were stored with a checksum, and not every store keeps checksums. Raises
    DamagedError, FileNotFoundError, PermissionError, and other OSErrors: TooManyBytesError, before the body is read, if
    it has more than `most_bytes`.
    """
    filesystem.connect()
    answer: dict[str, Any] = sync(filesystem.loop, ask_for_object, filesystem, path, None, most_bytes)
    if not agrees(answer):
        raise DamagedError(f"the {len(answer['Body'])} bytes read from {path} do not match ETag {answer['ETag']}")
    return answer


async def ask_for_object(
    filesystem: Any,
    path: str,
    etag: str | None = None,
    most_bytes: int | None = None,
    byte_range: tuple[int, int] | None = None,
    last_bytes: int | None = None,
) -> dict[str, Any]:
    """Like `get_object`, but awaited on the file system's loop, and without checks.

    This sends one request; s3fs would ask for the size first. If the store holds an object with another ETag than
    `etag`, the body is not read, because it may have any size. For a part of the object, `byte_range` is (first byte,
    number of bytes), or `last_bytes` the number of bytes at its end.
    """
    bucket, key = path.split("/", 1)
    part = {} if byte_range is None else {"Range": f"bytes={byte_range[0]}-{sum(byte_range) - 1}"}
    if last_bytes is not None:
        part = {"Range": f"bytes=-{last_bytes}"}
    answer: dict[str, Any] = await call_s3(filesystem, "get_object", Bucket=bucket, Key=key, **part)
    body = answer["Body"]
    try:
        _check_size(answer.get("ContentLength"), most_bytes)
        is_wanted = etag is None or answer["ETag"].strip('"') == etag
        answer["Body"] = await body.read() if is_wanted else b""
    except (ClientError, BotoCoreError) as error:  # the client's own retries do not cover reading a body
        raise DamagedError(f"{path}: {one_line(error)}") from error
    finally:
        body.close()  # else a read that is abandoned keeps its connection
    return answer


def agrees(answer: Mapping[str, Any]) -> bool:
    """Whether `Body` matches `ETag`. True if the ETag is no digest of the content."""
    return md5_of(answer) in (None, hashlib.md5(answer["Body"], usedforsecurity=False).hexdigest())


def md5_of(answer: Mapping[str, Any]) -> str | None:
    """The MD5 of an object, from the answer to GET or HEAD.

    None if the ETag is no digest of the content: multipart uploads, encryption with keys of KMS or of the customer.
    """
    match = _MD5_ETAG.fullmatch(answer["ETag"])
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    return match[1] if match is not None and not encrypted else None


def read_once(filesystem: fsspec.AbstractFileSystem, path: str, most_bytes: int | None = None) -> bytes:
    """The bytes at `path`, for callers that have their own retries. TooManyBytesError if there are too many."""
    if is_s3(filesystem):
        data: bytes = get_object(filesystem, path, most_bytes)["Body"]
        return data
    if is_local(filesystem):
        return read_file(path, most_bytes)
    whole: bytes = filesystem.cat_file(path)
    _check_size(len(whole), most_bytes)  # a request for the size would double the requests, and may be out of date
    return whole


def read_file(path: str, most_bytes: int | None = None) -> bytes:
    """The bytes of a local file. OSError if `path` is a pipe or a device, which may have no end."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PermissionError(errno.EINVAL, "neither a file nor a folder", path)
        data = file.read(-1 if most_bytes is None else most_bytes + 1)
    _check_size(len(data), most_bytes)
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a pipe without a writer is waited for


def _check_size(size: int | None, most_bytes: int | None) -> None:
    if most_bytes is not None and (size is None or size > most_bytes):
        raise TooManyBytesError(f"it has more than the {most_bytes:,} bytes that are read of such an object")


@OBJECT.retrying(
    retry_if_not_exception_type(
        (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, TooManyBytesError)
    )
).wraps
def read_object(filesystem: fsspec.AbstractFileSystem, path: str, most_bytes: int | None = None) -> bytes:
    """The bytes at `path`. Failures that the client does not retry, such as incomplete bodies, are retried."""
    return read_once(filesystem, path, most_bytes)


def read_or_none(
    filesystem: fsspec.AbstractFileSystem, path: str, what: str, most_bytes: int | None = None
) -> bytes | None:
    """The bytes at `path`, or None if there is no such object.

    Any other failure is a RunError that starts with `what`: a StoreUnavailableError if the failure may pass.
    """
    try:
        return read_object(filesystem, path, most_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except STORE_ERRORS as error:
        permanent = isinstance(error, (PermissionError, IsADirectoryError, TooManyBytesError))
        kind = RunError if permanent else StoreUnavailableError
        raise kind(f"{what} {path} cannot be read: {one_line(error)}") from None


def read_bytes(filesystem: fsspec.AbstractFileSystem, path: str, what: str, most_bytes: int | None = None) -> bytes:
    """Like `read_or_none`, but raises RunError if there is no such object."""
    data = read_or_none(filesystem, path, what, most_bytes)
    if data is None:
        raise RunError(f"{what} {path} does not exist")
    return data


def read_uri(uri: str, what: str) -> bytes:
    """`read_bytes` for one object that is named by its URI or local path."""
    return read_bytes(*open_filesystem(uri), what)
