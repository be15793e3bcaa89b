"""Pillow's resize of a uint8 image, equal to the last bit: as fused loops (faster than Pillow), and on any device.

Pillow (`Resample.c`) filters along the rows and then along the columns; each output pixel is a weighted sum of the
input pixels below an antialiasing filter. Weights are rounded to 22 binary digits, sums are whole numbers, and the
image between the two passes is rounded to uint8. So nothing depends on the order of floating-point operations, and all
devices give exactly the same result.

The order of the two passes changes last bits, and Pillow 13 changed the order: if an image loses more than twice as
many rows as columns, the columns are filtered first (pull request 9549). This module uses the order of the installed
Pillow, so that it always equals `Image.resize`.

Legend: B images of one size, h w image as decoded, H W resized, n outputs along an axis, T taps: input pixels that an
output pixel reads.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.jit import compiled
from m2f_core.to_device import to_device

_PRECISION_BITS = 32 - 8 - 2  # bits of a weight: a sum of 8-bit pixels must fit into 32 bits, and filters may overshoot
_HALF = np.int32(1 << (_PRECISION_BITS - 1))


_COLUMNS_MAY_BE_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# Filter, and its reach in pixels of the coarser of the two images
_FILTERS: dict[int, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    int(Image.Resampling.BILINEAR): (_triangle, 1.0),
    int(Image.Resampling.BICUBIC): (_cubic, 2.0),
}
RESAMPLES = frozenset(_FILTERS)  # numbers of the Pillow filters that are supported here


class Taps(NamedTuple):
    """Output pixel i along an axis is the sum over t of `weights[i, t] * pixels[first[i] + t]`, over 2^22."""

    first: NDArray[np.int64]  # [n]; first + T never passes the end
    weights: NDArray[np.int32]  # [n, T]


@lru_cache(maxsize=256)  # 20 to 80 KB each; a bucket has few sizes
def pillow_taps(num_in: int, num_out: int, resample: int) -> Taps:
    """The taps along one axis (Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`)."""
    weigh, reach = _FILTERS[resample]
    scale = num_in / num_out
    filter_scale = max(scale, 1.0)
    support = reach * filter_scale
    centre_n = (np.arange(num_out) + 0.5) * scale
    first_n = np.maximum((centre_n - support + 0.5).astype(np.int64), 0)
    stop_n = np.minimum((centre_n + support + 0.5).astype(np.int64), num_in)
    num_taps = min(num_in, math.ceil(support) * 2 + 1)
    place_nT = first_n[:, None] + np.arange(num_taps)
    weight_nT = weigh((place_nT - centre_n[:, None] + 0.5) * (1.0 / filter_scale))
    weight_nT[place_nT >= stop_n[:, None]] = 0.0
    total_n = np.zeros(num_out)
    for t in range(num_taps):  # one after the other, in Pillow's order of addition
        total_n += weight_nT[:, t]
    weight_nT = np.divide(weight_nT, total_n[:, None], out=weight_nT, where=total_n[:, None] != 0.0)
    # Round halves away from zero; the conversion truncates
    whole_nT = (weight_nT * (1 << _PRECISION_BITS) + np.copysign(0.5, weight_nT)).astype(np.int32)
    return _within(first_n, whole_nT, num_in)


def _within(first_n: NDArray[np.int64], weights_nT: NDArray[np.int32], num_in: int) -> Taps:
    """The same sums with as few taps as possible, and with no tap beyond the last pixel."""
    used = np.flatnonzero(weights_nT.any(axis=0))
    weights_nT = weights_nT[:, : used[-1] + 1]
    num_taps = weights_nT.shape[1]
    beyond_n = np.maximum(first_n + num_taps - num_in, 0)  # how far the windows of the last outputs move to the front
    place_nT = np.arange(num_taps) - beyond_n[:, None]
    moved_nT = np.where(place_nT >= 0, np.take_along_axis(weights_nT, np.maximum(place_nT, 0), axis=1), 0)
    return Taps(first_n - beyond_n, np.ascontiguousarray(moved_nT, dtype=np.int32))


def _columns_first(image_hw: tuple[int, int], size_hw: tuple[int, int]) -> bool:
    lost_rows, lost_columns = image_hw[0] - size_hw[0], image_hw[1] - size_hw[1]
    return _COLUMNS_MAY_BE_FIRST and lost_rows > 0 and lost_rows > 2 * lost_columns


# ---------------------------------------------------------------------------------------------------------- on a CPU


def resize_by_kernel(
    image_hw3: NDArray[np.uint8],
    size_hw: tuple[int, int],
    resample: int,
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> NDArray[np.uint8]:
    """`Image.resize` of an RGB image as an array: uint8 [H, W, 3], a view of the input if it already has that size.

    `window`: compute only these rows and columns of the resized image.
    """
    order = ((0, _along_columns), (1, _along_rows))
    if not _columns_first(image_hw3.shape[:2], size_hw):
        order = order[::-1]
    passes = []
    for axis, along in order:
        num_in, wanted = image_hw3.shape[axis], window[axis]
        if size_hw[axis] == num_in:
            read = wanted
        else:
            read, taps = _windowed(pillow_taps(num_in, size_hw[axis], resample), wanted)
            passes.append((along, taps))
        image_hw3 = image_hw3[read] if axis == 0 else image_hw3[:, read]
    for along, taps in passes:
        image_hw3 = along(np.ascontiguousarray(image_hw3), *taps)
    return image_hw3


def _windowed(taps: Taps, wanted: slice) -> tuple[slice, Taps]:
    """The input pixels that the wanted outputs read, and the taps within these pixels."""
    first, weights = taps.first[wanted], taps.weights[wanted]
    start = int(first[0])
    return slice(start, int(first[-1]) + weights.shape[1]), Taps(first - start, weights)


@compiled
def _along_rows(image, first, weights):  # type: ignore[no-untyped-def]
    height = image.shape[0]
    num_out, num_taps = weights.shape
    out = np.empty((height, num_out, 3), np.uint8)
    for y in range(height):
        row, out_row = image[y], out[y]
        if num_taps == 2:  # for an enlarged image; written out, this takes two thirds of the time
            for x in range(num_out):
                at, weight, weight_after = first[x], weights[x, 0], weights[x, 1]
                for channel in range(3):
                    total = np.int32(_HALF + weight * row[at, channel] + weight_after * row[at + 1, channel])
                    out_row[x, channel] = min(max(total >> _PRECISION_BITS, 0), 255)
            continue
        for x in range(num_out):
            red = green = blue = np.int64(_HALF)
            for t in range(num_taps):
                weight, at = weights[x, t], first[x] + t
                red += weight * row[at, 0]
                green += weight * row[at, 1]
                blue += weight * row[at, 2]
            out_row[x, 0] = min(max(red >> _PRECISION_BITS, 0), 255)
            out_row[x, 1] = min(max(green >> _PRECISION_BITS, 0), 255)
            out_row[x, 2] = min(max(blue >> _PRECISION_BITS, 0), 255)
    return out


@compiled
def _along_columns(image, first, weights):  # type: ignore[no-untyped-def]
    height, width, _ = image.shape
    num_out, num_taps = weights.shape
    rows = image.reshape(height, 3 * width)
    out = np.empty((num_out, 3 * width), np.uint8)
    sums = np.empty(3 * width, np.int32)
    for y in range(num_out):
        sums[:] = _HALF
        for t in range(num_taps):
            weight, row = weights[y, t], rows[first[y] + t]
            for x in range(sums.size):
                sums[x] += weight * row[x]
        out_row = out[y]
        for x in range(sums.size):
            out_row[x] = min(max(sums[x] >> _PRECISION_BITS, 0), 255)
    return out.reshape(num_out, width, 3)


# ------------------------------------------------------------------------------------------------------ on any device


def resize_by_torch(images_Bhw3: torch.Tensor, size_hw: tuple[int, int], resample: int) -> torch.Tensor:
    """Like `resize_by_kernel`, for images of one size, with PyTorch's operations on their device."""
    image_hw = images_Bhw3.shape[1], images_Bhw3.shape[2]
    for axis in (0, 1) if _columns_first(image_hw, size_hw) else (1, 0):
        if size_hw[axis] != image_hw[axis]:
            images_Bhw3 = _along(1 + axis, images_Bhw3, size_hw[axis], resample)
    return images_Bhw3


def _along(axis: int, images_Bhw3: torch.Tensor, num_out: int, resample: int) -> torch.Tensor:
    read_nT, weights_nT1 = _taps_on(images_Bhw3.device, images_Bhw3.shape[axis], num_out, resample)
    pixels = images_Bhw3.index_select(axis, read_nT.flatten()).int().unflatten(axis, read_nT.shape)
    # Of a row, neighbours are 3 numbers apart, of a column whole rows: the taps are the axis before both.
    weights = weights_nT1.view(*read_nT.shape, *(1,) * (pixels.ndim - axis - 2))
    sums = pixels.mul_(weights).sum(axis + 1, dtype=torch.int32).add_(int(_HALF))
    return sums.bitwise_right_shift_(_PRECISION_BITS).clamp_(0, 255).byte()


@lru_cache(maxsize=256)  # in a run of photographs of a few sizes nothing is copied after the first of each
def _taps_on(device: torch.device, num_in: int, num_out: int, resample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels that each output reads [n, T], and their weights."""
    taps = pillow_taps(num_in, num_out, resample)
    read_nT = taps.first[:, None] + np.arange(taps.weights.shape[1])
    return to_device(read_nT, device), to_device(taps.weights, device)
