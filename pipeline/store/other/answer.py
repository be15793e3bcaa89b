"""What the program asks of a store that is neither S3 nor a disk, and what the store answers."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

# Errors that another attempt does not change.
LASTING = (FileNotFoundError, PermissionError)

Part = tuple[int, int]  # first byte, number of bytes (at least one)


class NoPartsError(OSError):
    """The store sends whole objects only. Another attempt does not change that."""


class PassingError(OSError):
    """The store failed in a way that may pass. `retry_cause` is the label of the error in m2f_retries_total."""

    def __init__(self, text: str, retry_cause: str):
        super().__init__(text)
        self.retry_cause = retry_cause


def error_of(status: int, text: str) -> OSError:
    """The error of an answer with this status of HTTP, which is 400 or more."""
    if status in (404, 410):
        return FileNotFoundError(text)
    if status in (429, 503):
        return PassingError(text, "throttled")
    if status in (408, 425):
        return PassingError(text, "timed_out")
    return PermissionError(text) if status < 500 else PassingError(text, "server_error")


@dataclass(frozen=True)
class Answer:
    """An object as a store described it when it sent `data`, or a part of the object.

    etag: or what replaces it; "" if the store names no version.
    data: without bytes if the object has another ETag than the one asked for.
    is_whole: whether `data` agree with the checksum of the store; True if there is none.
    """

    etag: str
    size_bytes: int | None
    data: bytes
    is_whole: bool = True


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
    """A file system of fsspec whose objects are listed and read by requests of our own."""

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
