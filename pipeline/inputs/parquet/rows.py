"""Read images of one row group of a Parquet file."""

import hashlib
from collections.abc import Sequence

from pipeline.errors import ErrorCode, ImageError
from pipeline.input_spec import InputSpec
from pipeline.inputs.parquet.columns import Columns, WrongColumnsError, column_of, find_columns
from pipeline.inputs.parquet.file import Chunk, DamagedFileError, ParquetFooter, Parts, ReadRange, TooLargeError
from pipeline.inputs.parquet.keys import as_text
from pipeline.inputs.verified import CorruptError

# Of the column of images of a row group, which is in memory as a whole while its rows are taken out.
MOST_CHUNK_BYTES = 2**30
_MOST_PATH_BYTES = 128 * 2**20
_BATCH_ROWS = 16  # few, so that the batch is small beside the column; more are not faster


def read_rows(
    footer: ParquetFooter, row_group: int, rows: Sequence[int], spec: InputSpec, read: ReadRange
) -> list[bytes | ImageError]:
    """The image of each of `rows`, which are numbers in the file, in rising order.

    If bytes are damaged, they are read again. Raises CorruptError if they differ then, DamagedFileError if the footer
    has no such rows or columns, and the errors of `read`.
    """
    first = footer.first_rows[row_group] if row_group < len(footer.first_rows) - 1 else -1
    if first < 0 or not first <= rows[0] <= rows[-1] < footer.first_rows[row_group + 1]:
        raise DamagedFileError(f"row group {row_group} has no row {rows[-1]}")
    try:
        columns = find_columns(footer.schema, spec)
    except WrongColumnsError as error:
        raise DamagedFileError(str(error)) from None
    wanted = [row - first for row in rows]
    chunks = footer.chunks(row_group, [columns.image])
    found, damage, digest = _attempt(footer, row_group, columns, chunks, wanted, read)
    if damage is not None and damage.code is ErrorCode.DAMAGED_CONTAINER:
        found, damage, again = _attempt(footer, row_group, columns, chunks, wanted, read)
        if again != digest:
            raise CorruptError(f"two reads of row group {row_group} gave different bytes")
    lacking = damage or ImageError(
        ErrorCode.DAMAGED_CONTAINER, f"row group {row_group} has fewer rows than the footer says"
    )
    images: list[bytes | ImageError | None] = [*found, *[lacking] * (len(rows) - len(found))]
    return _without_null(images, footer, row_group, columns, wanted, read)


def _attempt(
    footer: ParquetFooter,
    row_group: int,
    columns: Columns,
    chunks: Sequence[Chunk],
    wanted: Sequence[int],
    read: ReadRange,
) -> tuple[list[bytes | None], ImageError | None, bytes]:
    """(the values of the first of the wanted rows, why there are not all of them, a digest of what was read)."""
    values: list[bytes | None] = []
    digest = b""
    try:
        parts = footer.read_chunks(chunks, read, MOST_CHUNK_BYTES)
        try:
            _take(footer, row_group, columns.image, chunks, parts, wanted, values)
        except DamagedFileError:
            digest = _digest(parts)
            raise
    except TooLargeError as error:
        return values, ImageError(ErrorCode.TOO_LARGE, str(error)), digest
    except DamagedFileError as error:
        return values, ImageError(ErrorCode.DAMAGED_CONTAINER, str(error)), digest
    return values, None, digest


def _digest(parts: Parts) -> bytes:
    digest = hashlib.blake2b()
    for _, data in parts.parts:
        digest.update(data)
    return digest.digest()


def _take(
    footer: ParquetFooter,
    row_group: int,
    column: str,
    chunks: Sequence[Chunk],
    parts: Parts,
    wanted: Sequence[int],
    values: list[bytes | None],
) -> None:
    """Append the values of the wanted rows, as far as they can be read, to `values`."""
    start = taken = 0
    for batch in footer.batches(
        row_group, [column], chunks, parts, most_bytes=MOST_CHUNK_BYTES, batch_rows=_BATCH_ROWS
    ):
        array = column_of(batch, column)
        while len(values) < len(wanted) and wanted[len(values)] < start + batch.num_rows:
            value = array[wanted[len(values)] - start].as_py()
            taken += len(value or b"")
            if taken > MOST_CHUNK_BYTES:  # many rows share a value of the dictionary
                raise TooLargeError(f"the images of row group {row_group} have more than {MOST_CHUNK_BYTES:,} bytes")
            values.append(value)
        start += batch.num_rows
        if len(values) == len(wanted):
            return


def _without_null(
    images: Sequence[bytes | ImageError | None],
    footer: ParquetFooter,
    row_group: int,
    columns: Columns,
    wanted: Sequence[int],
    read: ReadRange,
) -> list[bytes | ImageError]:
    """With an error for each row that has null in place of an image, which names the path beside it."""
    if all(image is not None for image in images):
        return [image for image in images if image is not None]
    paths = _paths(footer, row_group, columns, read)
    return [
        image
        if image is not None
        else ImageError(
            ErrorCode.UNSUPPORTED,
            f"not an image: {columns.image} is null"
            + (f"; its path {paths[row]!a} is not read" if row < len(paths) and paths[row] else ""),
        )
        for image, row in zip(images, wanted, strict=True)
    ]


def _paths(footer: ParquetFooter, row_group: int, columns: Columns, read: ReadRange) -> list[str | None]:
    """The column beside the images; as far as it can be read."""
    paths: list[str | None] = []
    if columns.path is None:
        return paths
    chunks = footer.chunks(row_group, [columns.path])
    try:
        parts = footer.read_chunks(chunks, read, _MOST_PATH_BYTES)
        for batch in footer.batches(
            row_group, [columns.path], chunks, parts, most_bytes=_MOST_PATH_BYTES, batch_rows=1024
        ):
            paths += as_text(column_of(batch, columns.path)).to_pylist()
    except DamagedFileError:
        return paths
    return paths
