"""Read one whole object as the store holds it, or raise an error with one clear line."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import fsspec
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync
from tenacity import retry_if_not_exception_type

from pipeline.errors import RunError, StoreUnavailableError
from pipeline.store.filesystem import STORE_ERRORS, is_s3, one_line, open_filesystem
from pipeline.store.fsspec_private import call_s3
from pipeline.store.retries import OBJECT

_MD5_ETAG = re.compile('"?([0-9a-f]{32})"?')  # the ETag of a multipart upload ends in -N, and is no digest


class DamagedError(OSError):
    """An answer whose body is incomplete, or is not what the store holds."""

    retry_cause = "corrupt"


def get_object(filesystem: Any, path: str) -> dict[str, Any]:
    """The answer of S3 to one GET of the whole object: `Body` as bytes, checked against `ETag`, and the other fields.

    The client itself checks only objects that were stored with a checksum, and not every store keeps checksums. Raises
    DamagedError, FileNotFoundError, PermissionError, and other OSErrors.
    """
    filesystem.connect()
    answer: dict[str, Any] = sync(filesystem.loop, ask_for_object, filesystem, path)
    if not agrees(answer):
        raise DamagedError(f"the {len(answer['Body'])} bytes read from {path} do not match ETag {answer['ETag']}")
    return answer


async def ask_for_object(filesystem: Any, path: str, etag: str | None = None) -> dict[str, Any]:
    """Like `get_object`, but awaited on the file system's loop, and without checks.

    This sends one request; s3fs would ask for the size first. If the store holds an object with another ETag than
    `etag`, the body is not read, because it may have any size.
    """
    bucket, key = path.split("/", 1)
    answer: dict[str, Any] = await call_s3(filesystem, "get_object", Bucket=bucket, Key=key)
    body = answer["Body"]
    try:
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


def read_once(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes at `path`, for callers that have their own retries."""
    data: bytes = get_object(filesystem, path)["Body"] if is_s3(filesystem) else filesystem.cat_file(path)
    return data


@OBJECT.retrying(
    retry_if_not_exception_type((FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError))
).wraps
def read_object(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes at `path`. Failures that the client does not retry, such as incomplete bodies, are retried."""
    return read_once(filesystem, path)


def read_or_none(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> bytes | None:
    """The bytes at `path`, or None if there is no such object.

    Any other failure is a RunError that starts with `what`: a StoreUnavailableError if the failure may pass.
    """
    try:
        return read_object(filesystem, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except STORE_ERRORS as error:
        kind = RunError if isinstance(error, (PermissionError, IsADirectoryError)) else StoreUnavailableError
        raise kind(f"{what} {path} cannot be read: {one_line(error)}") from None


def read_bytes(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> bytes:
    """Like `read_or_none`, but raises RunError if there is no such object."""
    data = read_or_none(filesystem, path, what)
    if data is None:
        raise RunError(f"{what} {path} does not exist")
    return data


def read_uri(uri: str, what: str) -> bytes:
    """`read_bytes` for one object that is named by its URI or local path."""
    return read_bytes(*open_filesystem(uri), what)


def parse_json_object(data: bytes, path: str, what: str) -> dict[str, Any]:
    """`data` as a JSON object. If `data` is anything else, raises a RunError that starts with `what`."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise RunError(f"{what} {path} is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RunError(f"{what} {path} must hold a JSON object, not a {type(content).__name__}")
    return content


def read_json_or_none(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> dict[str, Any] | None:
    """The JSON object at `path`, or None if there is no object. A RunError starts with `what`."""
    data = read_or_none(filesystem, path, what)
    return None if data is None else parse_json_object(data, path, what)
