"""numpy arrays and dtypes of a pickle, built from the pickle's description, which may be wrong on purpose.

`plain_pickle` uses these classes. They check every argument before they call numpy.
"""

from __future__ import annotations

import math

import numpy as np

MAX_DIMENSIONS = 32
# Numbers only: an array of objects would hold Python objects, an array of records structures of objects.
DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class PlainPickleError(ValueError):
    """Not a pickle of plain containers and arrays; the message gives the error or the refused name."""


class PickledArray:
    """An array of the pickle: `values` is a read-only view of its bytes."""

    def __init__(self) -> None:
        self._values: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        if self._values is None:
            raise PlainPickleError("holds an array without values")
        return self._values

    def set_values(self, shape: object, dtype: object, data: object, order: str) -> None:
        """`data`: exactly as many bytes as `shape` and `dtype` need."""
        if not isinstance(dtype, PickledDtype):
            raise PlainPickleError("holds an array without a numpy dtype")
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or not all(map(_is_length, shape)):
            raise PlainPickleError("holds an array without a shape")
        if not isinstance(data, (bytes, memoryview)) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise PlainPickleError(
                f"holds an array of shape {list(shape)} whose data do not fill it with {dtype.value}"
            )
        try:
            values: np.ndarray = np.ndarray(shape, dtype.value, buffer=data, order="F" if order == "F" else "C")
        except ValueError as error:  # an empty array with larger dimensions than numpy supports
            raise PlainPickleError(f"holds an array that numpy does not support: {error}") from None
        values.flags.writeable = False
        self._values = values


class PickledDtype:
    """The type of a number; a later instruction sets its byte order."""

    def __init__(self, code: object) -> None:
        if code not in DTYPES:
            raise PlainPickleError(f"refuses arrays of dtype {printable(code)}: only plain numbers are read")
        self.value = np.dtype(str(code))

    def set_state(self, state: object) -> None:
        """`state` is (version, byte order, and six entries that only types other than plain numbers use)."""
        if not isinstance(state, tuple) or len(state) < 8 or state[1] not in ("<", ">", "|", "="):
            raise PlainPickleError("holds a numpy dtype with an unknown state")
        if any(entry is not None for entry in state[2:5]):
            raise PlainPickleError("refuses arrays of records: only plain numbers are read")
        self.value = self.value.newbyteorder(state[1])


def printable(name: object) -> str:
    """`name` for a message of one line: short, and without control characters."""
    text = name if isinstance(name, str) else f"a {type(name).__name__}"
    return (text if text.isprintable() else ascii(text))[:100]


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
