"""Shard -> encoded bytes, checked against the plan.

A failed read becomes a row, not an exception. If all images of a shard fail, the store is to blame, and the run breaks.
There is one exception: if access to these images is denied while other images of the run can be read, their prefix is
archived or forbidden, and each of these images becomes a failed row.
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from tenacity import retry_if_not_exception_type

from pipeline.errors import ErrorCode, ImageError, StoreUnavailableError
from pipeline.guard.watchdog import TRIED_AGAIN, start_watchdog, watch
from pipeline.inputs.listing import ListedImage
from pipeline.inputs.verified import READ_SHARE, ChangedError, CorruptError, read_verified, request_seconds
from pipeline.schema import FETCHED, pack_shard, unpack_shard
from pipeline.store.filesystem import check_visible, one_line, open_filesystem, path_of
from pipeline.store.retries import IMAGE
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.in_flight import Tell, tell_nobody
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.metrics import READ_BYTES, count_shard

READ_THREADS = 16  # an object of 100 KB takes 20-50 ms from S3, so this many threads read 300-800 images/s
# A larger object is not an image: a film or an archive below the prefix would fill the worker's memory.
MAX_OBJECT_BYTES = 512 * 2**20
# If at least this many images all fail with one of these codes, the images are not the cause, but expired credentials
# or a lost network. Written as rows, these failures would be thousands in a run that looks finished.
_STORE_FAILED = frozenset((ErrorCode.ACCESS_DENIED, ErrorCode.READ_FAILED))
_SYSTEMIC_IMAGES = 8


class FetchImages:
    """CPU actor: adds `data` (encoded bytes) to every image of a shard, or an error code and message."""

    def __init__(
        self,
        input_uri: str,
        step_timeout: float = 600.0,
        watched: bool = False,
        tell: Tell = tell_nobody,
        elsewhere: Sequence[ListedImage] = (),
        run_id: str = "",
    ):
        """`step_timeout` is in seconds. `watched`: end this process if a read hangs for longer than `step_timeout`.

        `elsewhere` are images from all over the run, to be tried if access to all images of a shard is denied.
        `run_id` is the label of the metrics.
        """
        label_run(run_id)
        self.filesystem, self.root = open_filesystem(input_uri)
        self.step_timeout = step_timeout
        self.tell = tell
        self.elsewhere = elsewhere
        self.threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fetch")
        if watched:
            start_watchdog(step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        check_visible(self.filesystem, self.root, "--input")
        shard, images = unpack_shard(row)
        planned = images.select(["image_key", "etag", "size_bytes", "reason"]).to_pylist()
        began, costs = time.monotonic(), Costs()
        with self.tell(shard, "reading", planned[0]["image_key"], costs), costs.of_process("read"):
            results = list(self.threads.map(lambda image: self._fetch_planned(**image), planned))
        # An image that failed in an earlier run says nothing about the store if it fails again.
        reasons = [image["reason"] for image in planned]
        telling = [r for r, why in zip(results, reasons, strict=True) if why not in ("removed", "retry")]
        self._check_store(shard, telling)
        _count(results, time.monotonic() - began, costs)
        errors = [result if isinstance(result, ImageError) else None for result in results]
        fetched = pa.Table.from_arrays(
            [
                *images.columns,
                pa.array([error and error.code.value for error in errors], pa.string()),
                pa.array([error and error.message for error in errors], pa.string()),
                pa.array([None if isinstance(r, ImageError) else r for r in results], pa.large_binary()),
            ],
            schema=FETCHED,
        )
        return pack_shard(shard, fetched, costs=costs.seconds)

    def _fetch_planned(self, image_key: str, etag: str, size_bytes: int, reason: str) -> bytes | ImageError | None:
        """None for an image that is removed from the input, because only its row is written."""
        if reason == "removed":
            return None
        with watch("reading", image_key):
            return self.fetch(image_key, etag, size_bytes)

    def fetch(self, image_key: str, etag: str, size_bytes: int) -> bytes | ImageError:
        """The bytes of the object, or the error if there are none.

        Error codes: too_large, not_found, access_denied, changed (replaced since the plan), corrupt_in_transit,
        read_failed.
        """
        if size_bytes > MAX_OBJECT_BYTES:
            return ImageError(
                ErrorCode.TOO_LARGE, f"the object has {size_bytes} bytes; the limit is {MAX_OBJECT_BYTES}"
            )
        try:
            for attempt in IMAGE.retrying(
                retry_if_not_exception_type((FileNotFoundError, PermissionError, ChangedError)),
                give_up_after=READ_SHARE * self.step_timeout,
            ):
                with attempt:
                    path = path_of(self.filesystem, image_key)
                    seconds = request_seconds(size_bytes, attempt.retry_state.attempt_number, self.step_timeout)
                    return read_verified(self.filesystem, path, etag, size_bytes, seconds)
        except FileNotFoundError:
            return ImageError(ErrorCode.NOT_FOUND, "the object was listed but no longer exists")
        except PermissionError as error:
            return ImageError(ErrorCode.ACCESS_DENIED, one_line(error))
        except ChangedError as error:
            return ImageError(ErrorCode.CHANGED, one_line(error))
        except CorruptError as error:
            return ImageError(ErrorCode.CORRUPT_IN_TRANSIT, one_line(error))
        except Exception as error:
            return ImageError(ErrorCode.READ_FAILED, f"{type(error).__name__}: {one_line(error)}")
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _check_store(self, shard: int, results: Sequence[bytes | ImageError | None]) -> None:
        """Raise StoreUnavailableError if the store failed, and not only some of its objects."""
        errors = [result for result in results if isinstance(result, ImageError) and result.code in _STORE_FAILED]
        if len(results) < _SYSTEMIC_IMAGES or len(errors) < len(results):
            return
        if all(error.code == ErrorCode.ACCESS_DENIED for error in errors) and self._can_read_elsewhere():
            return
        raise StoreUnavailableError(
            f"--input: none of the {len(results)} images of shard {shard} could be read, so the cause is the "
            f"store, the network or the credentials; the first error: {errors[0]}"
        )

    def _can_read_elsewhere(self) -> bool:
        for image in sorted(self.elsewhere, key=lambda one: one.size_bytes):
            with watch("reading", image.image_key):
                if isinstance(self.fetch(image.image_key, image.etag, image.size_bytes), bytes):
                    return True
        return False


def _count(results: Sequence[bytes | ImageError | None], elapsed_seconds: float, costs: Costs) -> None:
    outcomes = Counter(
        "removed" if result is None else result.code.value if isinstance(result, ImageError) else "ok"
        for result in results
    )
    READ_BYTES.add(sum(len(result) for result in results if isinstance(result, bytes)))
    count_shard("reading", outcomes, elapsed_seconds, costs.seconds)
