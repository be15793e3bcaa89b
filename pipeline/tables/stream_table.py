"""Stream a snapshot of a published table as record batches, file by file, for any number of files."""

import logging
import re
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from tenacity import RetryCallState, Retrying, retry_if_exception_type, retry_if_not_exception_type

from m2f_core.config.fields import excerpt
from pipeline.errors import RunError
from pipeline.layout import Output, parts_folder
from pipeline.look_ahead import look_ahead
from pipeline.schema import ADDED_COLUMNS, ALL_TABLES
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
    output: Output,
    table: str,
    snapshot: DeltaTable,
    columns: Sequence[str],
    below: Sequence[str] = (),
    run_id: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """The columns of a snapshot in no particular order. `below` and `run_id` are as in `load_current`, but only skip
    files.

    Files are read through our own file system and threads, so that credentials are renewed while a reader takes hours.
    The library's to_pyarrow_dataset is faster, but it takes 28 KB per file, its credentials expire, and a program that
    drops the stream half-way and exits may hang: see docs/decisions.md.

    Raises RunError if the table requires features of readers that this reader lacks, and an error of STORE_ERRORS or an
    ArrowException if a file cannot be read.
    """
    among = None if run_id is None else files_of_run(output, table, snapshot, run_id)
    batches = stream_files(output, table, snapshot, columns, below, among)
    return (batch for _, batch in batches)


def stream_files(
    output: Output,
    table: str,
    snapshot: DeltaTable,
    columns: Sequence[str],
    below: Sequence[str] = (),
    among: Container[str] | None = None,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Like `stream_table`, with the path in the table of each batch's file; `among`: only of these files."""
    check_table(output, table, snapshot)
    schema = columns_of(table, columns)

    def of_table(file: pq.ParquetFile, path: str) -> pq.ParquetFile:
        if missing := set(columns) - ADDED_COLUMNS - set(file.schema_arrow.names):
            raise RunError(f"{path} of the table {table} below {output.uri} has no column {min(missing)}")
        return file

    def as_wanted(rows: pa.Table) -> pa.Table:
        """The wanted columns. A column that was added to the schema after the file was written is null."""
        arrays = [
            rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
            for field in schema
        ]
        # Files that another writer compacted may spell strings and lists differently.
        return pa.table(arrays, names=schema.names).cast(schema)

    def there(file: pq.ParquetFile) -> list[str]:
        return [name for name in columns if name in file.schema_arrow.names]

    def read_whole(path: str, size: int) -> tuple[str, list[pa.RecordBatch]]:
        return path, retrying((*STORE_ERRORS, pa.ArrowException), but=FileNotFoundError)(read_file, path, size)

    def read_file(path: str, size: int) -> list[pa.RecordBatch]:
        data = read_once(output.filesystem, output.inside(output.at(f"{table}/{path}")), size)
        if len(data) != size:
            raise OSError(f"{path} has {len(data)} bytes, but the log of the table says {size}")
        file = of_table(pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True), path)
        return as_wanted(file.read(columns=there(file), use_threads=False)).to_batches()

    def read_by_row_group(path: str, size: int) -> Iterator[pa.RecordBatch]:
        with output.filesystem.open(output.inside(output.at(f"{table}/{path}")), "rb") as opened:
            if opened.size != size:
                raise OSError(f"{path} has {opened.size} bytes, but the log of the table says {size}")
            file = of_table(pq.ParquetFile(opened, pre_buffer=False, page_checksum_verification=True), path)
            for batch in file.iter_batches(_BATCH_ROWS, columns=there(file), use_threads=False):
                yield from as_wanted(pa.Table.from_batches([batch])).to_batches()

    def batches() -> Iterator[tuple[str, pa.RecordBatch]]:
        large: list[tuple[str, int]] = []

        def small() -> Iterator[tuple[str, int]]:
            for path, size in _files(output, table, snapshot, below):
                if among is not None and path not in among:
                    continue
                if size > _LARGE_BYTES:
                    large.append((path, size))
                else:
                    yield path, size

        pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="published")
        try:
            for path, read in look_ahead(
                lambda file: pool.submit(read_whole, *file),
                small(),
                _READ_THREADS,
                size=itemgetter(1),
                most_size=_LARGE_BYTES,
            ):
                yield from ((path, batch) for batch in read)
            for path, size in large:
                yield from ((path, batch) for batch in read_by_row_group(path, size))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return batches()


