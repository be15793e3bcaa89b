"""Shard -> encoded bytes, checked against the plan.

A failed read is a row and no exception; where all of a shard fail, it is the store, which breaks the run. Except where
they may not be read while others of the run may: a prefix that is archived or forbidden is a matter of its images.
"""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import pyarrow as pa
from tenacity import (
    Retrying,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from pipeline.costs import Costs
from pipeline.errors import ErrorCode, ImageError, StoreUnavailableError
from pipeline.plan import ListedImage
from pipeline.read_object import agrees, ask_for_object, md5_of
from pipeline.schema import FETCHED, pack_shard, unpack_shard
from pipeline.storage import check_visible, is_local, is_s3, local_etag, one_line, open_filesystem, path_of
from pipeline.under_way import Tell, tell_nobody
from pipeline.watchdog import TRIED_AGAIN, start_watchdog, watch

READ_THREADS = 16  # one object of 100 KB takes 20-50 ms from S3, so this many in flight are 300-800 images/s
_READ_ATTEMPTS = 4  # on top of the client's own; for what clients do not repeat: cut bodies, wrong checksums
# Of --step-timeout: what one request may take, and after which no object is asked for again. A store that does not
# answer gives rows (0.4 + 0.25 < 1), and the watchdog, which ends the process, is for what cannot be cancelled: a disk
# that hangs.
_REQUEST_SHARE, _READ_SHARE = 0.25, 0.4
# A connection that has fallen asleep is given up soon, a store that is slow is given longer each time. A tenth of the
# bytes a second that one connection to S3 gives.
_FIRST_SECONDS, _BYTES_PER_SECOND, _LONGER = 10.0, 5e6, 3.0
# Larger objects are no images: a film or an archive below the prefix would fill the worker's memory.
MAX_OBJECT_BYTES = 512 * 2**20
# Where so many images all fail for one of these reasons, no image is the reason: credentials that have run out, a
# network that is gone. As rows they would be thousands, and a run that looks done.
_STORE_FAILED = frozenset((ErrorCode.ACCESS_DENIED, ErrorCode.READ_FAILED))
_SYSTEMIC_IMAGES = 8


class FetchImages:
    """CPU actor: adds `data` (encoded bytes) to every image of a shard, or an error code and message."""

    def __init__(
        self,
        input_uri: str,
        step_timeout: float = 600.0,
        watched: bool = False,
        tell: Tell = tell_nobody,
        elsewhere: Sequence[ListedImage] = (),
    ):
        """`step_timeout` in seconds; `watched`: this process is ours, to be ended when a read hangs beyond it.

        `elsewhere` are images from all over the run, to be asked for where those of a shard may not be read.
        """
        self.filesystem, self.root = open_filesystem(input_uri)
        self.step_timeout = step_timeout
        self.tell = tell
        self.elsewhere = elsewhere
        self.threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fetch")
        if watched:
            start_watchdog(step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        check_visible(self.filesystem, self.root, "--input")
        shard, images = unpack_shard(row)
        planned = images.select(["image_key", "etag", "size_bytes", "reason"]).to_pylist()
        costs = Costs()
        with self.tell(shard, "reading", planned[0]["image_key"]), costs.of_process("read"):
            results = list(self.threads.map(lambda image: self._fetch_planned(**image), planned))
        # An image that could not be read before says nothing of the store, if it cannot be read again.
        reasons = [image["reason"] for image in planned]
        telling = [r for r, why in zip(results, reasons, strict=True) if why not in ("removed", "retry")]
        self._check_store(shard, telling)
        errors = [result if isinstance(result, ImageError) else None for result in results]
        fetched = pa.Table.from_arrays(
            [
                *images.columns,
                pa.array([error and error.code.value for error in errors], pa.string()),
                pa.array([error and error.message for error in errors], pa.string()),
                pa.array([None if isinstance(r, ImageError) else r for r in results], pa.large_binary()),
            ],
            schema=FETCHED,
        )
        return pack_shard(shard, fetched, costs=costs.seconds)

    def _fetch_planned(self, image_key: str, etag: str, size_bytes: int, reason: str) -> bytes | ImageError | None:
        """None for an image that is gone from the input: its row only says so."""
        if reason == "removed":
            return None
        with watch("reading", image_key):
            return self.fetch(image_key, etag, size_bytes)

    def fetch(self, image_key: str, etag: str, size_bytes: int) -> bytes | ImageError:
        """The object's bytes, or why there are none.

        Error codes: too_large, not_found, access_denied, changed (replaced since the plan), corrupt_in_transit,
        read_failed.
        """
        if size_bytes > MAX_OBJECT_BYTES:
            return ImageError(ErrorCode.TOO_LARGE, f"{size_bytes} bytes; objects over {MAX_OBJECT_BYTES} are not read")
        try:
            for attempt in Retrying(
                stop=stop_after_attempt(_READ_ATTEMPTS) | stop_after_delay(_READ_SHARE * self.step_timeout),
                wait=wait_random_exponential(multiplier=0.25, max=10),
                retry=retry_if_not_exception_type((FileNotFoundError, PermissionError, _ChangedError)),
                reraise=True,
            ):
                with attempt:
                    path = path_of(self.filesystem, image_key)
                    seconds = request_seconds(size_bytes, attempt.retry_state.attempt_number, self.step_timeout)
                    return read_verified(self.filesystem, path, etag, size_bytes, seconds)
        except FileNotFoundError:
            return ImageError(ErrorCode.NOT_FOUND, "the object was listed but is gone")
        except PermissionError as error:
            return ImageError(ErrorCode.ACCESS_DENIED, one_line(error))
        except _ChangedError as error:
            return ImageError(ErrorCode.CHANGED, one_line(error))
        except _CorruptError as error:
            return ImageError(ErrorCode.CORRUPT_IN_TRANSIT, one_line(error))
        except Exception as error:
            return ImageError(ErrorCode.READ_FAILED, f"{type(error).__name__}: {one_line(error)}")
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _check_store(self, shard: int, results: Sequence[bytes | ImageError | None]) -> None:
        """Raise StoreUnavailableError where it is the store that failed, and not some of its objects."""
        errors = [result for result in results if isinstance(result, ImageError) and result.code in _STORE_FAILED]
        if len(results) < _SYSTEMIC_IMAGES or len(errors) < len(results):
            return
        if all(error.code == ErrorCode.ACCESS_DENIED for error in errors) and self._can_read_elsewhere():
            return
        raise StoreUnavailableError(
            f"--input: none of the {len(results)} images of shard {shard} could be read, so it is the store, the "
            f"network or the credentials; the first: {errors[0]}"
        )

    def _can_read_elsewhere(self) -> bool:
        for image in sorted(self.elsewhere, key=lambda one: one.size_bytes):
            with watch("reading", image.image_key):
                if isinstance(self.fetch(image.image_key, image.etag, image.size_bytes), bytes):
                    return True
        return False


def request_seconds(size_bytes: int, attempt: int, step_timeout: float) -> float:
    """What a request for so many bytes may take at the first, second, ... attempt."""
    patient = (_FIRST_SECONDS + size_bytes / _BYTES_PER_SECOND) * _LONGER ** (attempt - 1)
    return min(patient, step_timeout * _REQUEST_SHARE)


class _CorruptError(Exception):
    """The bytes that came are not those the store says it holds."""


class _ChangedError(Exception):
    """The object is no longer the one that was planned."""


def read_verified(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, size_bytes: int, seconds: float
) -> bytes:
    """The bytes of one object, checked by length and, where the ETag is an MD5 digest, by content.

    Raises _ChangedError where the store now holds another object, _CorruptError where the bytes are wrong,
    TimeoutError where the request takes longer than `seconds`, and what the file system raises.
    """
    if is_local(filesystem):
        return _read_local(filesystem, path, etag)
    if is_s3(filesystem):
        # The answer also says which object the store holds now, so there is nothing left to ask.
        answer = _request(filesystem, ask_for_object(filesystem, path, etag), path, seconds)
        if (now := answer["ETag"].strip('"')) != etag:
            raise _ChangedError(f"planned with ETag {etag}, now {now}")
        data, is_whole = answer["Body"], agrees(answer)
    else:
        data = (
            _request(filesystem, filesystem._cat_file(path), path, seconds)
            if filesystem.async_impl
            else filesystem.cat_file(path)
        )
        is_whole = md5_of({"ETag": etag}) in (None, hashlib.md5(data, usedforsecurity=False).hexdigest())
    if len(data) != size_bytes or not is_whole:
        raise _CorruptError(f"{len(data)} bytes came that are not the {size_bytes} bytes of ETag {etag}")
    return data


def _read_local(filesystem: fsspec.AbstractFileSystem, path: str, etag: str) -> bytes:
    data: bytes = filesystem.cat_file(path)
    if (now := local_etag(Path(path).stat())) != etag:
        raise _ChangedError(f"planned with modification time and size {etag}, now {now}")
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
        raise TimeoutError(f"{path} did not come within {seconds:g} s")
    return done.result()
