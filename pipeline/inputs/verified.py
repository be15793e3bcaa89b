"""Read one object, or a part of one, within a time limit, and check it against the plan."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
from tenacity import retry_if_not_exception_type

from pipeline.store.filesystem import facts_of, is_local, is_s3, local_etag
from pipeline.store.objects import agrees, ask_for_object, read_file
from pipeline.store.other.answer import Answer, NoPartsError, Part
from pipeline.store.other.ask import ask
from pipeline.store.retries import OBJECT

# A larger object is not an image: a film or an archive below the prefix would fill the worker's memory.
MAX_OBJECT_BYTES = 512 * 2**20
# Shares of --step-timeout: the longest time of one request, and the time after which an object is not requested again.
# So a store that does not answer leads to failed rows (0.4 + 0.25 < 1). The watchdog, which ends the process, is for
# reads that cannot be cancelled, such as from a disk that hangs.
_REQUEST_SHARE, READ_SHARE = 0.25, 0.4
# A stalled connection is given up soon; a slow store gets more time with each attempt. The bytes per second are a tenth
# of the rate that one connection to S3 reaches.
_FIRST_SECONDS, _BYTES_PER_SECOND, _LONGER = 10.0, 5e6, 3.0
_LISTING_TIMEOUT = 600.0  # seconds, of which one request gets a share; a listing has no step that --step-timeout bounds


def request_seconds(size_bytes: int, attempt: int, step_timeout: float) -> float:
    """The time limit of a request for `size_bytes` bytes at the first, second, ... attempt."""
    patient = (_FIRST_SECONDS + size_bytes / _BYTES_PER_SECOND) * _LONGER ** (attempt - 1)
    return min(patient, step_timeout * _REQUEST_SHARE)


class CorruptError(Exception):
    """The bytes that were read are not the bytes that the store says it holds."""

    retry_cause = "corrupt"


class ChangedError(Exception):
    """The object was replaced after it was planned."""


# Errors that another attempt does not change.
LASTING = (FileNotFoundError, PermissionError, ChangedError, NoPartsError)


def read_verified(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, size_bytes: int | None, seconds: float
) -> tuple[bytes, str]:
    """The bytes of one object and its ETag, checked by length and, if the ETag is an MD5 digest, by content.

    If `etag` is "" or `size_bytes` is None, the plan does not know them, and whatever the store holds is right. Raises
    ChangedError if the store now holds another object, CorruptError if the bytes are wrong, TimeoutError if the request
    takes longer than `seconds`, TooManyBytesError above MAX_OBJECT_BYTES, and any error of the file system.
    """
    if is_local(filesystem):
        data = read_file(path, MAX_OBJECT_BYTES)
        now, is_whole = _still(local_etag(Path(path).stat()), etag), True
    elif is_s3(filesystem):
        # The answer also says which object the store holds now, so no second request is needed.
        asked = ask_for_object(filesystem, path, etag or None, MAX_OBJECT_BYTES)
        answer = _request(filesystem, asked, path, seconds)
        now, data, is_whole = _still(answer["ETag"].strip('"'), etag), answer["Body"], agrees(answer)
    else:
        answer = _ask_other(filesystem, path, etag, None, MAX_OBJECT_BYTES, seconds)
        now, data, is_whole = _still(answer.etag or etag, etag), answer.data, answer.is_whole
    if is_whole and not etag and size_bytes not in (None, len(data)):
        raise ChangedError(f"the list of the input says {size_bytes} bytes, but the object has {len(data)}")
    if size_bytes not in (None, len(data)) or not is_whole:
        raise CorruptError(f"the {len(data)} bytes that were read do not match the {size_bytes} bytes of ETag {now}")
    return data, now


def _ask_other(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, part: Part | None, most_bytes: int, seconds: float
) -> Answer:
    """The answer of a store that is neither S3 nor a disk, within `seconds` if its library can be interrupted.

    Where the store names no version, its bytes are of the version that was planned, for all that can be known.
    """
    asked = ask(filesystem, path, etag, part, most_bytes)
    return asked if isinstance(asked, Answer) else _request(filesystem, asked, path, seconds)


def read_range(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, first: int, length: int, seconds: float
) -> bytes:
    """`length` bytes (at least one) of an object from the byte `first` on.

    A part has no checksum of its own, so its reader must check what the format allows. Raises ChangedError if the store
    now holds another object, CorruptError if there are fewer bytes, TimeoutError if the request takes longer than
    `seconds`, and any error of the file system.
    """
    if is_local(filesystem):
        with Path(path).open("rb") as file:
            file.seek(first)
            data = file.read(length)
        _still(local_etag(Path(path).stat()), etag)
    elif is_s3(filesystem):
        asked = ask_for_object(filesystem, path, etag, byte_range=(first, length))
        answer = _request(filesystem, asked, path, seconds)
        _still(answer["ETag"].strip('"'), etag)
        data = answer["Body"]
    else:
        answer = _ask_other(filesystem, path, etag, (first, length), length, seconds)
        _still(answer.etag or etag, etag)
        data = answer.data
    if len(data) != length:
        raise CorruptError(f"{len(data)} bytes were read of the {length} bytes from byte {first} of ETag {etag}")
    return data


def read_tail(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, length: int, seconds: float
) -> tuple[bytes, int]:
    """The last `length` bytes of an object (all, if there are fewer) and the size of the object; else `read_range`."""
    if is_s3(filesystem):  # one request, which also says the size
        answer = _request(filesystem, ask_for_object(filesystem, path, etag, last_bytes=length), path, seconds)
        _still(answer["ETag"].strip('"'), etag)
        data: bytes = answer["Body"]
        size = int(str(answer.get("ContentRange", f"/{len(data)}")).rpartition("/")[2])
        if len(data) != min(length, size):
            raise CorruptError(f"{len(data)} bytes were read of the last {length} bytes of ETag {etag}")
        return data, size
    size = facts_of(filesystem, path)[1]
    first = max(0, size - length)
    return read_range(filesystem, path, etag, first, size - first, seconds) if size else b"", size


def read_part(filesystem: fsspec.AbstractFileSystem, path: str, etag: str, first: int, length: int) -> bytes:
    """`read_range` for the driver, which lists: an error that may pass is followed by another attempt.

    Raises what `read_range` raises: of LASTING at once, the others after all attempts.
    """
    for attempt in OBJECT.retrying(retry_if_not_exception_type(LASTING)):
        with attempt:
            seconds = request_seconds(length, attempt.retry_state.attempt_number, _LISTING_TIMEOUT)
            return read_range(filesystem, path, etag, first, length, seconds)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _still(now: str, planned: str) -> str:
    """The ETag that an object has now. ChangedError if the plan knows another."""
    if planned and now != planned:
        raise ChangedError(f"the object had ETag {planned} when it was planned and has ETag {now} now")
    return now


def _request(filesystem: Any, request: Coroutine[Any, Any, Any], path: str, seconds: float) -> Any:
    """The result of `request`, which belongs to an asynchronous file system and is cancelled after `seconds`.

    fsspec's own time limit only stops waiting: the request would keep its connection and its memory.
    """

    async def limited() -> "asyncio.Future[Any] | None":
        task = asyncio.ensure_future(request)
        if (await asyncio.wait([task], timeout=seconds))[0]:
            return task
        task.cancel()
        await asyncio.wait([task], timeout=1)  # the request closes its connection
        return None

    # Errors are raised here, because fsspec would replace a TimeoutError by its own TimeoutError without a text.
    done = fsspec.asyn.sync(filesystem.loop, limited)
    if done is None:
        raise TimeoutError(f"{path} was not read within {seconds:g} s")
    return done.result()
