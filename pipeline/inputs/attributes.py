"""What an input says of an image beside its bytes (--keep-columns): the JSON object in the column `attributes`."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ErrorCode

MOST_BYTES = 64 * 2**10  # of one image, as JSON


def as_attributes(values: Mapping[str, Any]) -> str:
    """The values as a JSON object. Numbers that JSON has not (NaN, infinity) are null; other kinds are their text.

    If a text is not UTF-8, which JSON can hold and a table cannot, all that is not ASCII is escaped.
    """
    finite = _finite(dict(values))
    text = json.dumps(finite, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(finite, default=str)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def bounded(attributes: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(the attributes, or null where they are longer than MOST_BYTES; the fault of each image, or null)."""
    length = pc.fill_null(pc.binary_length(attributes), 0)
    is_long = pc.greater(length, MOST_BYTES)
    faults = pc.binary_join_element_wise(
        f"{ErrorCode.TOO_LARGE.value}: the kept columns have ",
        length.cast(pa.string()),
        f" bytes as JSON; the limit is {MOST_BYTES:,}",
        "",
    )
    none = pa.scalar(None, pa.string())
    return pc.if_else(is_long, none, attributes), pc.if_else(is_long, faults, none)


def attributes_of(columns: dict[str, pa.Array], num_rows: int) -> list[str]:
    """The values of each row of columns as a JSON object: see `as_attributes`.

    Bytes of a text that are not UTF-8, which pyarrow does not look for, become U+FFFD. ValueError or OverflowError if a
    value within a struct or list cannot be read: a text that is not UTF-8, a date that Python has not.
    """
    values = {name: _plain_values(column) for name, column in columns.items()}
    return [as_attributes({name: of_column[row] for name, of_column in values.items()}) for row in range(num_rows)]


def _plain_values(column: pa.Array) -> list[Any]:
    if is_string(column.type):
        return list(_replaced(column.cast(pa.large_string())).to_pylist())
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.string())
    return list(column.to_pylist())


def is_string(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    )


def _replaced(text: pa.Array) -> pa.Array:
    """The strings, with U+FFFD for bytes that are not UTF-8."""
    try:
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        values = text.cast(pa.large_binary()).to_pylist()
        return pa.array([None if value is None else value.decode(errors="replace") for value in values])
