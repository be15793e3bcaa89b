"""What can go wrong: an image (a row with a code) or the whole run (an exception with one clear line).

`ErrorCode` is on disk, in the column `error_code` of the table `images`: a code is never renamed, only added.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why an image failed. The value is what stands in the table."""

    # read
    NOT_FOUND = "not_found"  # listed by the plan, gone when it was read
    ACCESS_DENIED = "access_denied"  # the storage refused the read
    READ_FAILED = "read_failed"  # the storage failed or timed out, after all retries
    CORRUPT_IN_TRANSIT = "corrupt_in_transit"  # bytes do not match the planned length or ETag, after all retries
    CHANGED = "changed"  # the object was replaced after it was planned
    # decode
    DECODE_FAILED = "decode_failed"  # an image format, but these bytes do not decode
    TOO_LARGE = "too_large"  # more pixels than --max-image-pixels; refused before decoding
    UNSUPPORTED = "unsupported"  # not an image, or of a kind whose pixel values have no defined range
    # model
    INFERENCE_FAILED = "inference_failed"  # the model raised on this image alone
    # any of them
    TIMED_OUT = "timed_out"  # decoding or segmenting it, alone in a process, did not end in time
    CRASHED_WORKER = "crashed_worker"  # decoding or segmenting it, alone in a process, killed that process


# Failures of the store, not of the image: the next run tries these images again unasked.
TRANSIENT = frozenset(
    (
        ErrorCode.NOT_FOUND,
        ErrorCode.ACCESS_DENIED,
        ErrorCode.READ_FAILED,
        ErrorCode.CORRUPT_IN_TRANSIT,
        ErrorCode.CHANGED,
    )
)


class ImageError(Exception):
    """One image cannot be segmented; becomes its row in `images`."""

    def __init__(self, code: ErrorCode, message: str):
        super().__init__(code, message)  # both, so that it survives pickling between Ray workers
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


class RunError(Exception):
    """The run cannot start or go on; the message is one line that names the thing and what to do. Exit code 2."""


class StoreUnavailableError(RunError):
    """A store did not answer; it may later. Workers try again, the driver says so and stops."""


class BrokenRunError(Exception):
    """The run started and broke; what it committed stays, and the same command goes on. Exit code 1."""


class InvalidResultError(Exception):
    """A computed row breaks an invariant of the tables: a bug of ours, so the run stops rather than write it."""
