"""The base of our file systems of other stores: what all of them make of their own requests."""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from fsspec.asyn import sync
from tenacity import retry_if_not_exception_type

from pipeline.store.other.answer import LASTING, Answer, Part
from pipeline.store.retries import OBJECT


@dataclass(frozen=True, slots=True)
class OtherObject:
    """An object as its store lists it.

    etag: or what replaces it; "" if nothing does.
    size_bytes: None if the store does not say.
    """

    path: str
    etag: str
    size_bytes: int | None


class OtherStore:
    """A file system of fsspec whose objects are listed and read by requests of our own.

    Among the bases of a class, OtherStore comes first: fsspec's `exists` takes any error for "no".
    """

    loop: Any

    def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer | Coroutine[Any, Any, Answer]:
        """The object, or a part of it; no bytes if the store names another version than `etag` ("": any will do).

        A coroutine is to be awaited on the loop of the file system. Both raise FileNotFoundError, PermissionError,
        TooManyBytesError before more than `most_bytes` bytes are read, NoPartsError, DamagedError, and other OSErrors,
        which may pass.
        """
        raise NotImplementedError

    def objects(self, path: str) -> Iterator[OtherObject]:
        """Every object below `path`, or the object `path` itself, page by page, in the order of the store.

        Errors that may pass are tried again. Raises OSErrors: FileNotFoundError if nothing is there.
        """
        raise NotImplementedError

    async def describe(self, path: str) -> Answer:
        """The object without its bytes."""
        raise NotImplementedError

    def check_folder(self, path: str) -> None:
        """FileNotFoundError if nothing lies below `path`."""
        raise NotImplementedError

    def may_be_object(self, path: str) -> bool:
        """Whether `path` is more than the name of a bucket, and not marked as a folder by a slash at its end."""
        return "/" in path and not path.endswith("/")

    def object_at(self, path: str) -> OtherObject:
        """The object `path`. Errors that may pass are tried again."""
        described = self.repeated(self.describe, path)
        return OtherObject(path, described.etag, described.size_bytes)

    def info(self, path: str, *_: Any, **__: Any) -> dict[str, Any]:
        """An object, or a folder: the beginning of names that a slash follows. FileNotFoundError if there is neither.

        Errors that may pass are tried again.
        """
        if self.may_be_object(path):
            try:
                found = self.object_at(path)
            except FileNotFoundError:
                pass
            else:
                return {"name": path, "type": "file", "size": found.size_bytes, "etag": found.etag}
        self.check_folder(path)
        return {"name": path, "type": "directory", "size": 0}

    def exists(self, path: str, *_: Any, **__: Any) -> bool:
        """Whether there is an object or a folder. Raises other errors than FileNotFoundError."""
        return self._type_of(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether there is an object."""
        return self._type_of(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a folder, and no object of that name."""
        return self._type_of(path) == "directory"

    def _type_of(self, path: str) -> Any:
        try:
            return self.info(path)["type"]
        except FileNotFoundError:
            return None

    def repeated(self, request: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """The result of a request, from any other thread. Errors that may pass are followed by another attempt."""
        for attempt in OBJECT.retrying(retry_if_not_exception_type(LASTING)):
            with attempt:
                return sync(self.loop, request, *arguments)
        raise AssertionError("unreachable: the last attempt returns or raises")
