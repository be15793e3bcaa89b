"""The rows of one manifest, in batches of Arrow: Parquet, CSV, JSON lines, or text with a URI in each line."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from m2f_core.config.fields import excerpt
from pipeline.inputs.attributes import as_attributes, attributes_of

_ROWS = 16_384  # of a batch
_BLOCK_BYTES = 4 * 2**20
_MOST_LINE_BYTES = 2**20

# Of the first name that a manifest has. A key is the name of the image in the tables, in place of the URI.
COLUMNS = {"uri": ("uri", "url", "path"), "etag": ("etag", "e_tag"), "size": ("size_bytes", "size"), "key": ("key",)}
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


class ManifestError(ValueError):
    """A clause about a manifest that goes on after its name."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: arrays of one length by the names of COLUMNS, and the kept columns as JSON objects."""

    first: int  # number of the first row in messages, from 1
    unit: str  # how messages call a row
    columns: dict[str, pa.Array]
    attributes: pa.Array | None = None


def read_rows(file: BinaryIO, name: str, keep: tuple[str, ...]) -> Iterator[Rows]:
    """The rows of the manifest `file`, whose name says the format. `keep`: columns that go to `attributes`.

    Raises ManifestError, ArrowException, or OSError if the file cannot be read or is cut off.
    """
    ending, compression = _ending_of(name)
    stream = file if compression is None else pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
    return _READERS[ending](stream, keep)


def is_manifest(name: str) -> bool:
    """Whether an object of this name is read as a manifest."""
    return _ending_of(name)[0] in _READERS


ENDINGS = ".parquet, .csv, .tsv, .jsonl or .txt (all but Parquet also with .gz or .zst)"


def _ending_of(name: str) -> tuple[str, str | None]:
    """`.csv` and the name of its compression."""
    match = re.search(r"(\.[a-z0-9]+)(\.gz|\.zst)?$", name.lower())
    if match is None or (match[2] and match[1] == ".parquet"):
        return "", None
    return match[1], _COMPRESSED.get(match[2] or "")


def _read_parquet(file: BinaryIO, keep: tuple[str, ...]) -> Iterator[Rows]:
    parquet = pq.ParquetFile(pa.PythonFile(file, "r"))
    chosen = _chosen(parquet.schema_arrow.names, keep)
    first = 1
    for batch in parquet.iter_batches(_ROWS, columns=[*dict.fromkeys((*chosen.values(), *keep))]):
        yield _rows(batch, chosen, keep, first, "row")
        first += batch.num_rows


def _read_csv(file: BinaryIO, keep: tuple[str, ...], delimiter: str = ",") -> Iterator[Rows]:
    reader = pa_csv.open_csv(
        file if isinstance(file, pa.NativeFile) else pa.PythonFile(file, "r"),
        # One thread, so that errors name a row.
        pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pa_csv.ConvertOptions(strings_can_be_null=False, default_column_type=pa.string()),
    )
    chosen = _chosen(reader.schema.names, keep)
    first = 1
    for batch in reader:
        if batch.num_rows:
            yield _rows(batch, chosen, keep, first, "row")
        first += batch.num_rows


def _read_tsv(file: BinaryIO, keep: tuple[str, ...]) -> Iterator[Rows]:
    return _read_csv(file, keep, "\t")


def _read_json_lines(file: BinaryIO, keep: tuple[str, ...]) -> Iterator[Rows]:
    chosen: dict[str, str] = {}
    known: set[str] = set()
    for first, lines in _lines(file):
        parsed, numbers = [], []
        for number, line in enumerate(lines, first):
            if line.strip():
                parsed.append(_parsed(line, number))
                numbers.append(number)
        if not parsed:
            continue
        names = set().union(*parsed)
        if not names <= known:
            known |= names
            chosen = _chosen(sorted(known), ())
        if missing := set(keep) - known:
            raise ManifestError(f"has no column {excerpt(min(missing))} in its first lines, which --keep-columns names")
        # An entry of a batch must be the line of its number, so empty lines begin a new batch.
        start = 0
        for end in range(1, len(parsed) + 1):
            if end == len(parsed) or numbers[end] != numbers[end - 1] + 1:
                yield _json_rows(parsed[start:end], chosen, keep, numbers[start])
                start = end


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"line {number:,} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ManifestError(f"line {number:,} is {excerpt(value)}, not a JSON object")
    return value


