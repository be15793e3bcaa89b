"""Shard -> encoded bytes, checked against the plan.

A failed read becomes a row, not an exception. If all images of a shard fail, the store is to blame, and the run breaks.
There is one exception, if other images of the run can be read: where access to these images is denied, their prefix is
archived or forbidden; where they lie on the web, their server is gone. Each of these images becomes a failed row.
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from tenacity import retry_if_not_exception_type

from pipeline.errors import ErrorCode, ImageError, StoreUnavailableError
from pipeline.guard.watchdog import TRIED_AGAIN, start_watchdog, watch
from pipeline.input_spec import InputSpec
from pipeline.inputs.reads import ImageReader, ListedImage, ReadImage, one_request_each
from pipeline.inputs.verified import LASTING, MAX_OBJECT_BYTES, READ_SHARE, ChangedError, CorruptError
from pipeline.schema import FETCHED, LISTED, no_shard, pack_shard, unpack_shard
from pipeline.store.filesystem import check_visible, is_web, one_line
from pipeline.store.objects import TooManyBytesError
from pipeline.store.retries import IMAGE
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.in_flight import Tell, tell_nobody
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.metrics import READ_BYTES, count_shard

READ_THREADS = 16  # an object of 100 KB takes 20-50 ms from S3, so this many threads read 300-800 images/s
# Of a Parquet file, each up to its whole column of images in memory; each is one large request or a few.
_ROW_GROUPS_AT_A_TIME = 2
# If at least this many images all fail with one of these codes, the images are not the cause, but expired credentials
# or a lost network. Written as rows, these failures would be thousands in a run that looks finished.
_STORE_FAILED = frozenset((ErrorCode.ACCESS_DENIED, ErrorCode.READ_FAILED))
_SYSTEMIC_IMAGES = 8


class FetchImages:
    """CPU actor: adds `data` (encoded bytes) to every image of a shard, or an error code and message."""

    def __init__(
        self,
        spec: InputSpec,
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
        self.reader = ImageReader(spec)
        self.step_timeout = step_timeout
        self.tell = tell
        self.elsewhere = elsewhere
        self.threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fetch")
        self.row_group_threads = ThreadPoolExecutor(_ROW_GROUPS_AT_A_TIME, thread_name_prefix="row groups")
        if watched:
            start_watchdog(step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        self._check_visible()
        shard, planned = unpack_shard(row)
        images = [ListedImage(**image) for image in planned.select(LISTED.names).to_pylist()]
        reasons = planned["reason"].to_pylist()
        began, costs = time.monotonic(), Costs()
        with self.tell(shard, "reading", images[0].image_key, costs) as stops, costs.of_process("read"):
            if stops:
                return no_shard(FETCHED)
            # Nothing is read of an image that is removed from the input: only its row is written.
            there = [image for image, reason in zip(images, reasons, strict=True) if reason != "removed"]
            found = iter(self.fetch_all(there))
        results = [None if reason == "removed" else next(found) for reason in reasons]
        # An image that failed in an earlier run says nothing about the store if it fails again.
        telling = [r for r, why in zip(results, reasons, strict=True) if why not in ("removed", "retry")]
        self._check_store(shard, telling, are_on_web=all(is_web(image.object) for image in there))
        _count(results, time.monotonic() - began, costs)
        return pack_shard(shard, _fetched(planned, results), costs=costs.seconds)

    def _check_visible(self) -> None:
        """RunError if an input is a local folder that this machine does not have. The driver alone reads lists."""
        for source in () if self.reader.spec.names_its_images else self.reader.spec.sources:
            check_visible(*self.reader.place(source.uri), "--input")

    def fetch_all(self, images: Sequence[ListedImage]) -> list[ReadImage | ImageError]:
        """The result of each image, in order: see `fetch`."""
        groups = one_request_each([image for image in images if image.fault is None])
        results: dict[str, ReadImage | ImageError] = {}
        reads = [
            (self.threads if group[0].row_group is None else self.row_group_threads).submit(self.fetch, group)
            for group in groups
        ]
        for group, read in zip(groups, reads, strict=True):
            results.update(zip((image.image_key for image in group), read.result(), strict=True))
        return [_known(image) or results[image.image_key] for image in images]

    def fetch(self, group: Sequence[ListedImage]) -> list[ReadImage | ImageError]:
        """The images of one group of `one_request_each`: the bytes of each, or the error if there are none.

        Error codes: too_large, not_found, access_denied, changed (replaced since the plan), corrupt_in_transit,
        read_failed; damaged_container.
        """
        if len(group) == 1 and (group[0].size_bytes or 0) > MAX_OBJECT_BYTES:
            return [
                ImageError(
                    ErrorCode.TOO_LARGE,
                    f"the object has {group[0].size_bytes} bytes; the limit is {MAX_OBJECT_BYTES}",
                )
            ]
        with watch("reading", group[0].image_key):
            try:
                for attempt in IMAGE.retrying(
                    retry_if_not_exception_type((*LASTING, TooManyBytesError)),
                    give_up_after=READ_SHARE * self.step_timeout,
                ):
                    with attempt:
                        return self.reader.read(group, attempt.retry_state.attempt_number, self.step_timeout)
            except Exception as error:
                return [_error_of(error)] * len(group)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _check_store(
        self, shard: int, results: Sequence[ReadImage | ImageError | None], are_on_web: bool = False
    ) -> None:
        """Raise StoreUnavailableError if the store failed, and not only some of its objects."""
        errors = [result for result in results if isinstance(result, ImageError) and result.code in _STORE_FAILED]
        if len(results) < _SYSTEMIC_IMAGES or len(errors) < len(results):
            return
        are_denied = all(error.code == ErrorCode.ACCESS_DENIED for error in errors)
        if (are_denied or are_on_web) and self._can_read_elsewhere():
            return
        raise StoreUnavailableError(
            f"--input: none of the {len(results)} images of shard {shard} could be read, so the cause is the "
            f"store, the network or the credentials; the first error: {errors[0]}"
        )

    def _can_read_elsewhere(self) -> bool:
        smallest_first = sorted(self.elsewhere, key=lambda one: one.size_bytes or 0)
        return any(isinstance(self.fetch([image])[0], ReadImage) for image in smallest_first)


def _error_of(error: Exception) -> ImageError:
    match error:
        case FileNotFoundError():
            return ImageError(ErrorCode.NOT_FOUND, "the object was listed but no longer exists")
        case PermissionError():
            return ImageError(ErrorCode.ACCESS_DENIED, one_line(error))
        case TooManyBytesError():
            return ImageError(ErrorCode.TOO_LARGE, one_line(error))
        case ChangedError():
            return ImageError(ErrorCode.CHANGED, one_line(error))
        case CorruptError():
            return ImageError(ErrorCode.CORRUPT_IN_TRANSIT, one_line(error))
    return ImageError(ErrorCode.READ_FAILED, f"{type(error).__name__}: {one_line(error)}")


def _known(image: ListedImage) -> ImageError | None:
    """What the listing found wrong with the image."""
    if image.fault is None:
        return None
    code, _, message = image.fault.partition(": ")
    return ImageError(ErrorCode(code), message)


def _fetched(planned: pa.Table, results: Sequence[ReadImage | ImageError | None]) -> pa.Table:
    """The shard with the bytes or the error of each image. Where there are bytes, ETag and size are theirs."""
    errors = [result if isinstance(result, ImageError) else None for result in results]
    read = [result if isinstance(result, ReadImage) else None for result in results]
    listed = zip(planned["etag"].to_pylist(), planned["size_bytes"].to_pylist(), read, strict=True)
    etags, sizes = zip(*((r.etag, len(r.data)) if r else (etag, size) for etag, size, r in listed), strict=True)
    columns = {
        **{name: planned[name] for name in ("image_key", "reason", "attributes")},
        "etag": pa.array(etags, pa.string()),
        "size_bytes": pa.array(sizes, pa.int64()),
        "error_code": pa.array([error and error.code.value for error in errors], pa.string()),
        "error_message": pa.array([error and error.message for error in errors], pa.string()),
        "data": _joined([r.data if r else None for r in read]),
    }
    return pa.Table.from_arrays([columns[name] for name in FETCHED.names], schema=FETCHED)


def _joined(values: Sequence[bytes | None]) -> pa.LargeBinaryArray:
    """The values as an array that takes their bytes once; pyarrow's own way doubles a buffer until all have room."""
    offsets = np.cumsum([0, *(len(value or b"") for value in values)], dtype=np.int64)
    is_valid = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]  # bits, as of a bitmap
    data = pa.py_buffer(b"".join(value for value in values if value is not None))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), [is_valid, pa.py_buffer(offsets), data])


def _count(results: Sequence[ReadImage | ImageError | None], elapsed_seconds: float, costs: Costs) -> None:
    outcomes = Counter(
        "removed" if result is None else result.code.value if isinstance(result, ImageError) else "ok"
        for result in results
    )
    READ_BYTES.add(sum(len(result.data) for result in results if isinstance(result, ReadImage)))
    count_shard("reading", outcomes, elapsed_seconds, costs.seconds)
