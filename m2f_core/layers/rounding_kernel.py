"""Rounding of float32 numbers to 8 bits, one scale and zero point for all: two passes, and nothing between them.

Legend: N numbers.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f_core.jit import compiled
from m2f_core.layers.threads import in_parts

_LARGEST = np.float32(np.finfo(np.float32).max)
_SIGN = np.int32(0x7FFFFFFF)
_MAGIC = np.float32(12582912)
_MANY = 1 << 16  # numbers that are worth a thread


class Rounded(NamedTuple):
    """Numbers in 8 bits, uint8 with the shape and the memory format of the input: (values - zero_point) * scale."""

    values: Tensor
    scale: float
    zero_point: int


def round_to_bytes(x: Tensor) -> Rounded:
    """`x`: float32 on a CPU, dense in memory. Zero has no error. ValueError if a number is not finite."""
    numbers_N = _flat(x)
    bits_N = numbers_N.view(np.int32)
    parts = in_parts(len(numbers_N), _MANY, lambda first, end: _edges(bits_N[first:end]))
    low, high = (float(edge) for edge in _floats([min(p[0] for p in parts), max(p[1] for p in parts)]))
    if not (low >= -_LARGEST and high <= _LARGEST):
        raise ValueError("the input of a layer is not finite")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-30) / 255
    zero_point = min(255, max(0, round(-low / scale)))
    values = torch.empty_like(x, dtype=torch.uint8)
    values_N, inverse, point = _flat(values), np.float32(1 / scale), np.int32(zero_point)

    def fill(first: int, end: int) -> None:
        _to_bytes(numbers_N[first:end], inverse, point, values_N[first:end])

    in_parts(len(numbers_N), _MANY, fill)
    return Rounded(values, scale, zero_point)


def _flat(x: Tensor) -> NDArray[np.generic]:
    """All numbers in the order of memory, which may be written to."""
    in_order = x if x.is_contiguous() else x.permute(0, 2, 3, 1)  # channels last
    return in_order.view(-1).numpy()  # PyTorch refuses a view of what is not dense


def _floats(keys: list[np.int32]) -> NDArray[np.float32]:
    bits = np.array(keys, np.int32)
    return (bits ^ ((bits >> 31) & _SIGN)).view(np.float32)


@compiled
def _edges(bits_N: NDArray[np.int32]) -> tuple[np.int32, np.int32]:
    """The lowest and highest of the numbers with these bits, as keys: whole numbers in the same order.

    NaN is beyond infinity in this order, and whole numbers are compared sixteen at a time.
    """
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
    for i in range(len(bits_N)):
        bits = bits_N[i]
        key = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low = key if key < low else low
        high = key if key > high else high
    return low, high


@compiled
def _to_bytes(
    numbers_N: NDArray[np.float32], inverse: np.float32, zero_point: np.int32, out_N: NDArray[np.uint8]
) -> None:
    """Adding 1.5 * 2^23 leaves the nearest whole number in the low bits: np.rint is not computed sixteen at a time."""
    for i in range(len(numbers_N)):
        whole = np.int32(numbers_N[i] * inverse + _MAGIC - _MAGIC) + zero_point
        whole = np.int32(0) if whole < np.int32(0) else whole
        out_N[i] = np.uint8(np.int32(255) if whole > np.int32(255) else whole)
