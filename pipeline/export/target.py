"""The folder or bucket prefix that an export writes. An object appears whole or not at all, whatever ends the process.

A local file is written in the folder of the state (`state.py`) and renamed when it is complete, so that what a killed
process leaves lies there and is removed with the state.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.spec import AbstractBufferedFile

from pipeline.errors import RunError
from pipeline.store.filesystem import is_local, list_folder, open_filesystem, store_errors_as

T = TypeVar("T")
STATE = ".m2f-export"
THREADS = 16  # of a process that uses a store
_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Target:
    """--to, opened in one process."""

    uri: str
    filesystem: fsspec.AbstractFileSystem
    root: str

    @classmethod
    def open(cls, uri: str) -> "Target":
        """RunError if there is no such store."""
        filesystem, root = open_filesystem(uri)
        return cls(uri, filesystem, root.rstrip("/"))

    @property
    def name(self) -> str:
        """The target in messages."""
        return f"--to {self.uri}"

    def at(self, name: str) -> str:
        """The path of an object whose name below --to is `name`."""
        return f"{self.root}/{name}"

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Write objects by their names below --to. RunError if that is not possible."""
        with self.errors():
            if is_local(self.filesystem):
                for name, data in files.items():
                    with self.writing(name) as file:
                        file.write(data)
                return
            with ThreadPoolExecutor(THREADS) as threads:
                written = [threads.submit(self.filesystem.pipe_file, self.at(n), d) for n, d in files.items()]
                for one in written:
                    one.result()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write piece by piece. It appears when the body has ended, and not if the body raises."""
        if is_local(self.filesystem):
            with self._writing_locally(self.at(name)) as local:
                yield local
            return
        file: Any = self.filesystem.open(self.at(name), "wb", block_size=_BLOCK_BYTES)
        try:
            yield file
            file.close()
        except BaseException:
            with contextlib.suppress(Exception):  # the error of the body counts
                self._discard(file)
            raise

    def _discard(self, file: Any) -> None:
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # `close`, which also its finalizer calls, would store what has been written so far
            file.discard()
        else:  # of a file system that shows a file while it is written
            file.close()
            self.filesystem.rm_file(file.path)

    @contextlib.contextmanager
    def _writing_locally(self, path: str) -> Iterator[IO[bytes]]:
        temporary = self.at(f"{STATE}/{uuid.uuid4().hex}.writing")
        try:
            with _in_folder_of(temporary, lambda: open(temporary, "wb")) as file:  # noqa: PTH123
                yield file
            _in_folder_of(path, lambda: os.replace(temporary, path))  # noqa: PTH105
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def names(self) -> list[str]:
        """The names directly below --to. RunError if it cannot be listed."""
        with self.errors():
            return [path.rstrip("/").rpartition("/")[2] for path in list_folder(self.filesystem, self.root)]

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of the store into a RunError that names --to."""
        return store_errors_as(RunError, f"{self.name} cannot be written")


def _in_folder_of(path: str, make: Callable[[], T]) -> T:
    """`make()`, which makes a file at `path`. Its folder mostly is there."""
    try:
        return make()
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return make()
