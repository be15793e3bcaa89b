"""The keys of the images of a Parquet file."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.attributes import is_string

MOST_KEY_BYTES = 4096


def as_text(column: pa.Array) -> pa.Array:
    """The values as text; null where there is none, or one that is empty, not UTF-8 or longer than MOST_KEY_BYTES."""
    if is_string(column.type):
        text = _utf8_or_null(column.cast(pa.large_string()))
    else:
        text = pc.cast(column, pa.large_string())
    length = pc.binary_length(text)
    usable = pc.and_(pc.greater(length, 0), pc.less_equal(length, MOST_KEY_BYTES))
    return pc.if_else(pc.fill_null(usable, False), text, None)


def unique_keys(texts: Sequence[str | None]) -> tuple[list[str], int, int]:
    """(a key of each row, how many rows have no text, how many share their text with an earlier row).

    A row without a text is named by its number, from 0. The n-th row with the same name gets `#n` appended, or the next
    number that makes the key no other row's.
    """
    names = [str(row) if text is None else text for row, text in enumerate(texts)]
    taken = set(names)
    if len(taken) == len(names):
        return names, sum(text is None for text in texts), 0
    number_of: dict[str, int] = {}
    keys = []
    for name in names:
        number = number_of.get(name, 0) + 1
        key = name
        if number > 1:
            while (key := f"{name}#{number}") in taken:
                number += 1
            taken.add(key)
        number_of[name] = number
        keys.append(key)
    return keys, sum(text is None for text in texts), len(names) - len(number_of)


def _utf8_or_null(text: pa.Array) -> pa.Array:
    """pyarrow does not look at the bytes of strings when it reads them."""
    try:
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in text.cast(pa.large_binary()).to_pylist()], pa.large_string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
