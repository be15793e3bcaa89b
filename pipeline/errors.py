"""Errors of one image (a row with an error code) and errors of the whole run (an exception with one clear line).

The column `error_code` of the table `images` stores the values of `ErrorCode`: add codes, but never rename one.
"""

from enum import StrEnum
from typing import Literal

# How a job ends. A night that finished may have had nothing to do: see nights/record.py.
JobEnd = Literal["finished", "refused", "stopped", "broke"]


class ErrorCode(StrEnum):
    """Why an image failed. The table stores the value."""

    # read
    NOT_FOUND = "not_found"  # in the plan, but gone when it was to be read
    ACCESS_DENIED = "access_denied"  # the storage refused the read
    READ_FAILED = "read_failed"  # the storage failed or timed out, after all retries
    CORRUPT_IN_TRANSIT = "corrupt_in_transit"  # bytes do not match the planned length or ETag, after all retries
    CHANGED = "changed"  # the object was replaced after it was planned
    DAMAGED_CONTAINER = "damaged_container"  # the tar or Parquet file does not hold the whole image, or cannot be read
    # decode
    DECODE_FAILED = "decode_failed"  # the format is an image format, but the bytes do not decode
    TOO_LARGE = "too_large"  # more pixels than --max-image-pixels, or another cost; refused before decoding
    UNSUPPORTED = "unsupported"  # not an image, or an image whose pixel values have no defined range
    # model
    INFERENCE_FAILED = "inference_failed"  # the model raised on this image alone
    # any stage
    TIMED_OUT = "timed_out"  # decoding or segmenting the image, alone in a process, did not end in time
    CRASHED_WORKER = "crashed_worker"  # decoding or segmenting the image, alone in a process, killed that process


# Failures of the store, not of the image: the next run tries these images again, without --mode retry-failed.
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
    """One image cannot be segmented; the error becomes the row of that image in `images`."""

    def __init__(self, code: ErrorCode, message: str):
        super().__init__(code, message)  # both arguments, so that the error survives pickling between Ray workers
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


class RunError(Exception):
    """The run cannot start or continue. The message is one line that names the cause and what to do. Exit code 2."""


class DamagedRecordError(RunError):
    """An object of the output is not what this program writes there: somebody has changed it, or a disk has."""


class StoreUnavailableError(RunError):
    """A store did not answer but may answer later. Workers try again; the driver reports the error and stops."""


class BrokenRunError(Exception):
    """The run started and broke. Committed results are kept, and the same command continues the run. Exit code 1."""


class LimitReachedError(Exception):
    """The run stopped between shards, because --deadline or --max-cost said so. The finished shards are committed and
    published, and the same command continues the run. Exit code 3."""


class HeldByGateError(Exception):
    """The run is done, but --gate does not let it be published. Receipts are kept. Exit code 3."""


class InvalidResultError(Exception):
    """A computed row breaks an invariant of the tables. This is a bug, so the run stops instead of writing the row."""
