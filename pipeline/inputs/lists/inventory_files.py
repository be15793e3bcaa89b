"""The rows of one data file of an S3 Inventory, in batches of Arrow: CSV, ORC or Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.orc
import pyarrow.parquet as pq

from m2f_core.config.fields import excerpt

_ROWS = 16_384  # of a batch
_BLOCK_BYTES = 4 * 2**20
# S3's names of columns in CSV; ORC and Parquet have the second spelling. Only the first two are always there.
_COLUMNS = {
    "Bucket": "bucket",
    "Key": "key",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "ETag": "e_tag",
}


@dataclass(frozen=True)
class InventoryRows:
    """Consecutive rows of all versions of objects. A column is None if the inventory does not have it."""

    bucket: pa.Array
    key: pa.Array
    is_latest: pa.Array | None = None
    is_delete_marker: pa.Array | None = None
    size: pa.Array | None = None
    e_tag: pa.Array | None = None

    def current(self) -> dict[str, pa.Array]:
        """The columns key, etag and size, as far as there are any, of the objects that a listing would show."""
        there = pa.repeat(pa.scalar(True), len(self.key))
        if self.is_latest is not None:
            there = pc.and_(there, pc.fill_null(self.is_latest, True))
        if self.is_delete_marker is not None:
            there = pc.and_(there, pc.invert(pc.fill_null(self.is_delete_marker, False)))
        columns = {"key": self.key, "etag": self.e_tag, "size": self.size}
        return {name: column.filter(there) for name, column in columns.items() if column is not None}


def read_rows(path: Path, file_format: str, schema: str) -> Iterator[InventoryRows]:
    """The rows of a file of this format; `schema` is fileSchema of manifest.json. ValueError if a column is missing,
    ArrowException or OSError if the file cannot be read.
    """
    if file_format == "CSV":
        return _read_csv(path, [name.strip() for name in schema.split(",")])
    return _read_orc(path) if file_format == "ORC" else _read_parquet(path)


def _read_csv(path: Path, names: list[str]) -> Iterator[InventoryRows]:
    """Gzip, without a header, every value in quotes, keys as in a URL."""
    if len(set(names)) < len(names):
        raise ValueError(f"fileSchema names a column twice: {excerpt(', '.join(names))}")
    _check_names(names, ("Bucket", "Key"))
    wanted = [name for name in _COLUMNS if name in names]
    with pa.CompressedInputStream(pa.OSFile(str(path)), "gzip") as stream:
        reader = pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES, use_threads=False),
            pa_csv.ParseOptions(newlines_in_values=True),
            pa_csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: pa.int64() if name == "Size" else pa.string() for name in wanted},
                null_values=[""],
                strings_can_be_null=False,
                quoted_strings_can_be_null=True,
            ),
        )
        for batch in reader:
            columns = {_COLUMNS[name]: batch.column(number) for number, name in enumerate(wanted)}
            columns["key"] = _decoded(columns["key"])
            for name in ("is_latest", "is_delete_marker"):
                if name in columns:
                    columns[name] = _truth(columns[name], name)
            yield InventoryRows(**columns)


def _decoded(keys: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        return keys
    return pa.array([unquote_plus(key, errors="strict") for key in keys.to_pylist()], pa.string())


def _truth(texts: pa.Array, name: str) -> pa.Array:
    lower = pc.utf8_lower(texts)
    wrong = pc.index(pc.is_in(lower, pa.array(["true", "false", ""])), False).as_py()
    if wrong >= 0:
        raise ValueError(f"{name} is {excerpt(texts[wrong].as_py())}, neither true nor false")
    return pc.if_else(pc.equal(lower, ""), pa.scalar(None, pa.bool_()), pc.equal(lower, "true"))


def _read_orc(path: Path) -> Iterator[InventoryRows]:
    file = pyarrow.orc.ORCFile(str(path))
    wanted = _wanted(file.schema)
    for stripe in range(file.nstripes):
        batch = file.read_stripe(stripe, columns=wanted)
        for start in range(0, batch.num_rows, _ROWS):
            yield _typed(batch.slice(start, _ROWS))


def _read_parquet(path: Path) -> Iterator[InventoryRows]:
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(_ROWS, columns=_wanted(file.schema_arrow)):
        yield _typed(batch)


def _wanted(schema: pa.Schema) -> list[str]:
    _check_names(schema.names, ("bucket", "key"))
    return [name for name in _COLUMNS.values() if name in schema.names]


def _check_names(names: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in names:
            raise ValueError(f"it has no column {name}, but {excerpt(', '.join(names))}")


def _typed(batch: pa.RecordBatch) -> InventoryRows:
    kinds = {"is_latest": pa.bool_(), "is_delete_marker": pa.bool_(), "size": pa.int64()}
    columns = {}
    for name in batch.schema.names:
        columns[name] = batch.column(batch.schema.get_field_index(name)).cast(kinds.get(name, pa.string()))
        columns[name].validate(full=True)  # the file can hold any bytes as text
    if columns["key"].null_count or columns["bucket"].null_count:
        raise ValueError("a row has no bucket or no key")
    return InventoryRows(**columns)