def _json_rows(parsed: list[dict[str, Any]], chosen: dict[str, str], keep: tuple[str, ...], first: int) -> Rows:
    columns = {}
    for role, name in chosen.items():
        kind, wanted = (int, pa.int64()) if role == "size" else (str, pa.string())
        values = [line.get(name) for line in parsed]
        for number, value in enumerate(values, first):
            if value is not None and (type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63)):
                raise ManifestError(f"line {number:,} has {excerpt(value)} as {name}")
        try:
            columns[role] = pa.array(values, wanted)
        except (pa.ArrowException, UnicodeError):
            wrong = next(n for n, v in enumerate(values, first) if isinstance(v, str) and not _is_utf8(v))
            raise ManifestError(f"line {wrong:,} has a {name} that is not UTF-8") from None
    attributes = pa.array([as_attributes({name: line.get(name) for name in keep}) for line in parsed]) if keep else None
    return Rows(first, "line", columns, attributes)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(file: BinaryIO, keep: tuple[str, ...]) -> Iterator[Rows]:
    if keep:
        raise ManifestError("is text with a URI in each line and has no columns for --keep-columns")
    for first, lines in _lines(file):
        try:
            texts = [line.decode() for line in lines]
        except UnicodeDecodeError:
            wrong = next(number for number, line in enumerate(lines, first) if not _decodes(line))
            raise ManifestError(f"line {wrong:,} is not UTF-8") from None
        start = 0
        for end in range(len(texts) + 1):
            if end == len(texts) or not texts[end]:  # an empty line
                if end > start:
                    yield Rows(first + start, "line", {"uri": pa.array(texts[start:end], pa.string())})
                start = end + 1


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(file: Any) -> Iterator[tuple[int, list[bytes]]]:
    """Batches of lines without their ends, with the number of the first line of each."""
    rest, first, is_start = b"", 1, True
    while True:
        block = file.read(_BLOCK_BYTES)
        if is_start:
            block, is_start = block.removeprefix(b"\xef\xbb\xbf"), False  # the mark that editors of Windows write
        *lines, rest = (rest + block).split(b"\n") if block else ([rest, b""] if rest else [b""])
        longest = max(map(len, (*lines, rest)))
        if longest > _MOST_LINE_BYTES:
            place = next(n for n, line in enumerate((*lines, rest), first) if len(line) == longest)
            raise ManifestError(f"line {place:,} is longer than {_MOST_LINE_BYTES:,} bytes")
        for start in range(0, len(lines), _ROWS):
            batch = lines[start : start + _ROWS]
            yield first + start, [line.removesuffix(b"\r") for line in batch]
        first += len(lines)
        if not block:
            return


def _chosen(names: list[str], keep: tuple[str, ...]) -> dict[str, str]:
    """The column of each role. ManifestError if the URI is missing, a column is there twice or a kept one is not."""
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"has the column {excerpt(name)} twice")
    chosen = {}
    for role, spellings in COLUMNS.items():
        found = [name for name in names if name.lower() in spellings]
        if len(found) > 1:
            raise ManifestError(
                f"has the columns {found[0]} and {found[1]}, which mean the same; leave one of them out"
            )
        if found:
            chosen[role] = found[0]
    if "uri" not in chosen:
        raise ManifestError(f"has no column uri; it has {excerpt(', '.join(names))}")
    for name in keep:
        if name not in names:
            raise ManifestError(f"has no column {excerpt(name)}, which --keep-columns names")
    return chosen


def _rows(batch: pa.RecordBatch, chosen: dict[str, str], keep: tuple[str, ...], first: int, unit: str) -> Rows:
    columns = {}
    for role, name in chosen.items():
        values = batch.column(batch.schema.get_field_index(name))
        columns[role] = _sizes(values, name, first, unit) if role == "size" else _texts(values, name)
    attributes = None
    if keep:
        kept = {name: batch.column(batch.schema.get_field_index(name)) for name in keep}
        try:
            attributes = pa.array(attributes_of(kept, batch.num_rows), pa.string())
        except (ValueError, OverflowError) as error:  # also UnicodeDecodeError
            raise ManifestError(
                f"has a value that cannot be read in the columns of --keep-columns, in {unit}s {first:,} to "
                f"{first + batch.num_rows - 1:,}: {error}"
            ) from None
    return Rows(first, unit, columns, attributes)


def _texts(values: pa.Array, name: str) -> pa.Array:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ManifestError(f"has {values.type} in the column {name}, not text")
    texts = values.cast(pa.string())
    texts.validate(full=True)  # a Parquet file can hold any bytes as text
    return texts


def _sizes(values: pa.Array, name: str, first: int, unit: str) -> pa.Array:
    if pa.types.is_string(values.type):  # of a CSV
        return _parsed_sizes(values, name, first, unit)
    if not pa.types.is_integer(values.type):
        raise ManifestError(f"has {values.type} in the column {name}, not whole numbers")
    return values.cast(pa.int64())


def _parsed_sizes(values: pa.Array, name: str, first: int, unit: str) -> pa.Array:
    sizes = []
    for number, text in enumerate(values.to_pylist(), first):
        if text and not (re.fullmatch(r"[0-9]{1,19}", text) and int(text) < 2**63):
            raise ManifestError(f"{unit} {number:,} has {excerpt(text)} as {name}")
        sizes.append(int(text) if text else None)
    return pa.array(sizes, pa.int64())


_READERS: dict[str, Callable[[Any, tuple[str, ...]], Iterator[Rows]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".txt": _read_text,
}
