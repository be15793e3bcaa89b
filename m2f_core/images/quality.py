"""Figures that tell dark, light, blurry, empty and equal pictures apart, from a few thousand pixels of each.

The kinds and their limits are CleanVision's (github.com/cleanlab/cleanvision, issue_managers/image_property.py and
image_property_issue_manager.py). Brightness and entropy are taken from a sample of pixels on a grid instead of from all
of them, and sharpness and the hash from the means of cells of this grid, so that the figures cost 0.1 ms of a picture
of any size.

Legend: H, W pixels of the image; h, w cells, at most 64.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.jit import compiled

_CELLS = 64  # of the longer side
_SAMPLES = 2  # pixels of a cell, in each direction
_HASH_SIDE, _HASH_CELLS = 8, 32


class Quality(NamedTuple):
    """Brightness runs from 0 to 1: sqrt(0.241 R^2 + 0.691 G^2 + 0.068 B^2) / 255."""

    brightness_p05: float  # 5 % of the pixels are at most as bright
    brightness_p99: float
    entropy: float  # bits, of the histogram of all channels together, of 768 bins
    sharpness: float  # standard deviation of the edges of the grey picture of at most 64 x 64 cells, in levels
    grey_spread: float  # standard deviation of the 256 bins of this picture's histogram, in cells
    is_grey: bool
    # 64 bits, equal or nearly equal for pictures that look alike: signs of the lowest 8 x 8 frequencies (pHash).
    phash: int


# SQL conditions over the fields above, as fields of a struct `quality`.
KINDS = {
    "dark": "quality.brightness_p99 < 0.32",
    "light": "1 - quality.brightness_p05 < 0.05",
    "blurry": "1 - exp(-0.01 * quality.sharpness) < 0.29 AND 1 - exp(-0.01 * quality.grey_spread) <= 0.18",
    "low_information": "quality.entropy < 3",
    "grey": "quality.is_grey",
}


def measure_quality(image: Image.Image) -> Quality:
    """The figures of an RGB image."""
    scale = min(1.0, _CELLS / max(image.size))
    width, height = (max(1, int(side * scale)) for side in image.size)
    if min(image.width // width, image.height // height) >= _SAMPLES:
        image = image.resize((_SAMPLES * width, _SAMPLES * height), Image.Resampling.NEAREST)
    elif scale < 1:
        image = image.resize((width, height), Image.Resampling.BOX)
    pixels_HW3 = np.asarray(image)
    p05, p99, entropy, sharpness, spread, is_grey, grey_hw = _figures(pixels_HW3, height, width)
    return Quality(p05, p99, entropy, sharpness, spread, is_grey, _phash(grey_hw))


@compiled
def _figures(
    pixels_HW3: NDArray[np.uint8], height: int, width: int
) -> tuple[float, float, float, float, float, bool, NDArray[np.uint8]]:
    """`pixels_HW3` has a whole number of pixels for each of height x width cells."""
    down, right = pixels_HW3.shape[0] // height, pixels_HW3.shape[1] // width
    levels, brightness = np.zeros(768, np.int64), np.zeros(1024, np.int64)
    grey_hw = np.empty((height, width), np.uint8)
    is_grey, number = True, pixels_HW3.shape[0] * pixels_HW3.shape[1]
    for row in range(height):
        for column in range(width):
            total = 0
            for y in range(row * down, (row + 1) * down):
                for x in range(column * right, (column + 1) * right):
                    r, g, b = int(pixels_HW3[y, x, 0]), int(pixels_HW3[y, x, 1]), int(pixels_HW3[y, x, 2])
                    levels[r] += 1
                    levels[256 + g] += 1
                    levels[512 + b] += 1
                    is_grey = is_grey and r == g and g == b
                    bright = math.sqrt(0.241 * (r * r) + 0.691 * (g * g) + 0.068 * (b * b)) / 255
                    brightness[int(bright * 1023 + 0.5)] += 1
                    total += 19595 * r + 38470 * g + 7471 * b  # ITU-R 601-2, as Pillow's mode L
            area = down * right
            grey_hw[row, column] = (total + 32768 * area) // (65536 * area)
    entropy = 0.0
    for level in range(levels.size):
        if levels[level]:
            share = levels[level] / (3 * number)
            entropy -= share * math.log2(share)
    return (
        _percentile(brightness, number, 0.05) / 1023,
        _percentile(brightness, number, 0.99) / 1023,
        entropy,
        _edge_spread(grey_hw),
        _histogram_spread(grey_hw),
        is_grey,
        grey_hw,
    )


@compiled
def _percentile(counts: NDArray[np.int64], number: int, share: float) -> int:
    """The first bin up to which the counts are at least this share of `number`."""
    seen = 0
    for level in range(counts.size):
        seen += counts[level]
        if seen >= share * number:
            return level
    return counts.size - 1


@compiled
def _edge_spread(grey_hw: NDArray[np.uint8]) -> float:
    """Standard deviation of Pillow's FIND_EDGES: 8 times a cell minus its 8 neighbours; the border stays as it is."""
    height, width = grey_hw.shape
    total, squares = 0.0, 0.0
    for y in range(height):
        for x in range(width):
            value = int(grey_hw[y, x])
            if 0 < y < height - 1 and 0 < x < width - 1:
                around = 0
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        around += int(grey_hw[y + dy, x + dx])
                value = min(255, max(0, 9 * value - around))
            total += value
            squares += value * value
    mean = total / (height * width)
    return math.sqrt(max(0.0, squares / (height * width) - mean * mean))


@compiled
def _histogram_spread(grey_hw: NDArray[np.uint8]) -> float:
    counts = np.zeros(256, np.int64)
    for value in grey_hw.ravel():
        counts[value] += 1
    mean = grey_hw.size / 256
    squares = 0.0
    for count in counts:
        squares += (count - mean) ** 2
    return math.sqrt(squares / 256)


def _frequencies() -> NDArray[np.float32]:
    """The rows of a DCT-II of _HASH_CELLS values for the lowest _HASH_SIDE frequencies: [8, 32]."""
    place, frequency = np.arange(_HASH_CELLS), np.arange(_HASH_SIDE)[:, None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _HASH_CELLS)).astype(np.float32)


_DCT = _frequencies()


def _phash(grey_hw: NDArray[np.uint8]) -> int:
    """As the library imagehash computes it, from the cells. Signed, as tables store 64 bits."""
    side = (_HASH_CELLS, _HASH_CELLS)
    cells = np.asarray(Image.fromarray(grey_hw).resize(side, Image.Resampling.BILINEAR), np.float32)
    low = (_DCT @ cells @ _DCT.T).ravel()
    below, above = np.sort(low)[low.size // 2 - 1 : low.size // 2 + 1]  # np.median takes as long as all of this
    return int(np.packbits(low > (below + above) / 2).view(">i8")[0])
