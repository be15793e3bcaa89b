"""Read a file of a table in batches; a file that is lost, changed or not of this table is a finding."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreUnavailableError
from pipeline.layout import Output
from pipeline.schema import ADDED_COLUMNS, SCHEMA_VERSION, TABLES
from pipeline.store.filesystem import STORE_ERRORS, one_line, store_errors_as
from pipeline.store.objects import TooManyBytesError, read_object
from pipeline.tables.stream_table import can_hold
from pipeline.verify.facts import TableFile
from pipeline.verify.findings import Findings, Kind

_BATCH_ROWS = 16_384
_WHOLE_BYTES = 64 * 2**20  # larger files are read a row group at a time
_MORE_BYTES = 2**20  # a file may be larger than it should be, and still say what has changed in it
# Read as numbers and a list of texts: many rows share a text.
_REPEATED: dict[str, list[str]] = {"images": [], "segments": ["image_key", "category_name", "run_id"]}


class FileRows:
    """Batches with all columns of the table, in the order of the rows; texts that repeat as dictionaries.

    `are_all` says afterwards whether these were all rows of the file. RunError if the store does not answer.
    """

    def __init__(self, output: Output, file: TableFile, findings: Findings):
        self.output, self.file, self.findings = output, file, findings
        self.are_all = False

    def __iter__(self) -> Iterator[pa.Table]:
        source, is_as_written = open_file(self.output, self.file, self.findings)
        if source is None:
            self.are_all = self.file.may_lack
            return
        try:
            opened = pq.ParquetFile(source)
            if _has_columns(opened, self.file, self.findings):
                yield from _batches(source, opened, self.file, self.findings, checksums=not is_as_written)
                self.are_all = True
        except (pa.ArrowException, OSError, ValueError) as error:  # OSError: the checksum of a page
            _add(self.findings, Kind.UNREADABLE, "file", one_line(error), self.file)


def _batches(
    source: pa.NativeFile, opened: pq.ParquetFile, file: TableFile, findings: Findings, *, checksums: bool
) -> Iterator[pa.Table]:
    """`checksums`: of pages; they say nothing new of a file whose SHA-256 is the one in its receipt."""
    schema, num_rows = TABLES[file.table], opened.metadata.num_rows
    if file.num_rows not in (None, num_rows):
        _add(findings, Kind.NUM_ROWS, "file", f"{num_rows} rows, not {file.num_rows}", file)
    reader = pq.ParquetFile(
        source,
        metadata=opened.metadata,
        read_dictionary=_REPEATED[file.table],
        page_checksum_verification=checksums,
        pre_buffer=False,
    )
    of_file = set(opened.schema_arrow.names)
    there = [name for name in schema.names if name in of_file]
    for batch in reader.iter_batches(_BATCH_ROWS, columns=there, use_threads=False):
        yield _as_table(batch, file.table)


def _as_table(batch: pa.RecordBatch, table: str) -> pa.Table:
    """The batch with the columns of the schema; a column that was added later is null."""
    arrays = []
    for field in TABLES[table]:
        place = batch.schema.get_field_index(field.name)
        array = pa.nulls(len(batch), field.type) if place < 0 else batch.column(place)
        if pa.types.is_dictionary(array.type) and array.type != pa.dictionary(pa.int32(), pa.string()):
            array = array.cast(array.type.value_type)
        if field.name in _REPEATED[table]:
            arrays.append(array if pa.types.is_dictionary(array.type) else array.cast(field.type).dictionary_encode())
        else:
            arrays.append(array.cast(field.type))
    return pa.table(arrays, names=TABLES[table].names)


def open_file(output: Output, file: TableFile, findings: Findings) -> tuple[pa.NativeFile | None, bool]:
    """The file, if it is there, and whether its SHA-256 is the one in its receipt."""
    place = output.inside(output.at(file.path))
    try:
        if file.size_bytes > _WHOLE_BYTES:
            opened = output.filesystem.open(place, "rb")
            size, source = opened.size, pa.PythonFile(_StoreFile(opened, f"{output.name}: {file.path}"), "r")
        else:
            data = read_object(output.filesystem, place, 2 * file.size_bytes + _MORE_BYTES)
            size, source = len(data), pa.BufferReader(data)
    except (FileNotFoundError, NotADirectoryError):
        if not file.may_lack:
            _add(findings, Kind.LOST, "file", "it does not exist", file)
        return None, False
    except TooManyBytesError:
        _add(findings, Kind.BYTES, "size_bytes", f"it has far more than {file.size_bytes} bytes", file)
        return None, False
    except STORE_ERRORS as error:
        raise StoreUnavailableError(f"{output.name}: {file.path} cannot be read: {one_line(error)}") from None
    if size != file.size_bytes:
        _add(findings, Kind.BYTES, "size_bytes", f"it has {size} bytes, not {file.size_bytes}", file)
    is_as_written = file.proof is not None and _sha256(source) == file.proof.sha256
    if file.proof is not None and not is_as_written:
        _add(findings, Kind.BYTES, "sha256", "its SHA-256 is not the one in its receipt", file)
    return source, is_as_written


class _StoreFile:
    """A file that is open in a store. A failure of the store is no fault of the file, so it is another error."""

    def __init__(self, file: Any, name: str):
        self.file, self.name = file, name
        self.tell, self.close = file.tell, file.close

    @property
    def closed(self) -> bool:
        return bool(self.file.closed)

    def read(self, size: int = -1) -> bytes:
        with store_errors_as(StoreUnavailableError, f"{self.name} cannot be read"):
            data: bytes = self.file.read(size)
            return data

    def seek(self, place: int, whence: int = 0) -> int:
        with store_errors_as(StoreUnavailableError, f"{self.name} cannot be read"):
            return int(self.file.seek(place, whence))


def _sha256(source: pa.NativeFile) -> str:
    digest = hashlib.sha256()
    while piece := source.read_buffer(2**24):
        digest.update(piece)
    source.seek(0)
    return digest.hexdigest()


def _has_columns(opened: pq.ParquetFile, file: TableFile, findings: Findings) -> bool:
    """Whether the rows can be checked. A part has our schema to the letter; others may spell its types otherwise."""
    there, wanted = opened.schema_arrow, TABLES[file.table]
    names = [name for name in wanted.names if name in there.names or name not in ADDED_COLUMNS]
    is_ours = there.equals(pa.schema([wanted.field(name) for name in names]))
    if file.proof is not None:
        if not is_ours:
            differing = [n for n in names if n not in there.names or there.field(n) != wanted.field(n)]
            _add(findings, Kind.COLUMNS, ", ".join(differing) or "columns", f"it has {', '.join(there.names)}", file)
        version = (there.metadata or {}).get(b"m2f_schema_version", b"none").decode(errors="replace")
        if version != str(SCHEMA_VERSION):
            _add(findings, Kind.COLUMNS, "m2f_schema_version", f"{version}, not {SCHEMA_VERSION}", file)
    if is_ours:
        return True
    lacking = [n for n in names if n not in there.names or not can_hold(there.field(n).type, wanted.field(n).type)]
    if lacking and file.proof is None:
        _add(findings, Kind.COLUMNS, ", ".join(lacking), f"it has {', '.join(there.names)}", file)
    return not lacking


def _add(findings: Findings, kind: Kind, field: str, found: str, file: TableFile) -> None:
    run_id = "" if file.proof is None else file.proof.run_id
    findings.add(kind, field, found, run_id=run_id, file=file.path)
