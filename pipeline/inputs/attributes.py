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
