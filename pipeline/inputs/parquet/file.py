"""Parts of a Parquet file: its footer, and the chunks of some columns of one row group. Nothing else is read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.parquet.pages import page_sizes
from pipeline.store.filesystem import one_line

# Read at first: it holds the whole footer of nearly every file.
TAIL_BYTES = 64 * 2**10
_MOST_FOOTER_BYTES = 16 * 2**20  # 1,000 row groups of 20 columns have 2 MiB
_MOST_ENTRIES = 1_000_000  # of one list in a footer: row groups, columns, schema elements
_MOST_DEPTH = 32  # structs in structs
# The rows of a file become rows of the listing, which are in memory together.
MOST_ROWS = 2**20
# Of the rows that are decoded together; each value may be as large as the whole dictionary of its column chunk.
_MOST_BATCH_BYTES = 64 * 2**20
_PADDING = 100  # bytes after a chunk that pyarrow also reads of files by old versions of parquet-mr (PARQUET-816)

_MAGIC, _MAGIC_ENCRYPTED = b"PAR1", b"PARE"

# (first byte, number of bytes) -> the bytes of the file. Raises what pipeline.inputs.verified.read_range raises.
ReadRange = Callable[[int, int], bytes]


class DamagedFileError(ValueError):
    """The bytes are not those of a Parquet file that can be read, or claim more than is read."""


class TooLargeError(DamagedFileError):
    """A part of the file is larger than what is read of such a part."""


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Around code that decodes bytes and asks no store: any error there means that the bytes are damaged."""
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # pyarrow raises OSError too, as stores do, and Python's date types some more
        raise DamagedFileError(f"{what}: {one_line(error)}") from None


@dataclass(frozen=True)
class Chunk:
    """Where the values of one leaf column of one row group lie."""

    path: str  # the names from the top column to the leaf, joined by dots
    first: int  # byte of the file
    length: int
    uncompressed: int  # bytes, as the footer says


