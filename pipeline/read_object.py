"""One object, whole, or one clear line about why not."""

import json
from typing import Any

import fsspec
from tenacity import retry, retry_if_not_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.errors import RunError
from pipeline.storage import STORE_ERRORS, one_line


@retry(
    retry=retry_if_not_exception_type((FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)),
    stop=stop_after_attempt(5),
    wait=wait_random_exponential(multiplier=0.25, max=10),
    reraise=True,
)
def read_object(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes at `path`. What the client does not repeat itself, wrong checksums and the like, is repeated."""
    data: bytes = filesystem.cat_file(path)
    return data


def read_or_none(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> bytes | None:
    """The bytes at `path`, None where there is no such object. RunError, starting with `what`, on any other failure."""
    try:
        return read_object(filesystem, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except STORE_ERRORS as error:
        raise RunError(f"{what} {path} cannot be read: {one_line(error)}") from None


def read_bytes(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> bytes:
    """As `read_or_none`, but there must be such an object."""
    data = read_or_none(filesystem, path, what)
    if data is None:
        raise RunError(f"{what} {path} does not exist")
    return data


def parse_json_object(data: bytes, path: str, what: str) -> dict[str, Any]:
    """`data` as JSON with names at the top; RunError, starting with `what`, where it is anything else."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise RunError(f"{what} {path} is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RunError(f"{what} {path} holds a {type(content).__name__} where an object with names is needed")
    return content


def read_json_or_none(filesystem: fsspec.AbstractFileSystem, path: str, what: str) -> dict[str, Any] | None:
    """The object at `path` as JSON with names at the top, None where there is none. RunError, starting with `what`."""
    data = read_or_none(filesystem, path, what)
    return None if data is None else parse_json_object(data, path, what)
