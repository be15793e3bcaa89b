"""One image object, read within a time limit and checked against the plan."""

import asyncio
import hashlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from pipeline.store.filesystem import is_local, is_s3, local_etag
from pipeline.store.fsspec_private import cat_file
from pipeline.store.objects import agrees, ask_for_object, md5_of

# Of --step-timeout: what one request may take, and after which no object is asked for again. A store that does not
# answer gives rows (0.4 + 0.25 < 1), and the watchdog, which ends the process, is for what cannot be cancelled: a disk
# that hangs.
_REQUEST_SHARE, READ_SHARE = 0.25, 0.4
# A connection that has fallen asleep is given up soon, a store that is slow is given longer each time. A tenth of the
# bytes a second that one connection to S3 gives.
_FIRST_SECONDS, _BYTES_PER_SECOND, _LONGER = 10.0, 5e6, 3.0


def request_seconds(size_bytes: int, attempt: int, step_timeout: float) -> float:
    """What a request for so many bytes may take at the first, second, ... attempt."""
    patient = (_FIRST_SECONDS + size_bytes / _BYTES_PER_SECOND) * _LONGER ** (attempt - 1)
    return min(patient, step_timeout * _REQUEST_SHARE)


class CorruptError(Exception):
    """The bytes that came are not those the store says it holds."""


class ChangedError(Exception):
    """The object is no longer the one that was planned."""


def read_verified(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, size_bytes: int, seconds: float
) -> bytes:
    """The bytes of one object, checked by length and, where the ETag is an MD5 digest, by content.

    Raises ChangedError where the store now holds another object, CorruptError where the bytes are wrong,
    TimeoutError where the request takes longer than `seconds`, and what the file system raises.
    """
    if is_local(filesystem):
        return _read_local(filesystem, path, etag)
    if is_s3(filesystem):
        # The answer also says which object the store holds now, so there is nothing left to ask.
        answer = _request(filesystem, ask_for_object(filesystem, path, etag), path, seconds)
        if (now := answer["ETag"].strip('"')) != etag:
            raise ChangedError(f"the object had ETag {etag} when it was planned and has ETag {now} now")
        data, is_whole = answer["Body"], agrees(answer)
    else:
        data = (
            _request(filesystem, cat_file(filesystem, path), path, seconds)
            if filesystem.async_impl
            else filesystem.cat_file(path)
        )
        is_whole = md5_of({"ETag": etag}) in (None, hashlib.md5(data, usedforsecurity=False).hexdigest())
    if len(data) != size_bytes or not is_whole:
        raise CorruptError(f"the {len(data)} bytes that were read do not match the {size_bytes} bytes of ETag {etag}")
    return data


def _read_local(filesystem: fsspec.AbstractFileSystem, path: str, etag: str) -> bytes:
    data: bytes = filesystem.cat_file(path)
    if (now := local_etag(Path(path).stat())) != etag:
        raise ChangedError(f"the file had modification time and size {etag} when it was planned and has {now} now")
    return data


def _request(filesystem: Any, request: Coroutine[Any, Any, Any], path: str, seconds: float) -> Any:
    """What `request` of an asynchronous file system gives. It is cancelled after `seconds`.

    fsspec's own time limit only stops waiting: the request, its connection and its memory would stay.
    """

    async def limited() -> "asyncio.Future[Any] | None":
        task = asyncio.ensure_future(request)
        if (await asyncio.wait([task], timeout=seconds))[0]:
            return task
        task.cancel()
        await asyncio.wait([task], timeout=1)  # it closes its connection
        return None

    # What was raised is taken out here, because fsspec would replace a TimeoutError by one of its own without a text.
    done = fsspec.asyn.sync(filesystem.loop, limited)
    if done is None:
        raise TimeoutError(f"{path} was not read within {seconds:g} s")
    return done.result()