@dataclass(frozen=True)
class ParquetFooter:
    """The footer of a file of `size_bytes` bytes."""

    metadata: Any  # pyarrow.parquet.FileMetaData
    schema: pa.Schema
    size_bytes: int

    @classmethod
    def read(cls, tail: bytes, size_bytes: int, read: ReadRange) -> "ParquetFooter":
        """`tail`: the last TAIL_BYTES of the file, or the whole file. Raises DamagedFileError and errors of `read`."""
        if len(tail) < 12 or tail[-4:] not in (_MAGIC, _MAGIC_ENCRYPTED):
            raise DamagedFileError("not a Parquet file: it does not end in PAR1")
        if tail.endswith(_MAGIC_ENCRYPTED):
            raise DamagedFileError("the Parquet file is encrypted")
        length = int.from_bytes(tail[-8:-4], "little")
        if length > min(size_bytes - 12, _MOST_FOOTER_BYTES):
            raise DamagedFileError(f"its footer claims {length:,} bytes; the file has {size_bytes:,}")
        if length + 8 > len(tail):
            tail = read(size_bytes - length - 8, length - len(tail) + 8) + tail
        with decoding("its footer is damaged"):
            file = pq.ParquetFile(
                pa.BufferReader(tail[-length - 8 :]),
                thrift_string_size_limit=_MOST_FOOTER_BYTES,
                thrift_container_size_limit=_MOST_ENTRIES,
                schema_depth_limit=_MOST_DEPTH,
            )
            footer = cls(file.metadata, file.schema_arrow, size_bytes)
            footer._check()
        return footer

    def _check(self) -> None:
        rows = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        if any(number < 0 for number in rows):
            raise DamagedFileError("its footer has a number of rows below 0")
        if sum(rows) > MOST_ROWS:
            raise TooLargeError(f"its {sum(rows):,} rows are more than the limit of {MOST_ROWS:,}; divide the file")

    @cached_property
    def first_rows(self) -> list[int]:
        """The number of the first row of each row group, and last the number of all rows."""
        rows = (self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups))
        return list(accumulate(rows, initial=0))

    def num_rows(self, row_group: int) -> int:
        return self.first_rows[row_group + 1] - self.first_rows[row_group]

    def chunks(self, row_group: int, columns: Sequence[str]) -> list[Chunk]:
        """The chunks of the leaves of `columns`, as they lie in the file."""
        with decoding("its footer is damaged"):
            group = self.metadata.row_group(row_group)
            found = []
            for number in range(group.num_columns):
                column = group.column(number)
                path = column.path_in_schema
                if any(path == name or path.startswith(f"{name}.") for name in columns):
                    starts = (column.data_page_offset, column.dictionary_page_offset or 0)
                    first = min(start for start in starts if start > 0 or start == starts[0])
                    chunk = Chunk(path, first, column.total_compressed_size, column.total_uncompressed_size)
                    if chunk.first < 0 or chunk.length < 0 or chunk.first + chunk.length > self.size_bytes:
                        raise DamagedFileError(f"its footer says that {path} lies outside of the file")
                    found.append(chunk)
        return sorted(found, key=lambda chunk: chunk.first)

    def read_chunks(self, chunks: Sequence[Chunk], read: ReadRange, most_bytes: int) -> "Parts":
        """The bytes of chunks; those that lie side by side are one request.

        TooLargeError, before anything is read, if a chunk has more than `most_bytes`.
        """
        for chunk in chunks:
            if max(chunk.length, chunk.uncompressed) > most_bytes:
                raise TooLargeError(
                    f"the column {chunk.path} of a row group has {max(chunk.length, chunk.uncompressed):,} bytes; the "
                    f"limit is {most_bytes:,}; write the file again with smaller row groups"
                )
        parts, at = Parts(self.size_bytes), 0
        while at < len(chunks):
            first, end = chunks[at].first, chunks[at].first + chunks[at].length
            while at + 1 < len(chunks) and chunks[at + 1].first - end <= _PADDING:
                at += 1
                end = max(end, chunks[at].first + chunks[at].length)
            end = min(end + _PADDING, self.size_bytes)
            parts.add(first, read(first, end - first))
            at += 1
        return parts

    def batches(
        self,
        row_group: int,
        columns: Sequence[str],
        chunks: Sequence[Chunk],
        parts: "Parts",
        *,
        most_bytes: int,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of the row group with these columns, at most `batch_rows` at a time.

        DamagedFileError where the bytes are damaged, TooLargeError if a chunk has more than `most_bytes` after
        decompression.
        """
        rows = self.num_rows(row_group)
        with decoding("its pages are damaged"):
            for chunk in chunks:
                sizes = page_sizes(parts.view(chunk.first, chunk.length), most_pages=2 * rows + 1000)
                if sizes.together > most_bytes:
                    raise TooLargeError(
                        f"the column {chunk.path} of a row group has {sizes.together:,} bytes after decompression; the "
                        f"limit is {most_bytes:,}"
                    )
                batch_rows = max(1, min(batch_rows, _MOST_BATCH_BYTES // max(1, sizes.dictionary)))
            file = pq.ParquetFile(
                pa.PythonFile(parts, mode="r"),
                metadata=self.metadata,
                pre_buffer=False,
                page_checksum_verification=True,
            )
            yield from file.iter_batches(batch_rows, row_groups=[row_group], columns=list(columns), use_threads=False)


class Parts:
    """A file of which some parts are in memory, as pyarrow reads files. Other parts cannot be read."""

    closed = False

    def __init__(self, size_bytes: int):
        self.size_bytes, self.at = size_bytes, 0
        self.parts: list[tuple[int, memoryview]] = []

    def add(self, first: int, data: bytes) -> None:
        self.parts.append((first, memoryview(data)))

    def view(self, first: int, length: int) -> memoryview:
        for start, data in self.parts:
            if start <= first and first + length <= start + len(data):
                return data[first - start : first - start + length]
        raise DamagedFileError(f"its footer and its pages do not agree at byte {first}")

    def read(self, length: int) -> memoryview:
        data = self.view(self.at, max(0, min(length, self.size_bytes - self.at)))
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size_bytes)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
