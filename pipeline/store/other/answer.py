"""What the program asks of a store that is neither S3 nor a disk, and what the store answers."""

from dataclasses import dataclass

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
