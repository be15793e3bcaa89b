"""One object as a file that can be read from any place, by ranges, each checked to be of the object that was opened."""

import io
from typing import Any

import fsspec

from pipeline.inputs.verified import read_part
from pipeline.store.filesystem import facts_of

_BLOCK_BYTES = 8 * 2**20  # of one request


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
            view[:length] = read_part(self.filesystem, self.path, self.etag, self.place, length)
        self.place += length
        return length


def open_object(filesystem: fsspec.AbstractFileSystem, path: str) -> io.BufferedReader:
    """The object as a file with a buffer of one block. FileNotFoundError if there is none."""
    return io.BufferedReader(ObjectStream(filesystem, path), _BLOCK_BYTES)
