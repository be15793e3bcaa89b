"""List the images of a Parquet file: a row of the file is an image, with its encoded bytes in one column.

The footer and the columns of keys and kept values are read, by range; the images are not. The name of an image is
unique in its file, so its key is unique.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ErrorCode
from pipeline.inputs.attributes import attributes_of, bounded
from pipeline.inputs.container import Container, fault_of, with_all_columns
from pipeline.inputs.parquet.columns import Columns, WrongColumnsError, column_of, find_columns
from pipeline.inputs.parquet.file import TAIL_BYTES, DamagedFileError, ParquetFooter, TooLargeError, decoding
from pipeline.inputs.parquet.keys import as_text, unique_keys
from pipeline.inputs.parquet.rows import MOST_CHUNK_BYTES
from pipeline.inputs.verified import ChangedError, CorruptError
from pipeline.store.filesystem import one_line

_MOST_TEXT_BYTES = 128 * 2**20  # of one column of keys or kept values, in one row group
_BATCH_ROWS = 1024

_WITHOUT_KEY = "rows of Parquet files have no key, and are named by their number"
_SAME_KEY = "rows of Parquet files have the key of an earlier row of their file, and get #2, #3, ... appended"


def list_parquet(container: Container) -> list[pa.Table]:
    """Tables of LISTED, one for each row group.

    A file that cannot be read, or that has not the columns that the run wants, is one row with a fault. Raises errors
    of the store.
    """
    try:
        try:
            return _List(container).tables()
        except TooLargeError:
            raise
        except DamagedFileError:  # or a few bytes changed on their way
            return _List(container).tables()
    except WrongColumnsError as error:
        container.fitting.refuse(f"{container.uri}: {error}")
        return [fault_of(container, ErrorCode.UNSUPPORTED, str(error))]
    except TooLargeError as error:
        return [fault_of(container, ErrorCode.TOO_LARGE, str(error))]
    except ChangedError as error:
        return [fault_of(container, ErrorCode.CHANGED, one_line(error))]
    except CorruptError as error:
        return [fault_of(container, ErrorCode.CORRUPT_IN_TRANSIT, one_line(error))]


class _List:
    """The listing of one file."""

    def __init__(self, container: Container):
        self.container = container
        first = max(0, container.size_bytes - TAIL_BYTES)
        tail = container.read(first, container.size_bytes - first) if container.size_bytes else b""
        self.footer = ParquetFooter.read(tail, container.size_bytes, container.read)
        self.columns: Columns = find_columns(self.footer.schema, container.spec)

    def tables(self) -> list[pa.Table]:
        groups = range(self.footer.metadata.num_row_groups)
        texts: list[str | None] = []
        attributes: list[list[str] | None] = []
        for group in groups:
            some_texts, some_attributes = self._described(group)
            texts += some_texts
            attributes.append(some_attributes)
        keys, without_key, with_same_key = unique_keys(texts)
        for what, number in ((_WITHOUT_KEY, without_key), (_SAME_KEY, with_same_key)):
            if number:
                self.container.noted.add(what, self.container.uri, number)
        self.container.fitting.accept()
        firsts = self.footer.first_rows
        return [
            self._table(group, keys[firsts[group] : firsts[group + 1]], attributes[group])
            for group in groups
            if self.footer.num_rows(group)
        ]

    def _described(self, group: int) -> tuple[list[str | None], list[str] | None]:
        """The texts of the keys and, if columns are kept, the attributes of the rows of a row group."""
        num_rows, columns = self.footer.num_rows(group), self.columns
        if not columns.described or not num_rows:
            return [None] * num_rows, None
        chunks = self.footer.chunks(group, columns.described)
        parts = self.footer.read_chunks(chunks, self.container.read, _MOST_TEXT_BYTES)
        texts: list[str | None] = []
        attributes: list[str] = []
        key = columns.key or columns.path
        for batch in self.footer.batches(
            group, columns.described, chunks, parts, most_bytes=_MOST_TEXT_BYTES, batch_rows=_BATCH_ROWS
        ):
            with decoding("its rows are damaged"):
                texts += as_text(column_of(batch, key)).to_pylist() if key else [None] * batch.num_rows
                attributes += attributes_of({name: column_of(batch, name) for name in columns.kept}, batch.num_rows)
        if len(texts) != num_rows:
            raise DamagedFileError(f"row group {group} has {len(texts):,} rows; the footer says {num_rows:,}")
        return texts, attributes if columns.kept else None

    def _table(self, group: int, names: Sequence[str], attributes: Sequence[str] | None) -> pa.Table:
        """`names`: of the rows of the row group, and so of the images."""
        uri, num_rows = self.container.uri, len(names)
        [chunk] = self.footer.chunks(group, [self.columns.image])
        size = max(chunk.length, chunk.uncompressed)
        faults: list[str | None] = [None] * num_rows
        if size > MOST_CHUNK_BYTES:
            faults = [
                f"{ErrorCode.TOO_LARGE.value}: the row group has {size:,} bytes of images; the limit is "
                f"{MOST_CHUNK_BYTES:,}; write the file again with smaller row groups"
            ] * num_rows
        kept, too_long = bounded(
            pa.nulls(num_rows, pa.string()) if attributes is None else pa.array(attributes, pa.string())
        )
        first = self.footer.first_rows[group]
        columns = {
            "image_key": [f"{uri}#{name}" for name in names],
            "etag": pa.repeat(pa.scalar(self.container.etag), num_rows),
            "size_bytes": pa.repeat(pa.scalar(max(0, chunk.uncompressed) // num_rows, pa.int64()), num_rows),
            "object_uri": pa.repeat(pa.scalar(uri), num_rows),
            "position": pa.array(range(first, first + num_rows), pa.int64()),
            "row_group": pa.repeat(pa.scalar(group, pa.int32()), num_rows),
            "fault": pc.coalesce(pa.array(faults, pa.string()), too_long),
            "attributes": kept,
        }
        return with_all_columns(columns, num_rows)
