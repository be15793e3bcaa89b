"""One object as a file that can be read from any place, by ranges, each checked to be of the object that was opened."""

import io
from typing import Any

import fsspec
from tenacity import retry_if_not_exception_type

from pipeline.inputs.verified import ChangedError, read_range, request_seconds
from pipeline.store.filesystem import facts_of
from pipeline.store.retries import OBJECT

_BLOCK_BYTES = 8 * 2**20  # of one request
_STEP_TIMEOUT = 600.0  # seconds; a list is read by the driver, whose steps have no --step-timeout


class ObjectStream(io.RawIOBase):
    """The bytes of an object. OSError, and ChangedError if the object is replaced while it is read."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str):
        super().__init__()
        self.filesystem = filesystem
        self.path = path
        self.etag, self.size_bytes = facts_of(filesystem, path)
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size_bytes}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), _BLOCK_BYTES, self.size_bytes - self.place))
        if length:
            view[:length] = self._read_range(length)
        self.place += length
        return length

    def _read_range(self, length: int) -> bytes:
        passing = retry_if_not_exception_type((FileNotFoundError, PermissionError, ChangedError))
        for attempt in OBJECT.retrying(passing):
            with attempt:
                seconds = request_seconds(length, attempt.retry_state.attempt_number, _STEP_TIMEOUT)
                return read_range(self.filesystem, self.path, self.etag, self.place, length, seconds)
        raise AssertionError("unreachable: the last attempt returns or raises")


def open_object(filesystem: fsspec.AbstractFileSystem, path: str) -> io.BufferedReader:
    """The object as a file with a buffer of one block. FileNotFoundError if there is none."""
    return io.BufferedReader(ObjectStream(filesystem, path), _BLOCK_BYTES)
