"""A folder in which a store is tried: requests are timed, and everything that was written is removed at the end."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.layout import Output
from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3, put_object
from pipeline.store.objects import read_once

T = TypeVar("T")

_THREADS = 16


class Trial:
    """A new folder below an output. `milliseconds`: of every request that was timed, by kind."""

    def __init__(self, uri: str):
        folder = f"_check-store-{int(time.time())}-{uuid.uuid4().hex[:8]}"
        self.output = Output.open(f"{uri.rstrip('/')}/{folder}")
        self.filesystem: Any = self.output.filesystem
        self.written: set[str] = set()
        self.milliseconds: dict[str, list[float]] = {}

    @property
    def is_s3(self) -> bool:
        return is_s3(self.filesystem)

    def path(self, name: str) -> str:
        """The path of a new object, which is removed at the end."""
        path = self.output.at(name)
        self.written.add(path)
        return path

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the time of the body as one request of this kind, if the request succeeds."""
        started = time.perf_counter()
        yield
        self.milliseconds.setdefault(kind, []).append(1e3 * (time.perf_counter() - started))

    def put(self, name: str, data: bytes) -> str:
        """Write an object and return its path."""
        path = self.path(name)
        with self.timed("PUT"):
            put_object(self.filesystem, path, data)
        return path

    def get(self, path: str) -> bytes | None:
        """The bytes at `path`; None if there is no object."""
        try:
            with self.timed("GET"):
                return read_once(self.filesystem, path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, path: str) -> None:
        with self.timed("DELETE"):
            self.filesystem.rm_file(path)

    def s3(self, method: str, path: str, **arguments: Any) -> Any:
        """One request of the S3 client for the object at `path`."""
        bucket, key = path.split("/", 1)
        return self.filesystem.call_s3(method, Bucket=bucket, Key=key, **arguments)

    def together(self, work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """`work` of each item, several at a time."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="trial") as threads:
            return list(threads.map(work, items))

    def remove_all(self) -> list[str]:
        """Remove everything below the folder. Returns what is still listed, for a message.

        Objects are removed one by one: not every store knows the request that removes many.
        """
        if is_local(self.filesystem):
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm(self.output.root, recursive=True)
            return []
        self.together(self._remove, sorted(self.written | set(self._listed())))
        return self._listed()

    def _remove(self, path: str) -> None:
        with contextlib.suppress(*STORE_ERRORS):
            self.filesystem.rm_file(path)

    def _listed(self) -> list[str]:
        with contextlib.suppress(*STORE_ERRORS):
            below = f"{self.output.root}/"
            return [path for path in self.filesystem.find(self.output.root) if path.startswith(below)]
        return []
