"""Colours that tell segments and categories apart: the only place that chooses them.

The segments of one picture need neighbours that differ: hues turn by the golden ratio. Categories need a colour each
that stays the same in all pictures and differs from all others. Each is the colour that lies farthest from all colours
before it, by distance in OKLab (Ottosson 2020), in which equal distances look equally large. So the first colours
differ most, and colour n is the same however many are asked for.

Legend: N colours.
"""

import colorsys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN_RATIO = 0.618034  # hue steps of this size keep any number of colours apart
_MOST = 256  # colours; later numbers begin again
_STEPS = 18  # of each channel in the grid of candidates
# Bounds in OKLab: neither so dark nor so pale nor so grey that a picture beneath would hide the colour, nor garish.
_LIGHTNESS, _CHROMA = (0.62, 0.9), (0.08, 0.2)
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def segment_colour(number: int) -> tuple[int, int, int]:
    """RGB of the segment `number`, counted from 0; consecutive numbers look different."""
    hue = number * _GOLDEN_RATIO % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 if number % 2 else 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def category_colour(place: int) -> tuple[int, int, int]:
    """RGB of the category at a place of the label map, counted from 0; up to 256 categories differ."""
    red, green, blue = _colours()[place % _MOST].tolist()
    return red, green, blue


def to_oklab(rgb_N3: NDArray[np.integer]) -> NDArray[np.float64]:
    """[N, 3] sRGB of 8 bits to [N, 3] lightness (0 to 1), a and b of OKLab."""
    share_N3 = np.asarray(rgb_N3, np.float64) / 255
    linear_N3 = np.where(share_N3 <= 0.04045, share_N3 / 12.92, ((share_N3 + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear_N3 @ _TO_LMS.T) @ _TO_LAB.T


@lru_cache(1)
def _colours() -> NDArray[np.int64]:
    """[_MOST, 3] RGB."""
    levels = np.linspace(0, 255, _STEPS).round().astype(np.int64)
    rgb_N3 = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_N3 = to_oklab(rgb_N3)
    chroma_N = np.hypot(lab_N3[:, 1], lab_N3[:, 2])
    usable_N = np.full(len(rgb_N3), True)
    for of_N, (low, high) in ((lab_N3[:, 0], _LIGHTNESS), (chroma_N, _CHROMA)):
        usable_N &= (of_N >= low) & (of_N <= high)
    rgb_N3, lab_N3 = rgb_N3[usable_N], lab_N3[usable_N]
    chosen = [int(chroma_N[usable_N].argmax())]
    nearest_N = np.full(len(rgb_N3), np.inf)
    while len(chosen) < _MOST:
        nearest_N = np.minimum(nearest_N, ((lab_N3 - lab_N3[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(nearest_N.argmax()))
    return rgb_N3[chosen]