def columns_of(table: str, columns: Sequence[str]) -> pa.Schema:
    """The schema of these columns of a table."""
    return pa.schema([ALL_TABLES[table].field(name) for name in columns])


def check_table(output: Output, table: str, snapshot: DeltaTable) -> None:
    """Raise RunError if the log describes a table that this program cannot read or append to, or not this table.

    This program writes neither partitions nor deletion vectors. A reader that overlooked them would see other rows.
    """
    name, protocol, metadata = f"the table {table} below {output.uri}", snapshot.protocol(), snapshot.metadata()
    if protocol.reader_features or protocol.min_reader_version > 1:
        features = ", ".join(protocol.reader_features or [f"reader version {protocol.min_reader_version}"])
        raise RunError(f"{name} requires the Delta features {features}, which this program does not support")
    if metadata.partition_columns:
        raise RunError(
            f"{name} is divided by {excerpt(metadata.partition_columns)}, which this program does not support"
        )
    there = pa.schema(snapshot.schema())
    for field in ALL_TABLES[table]:
        place = there.get_field_index(field.name)
        if place < 0 and field.name in ADDED_COLUMNS:
            continue  # the next publication adds the column
        if place < 0 or not can_hold(there.field(place).type, field.type):
            found = "is missing" if place < 0 else f"has the type {there.field(place).type}, not {field.type}"
            raise RunError(f"{name} is not a table of this program: its column {field.name} {found}")


def can_hold(there: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of the table has the type of our column; strings and lists have several spellings."""
    try:
        pa.nulls(0, there).cast(wanted)
    except pa.ArrowException:
        return False
    return _kind(there) == _kind(wanted)


def _kind(of: pa.DataType) -> str:
    if pa.types.is_struct(of):
        return f"struct of {', '.join(field.name for field in of)}"
    for name in ("string", "list", "timestamp"):
        if re.search(rf"^(large_)?{name}(_view)?\b", str(of)):
            return name
    return str(of)


def check_files(output: Output, table: str, snapshot: DeltaTable) -> pa.Table:
    """The files of a snapshot, as the log names them. RunError if one does not lie in the folder of the table."""
    files = pa.table(snapshot.get_add_actions(flatten=True))
    for path, size in zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
        names = {path, unquote(path)}  # whether a reader takes %2e for a dot depends on the reader
        inside = all(name and name not in (".", "..") for path in names for name in path.split("/"))
        is_plain = all(path.isprintable() and not {":", "\\"} & set(path) for path in names)
        if not inside or not is_plain or size is None or size < 0:
            raise RunError(
                f"the log of the table {table} below {output.uri} names the file {excerpt(path)} of {size} bytes, "
                "which does not lie in the folder of the table: somebody has changed the log"
            )
    return files


def files_of_run(output: Output, table: str, snapshot: DeltaTable, run_id: str) -> set[str]:
    """The paths in the table of the files of a snapshot that may hold rows of the run."""
    folder = parts_folder(table, run_id).removeprefix(f"{table}/")
    # Files that jobs/tidy.py or a compaction has merged lie beside the folders of runs, and may hold rows of any run.
    paths = check_files(output, table, snapshot)["path"].to_pylist()
    return {path for path in paths if path.startswith(f"{folder}/") or not path.startswith("run=")}


def _files(output: Output, table: str, snapshot: DeltaTable, below: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(path in the table, size in bytes) of the files of a snapshot that may hold keys of one of the inputs `below`."""
    files = check_files(output, table, snapshot)
    if below and "min.image_key" in files.column_names:
        # Keys below a folder form one range, because "0" is the character after "/". A file without statistics may hold
        # any key.
        wanted = pa.chunked_array([pa.repeat(pa.scalar(False), files.num_rows)])
        for folder in below:
            too_low = pc.less(files["max.image_key"], folder[:-1])
            too_high = pc.greater_equal(files["min.image_key"], folder[:-1] + "0")
            wanted = pc.or_(wanted, pc.invert(pc.fill_null(pc.or_kleene(too_low, too_high), False)))
        files = files.filter(wanted)
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
