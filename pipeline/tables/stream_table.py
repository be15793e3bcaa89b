"""Stream a snapshot of a published table as record batches, file by file, for any number of files."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from tenacity import RetryCallState, Retrying, retry_if_exception_type, retry_if_not_exception_type

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.look_ahead import look_ahead
from pipeline.schema import TABLES
from pipeline.store.filesystem import STORE_ERRORS, one_line
from pipeline.store.objects import read_once
from pipeline.store.retries import TABLE_READ, last_error

logger = logging.getLogger(__name__)

# Parts of a nightly run are small: this many are read at a time, each as a whole. Compacted files are read one by one,
# a batch of rows at a time.
_READ_THREADS = 16
_LARGE_BYTES = 8 * 2**20  # limit of one small file, and of all being read; decoded they are about five times as large
_BATCH_ROWS = 16_384


def stream_table(
    output: Output, table: str, snapshot: DeltaTable, columns: Sequence[str], below: str = ""
) -> Iterator[pa.RecordBatch]:
    """The columns of a snapshot in no particular order. `below` is as in `load_current`, but only skips files.

    Files are read through our own file system and threads, so that credentials are renewed while a reader takes hours.
    The library's to_pyarrow_dataset is faster, but it takes 28 KB per file, its credentials expire, and a program that
    drops the stream half-way and exits may hang: see docs/decisions.md.

    Raises RunError if the table requires features of readers that this reader lacks, and an error of STORE_ERRORS or an
    ArrowException if a file cannot be read.
    """
    features = snapshot.protocol().reader_features
    if features:
        raise RunError(
            f"the table {table} below {output.uri} requires the Delta features {', '.join(features)}, which this "
            "program does not support"
        )
    schema = pa.schema([TABLES[table].field(name) for name in columns])

    def read_whole(path: str, size: int) -> list[pa.RecordBatch]:
        return retrying((*STORE_ERRORS, pa.ArrowException), but=FileNotFoundError)(read_file, path, size)

    def read_file(path: str, size: int) -> list[pa.RecordBatch]:
        data = read_once(output.filesystem, output.at(f"{table}/{path}"))
        if len(data) != size:
            raise OSError(f"{path} has {len(data)} bytes, but the log of the table says {size}")
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # Files that another writer compacted may spell strings and lists differently.
        return file.read(columns=list(columns), use_threads=False).select(columns).cast(schema).to_batches()

    def read_by_row_group(path: str) -> Iterator[pa.RecordBatch]:
        with output.filesystem.open(output.at(f"{table}/{path}"), "rb") as opened:
            file = pq.ParquetFile(opened, pre_buffer=False, page_checksum_verification=True)
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                yield batch.select(columns).cast(schema)

    def batches() -> Iterator[pa.RecordBatch]:
        large: list[str] = []

        def small() -> Iterator[tuple[str, int]]:
            for path, size in _files(snapshot, below):
                if size > _LARGE_BYTES:
                    large.append(path)
                else:
                    yield path, size

        pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="published")
        try:
            for read in look_ahead(
                lambda file: pool.submit(read_whole, *file),
                small(),
                _READ_THREADS,
                size=itemgetter(1),
                most_size=_LARGE_BYTES,
            ):
                yield from read
            for path in large:
                yield from read_by_row_group(path)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return batches()


def _files(snapshot: DeltaTable, below: str) -> Iterator[tuple[str, int]]:
    """(path in the table, size in bytes) of the files of a snapshot that may hold keys below `below`."""
    files = pa.table(snapshot.get_add_actions(flatten=True))
    if below and "min.image_key" in files.column_names:
        # Keys below a folder form one range, because "0" is the character after "/". A file without statistics may hold
        # any key.
        too_low = pc.less(files["max.image_key"], below[:-1])
        too_high = pc.greater_equal(files["min.image_key"], below[:-1] + "0")
        files = files.filter(pc.invert(pc.fill_null(pc.or_kleene(too_low, too_high), False)))
    yield from zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True)


def retrying(errors: tuple[type[Exception], ...], but: type[Exception] | None = None) -> Retrying:
    """An object that calls a function again, with pauses, while it raises one of `errors`; finally raises the last
    error.
    """
    retry = retry_if_exception_type(errors)
    return TABLE_READ.retrying(
        retry if but is None else retry & retry_if_not_exception_type(but), before_sleep=_log_retry
    )


def _log_retry(state: RetryCallState) -> None:
    error = last_error(state)
    logger.warning("reading a published table failed and is retried: %s", error and plain(error))


def plain(error: BaseException) -> str:
    """The text of `error` in one line, without the tree marks of Rust's reports."""
    return one_line(error).replace("↳ ", "").replace("↳", "")
