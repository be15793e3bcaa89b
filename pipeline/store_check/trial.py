"""A folder in which a store is tried: requests are timed, and everything that was written is removed at the end."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline.layout import Output
from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3, put_object
from pipeline.store.objects import read_once
from pipeline.store.removal import remove_folder_of

T = TypeVar("T")

_THREADS = 16
_REMOVAL_SECONDS = 30.0
_LISTING_SECONDS = 300.0  # of everything that was written


class Trial:
    """A new folder below an output. `milliseconds`: of every request that was timed, by kind."""

    def __init__(self, uri: str):
        folder = f"_check-store-{int(time.time())}-{uuid.uuid4().hex[:8]}"
        self.output = Output.open(f"{uri.rstrip('/')}/{folder}")
        self.parent = self.output.root.rpartition("/")[0]
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
        return _together(work, list(items))

    def remove_all(self) -> list[str]:
        """Remove everything below the folder. Returns what is still listed, for a message.

        Objects are removed one by one: not every store knows the request that removes many.
        """
        if is_local(self.filesystem):
            with contextlib.suppress(FileNotFoundError):
                remove_folder_of(self.filesystem, self.parent, self.output.root)
            return []
        self.together(self._remove, sorted(self.written))
        self.together(self._remove, self._listed())  # the files of the Delta table; a store may fail at longer listings
        return self._listed()

    def _remove(self, path: str) -> None:
        with contextlib.suppress(*STORE_ERRORS):
            within(_REMOVAL_SECONDS, lambda: self.filesystem.rm_file(path))

    def _listed(self) -> list[str]:
        with contextlib.suppress(Exception):  # a listing may be one that the client cannot read
            below = f"{self.output.root}/"
            found = within(_LISTING_SECONDS, lambda: self.filesystem.find(self.output.root))
            return [path for path in found if path.startswith(below)]
        return []


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or its exception; a TimeoutError after `seconds`.

    Some servers let the client wait for ever, for example for an object whose name they do not like. `work` is then
    left alone, in a thread that does not keep the process from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="trial")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _together(work: Callable[[Any], T], items: list[Any]) -> list[T]:
    """Like `map` of a ThreadPoolExecutor, whose threads would keep the process from ending."""
    left, results, errors = list(enumerate(items)), dict[int, T](), list[BaseException]()

    def run() -> None:
        while left and not errors:
            try:
                number, item = left.pop()
            except IndexError:  # another thread was quicker
                return
            try:
                results[number] = work(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True, name="trial") for _ in range(min(_THREADS, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]
