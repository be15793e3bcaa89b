"""The two resizings from mask logits to the original image, as a short weighted sum per output row or column.

Legend: n outputs along one axis; T = 4 taps.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m2f_core.jit import compiled

NUM_TAPS = 4  # two padded rows, each from two rows of logits


@dataclass(frozen=True, eq=False)
class Taps:
    """One axis: output pixel i is the sum over t of `weights[i, t] * logits[indices[i, t]]`. Unused taps weigh 0."""

    indices: NDArray[np.int64]  # [n, T]
    weights: NDArray[np.float32]  # [n, T]


@lru_cache(maxsize=128)  # some 50 KB each; a bucket has few sizes
def axis_taps(num_low: int, num_padded: int, num_resized: int, num_original: int) -> Taps:
    """Taps of these steps: bilinear `num_low` -> `num_padded`, cut to `num_resized`, bilinear -> `num_original`."""
    if not 1 <= num_resized <= num_padded:
        raise ValueError(f"resized size {num_resized} must be within padded size {num_padded}")
    return Taps(*_compose(*_bilinear_weights(num_low, num_padded), *_bilinear_weights(num_resized, num_original)))


def _bilinear_weights(num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First index i [num_out] and weights [num_out, 3] of the inputs i, i + 1, i + 2 in PyTorch's own interpolation.

    The weights are read from PyTorch instead of computed here: PyTorch finds positions in float32, whose rounding at
    position 333 is 3e-5, and it depends on the build whether a fused multiply-add is used. Three combs, each with a one
    at every third input, show the weights exactly: the two inputs of an output are at most one away from its nearest
    input, so each comb meets at most one of the two.
    """
    combs = torch.arange(num_in)[None, :] % 3 == torch.arange(3)[:, None]
    size = (num_out, 1)
    seen = F.interpolate(combs.float()[None, :, :, None], size=size, mode="bilinear", align_corners=False)
    nearest = np.rint((np.arange(num_out) + 0.5) * (num_in / num_out) - 0.5).astype(np.int64)
    first = nearest.clip(0, num_in - 1) - 1
    comb_of_input = (first[:, None] + np.arange(3)) % 3
    return first, np.take_along_axis(seen[0, :, :, 0].numpy().T, comb_of_input, axis=1)


@compiled
def _compose(first_a, weights_a, first_b, weights_b):  # type: ignore[no-untyped-def]
    """Taps of step a followed by step b; equal inputs are merged, products are taken in float64."""
    num_out = first_b.size
    indices = np.zeros((num_out, NUM_TAPS), np.int64)
    weights = np.zeros((num_out, NUM_TAPS), np.float32)
    for i in range(num_out):
        count = 0
        for b in range(3):
            if weights_b[i, b] == 0:
                continue
            middle = first_b[i] + b
            for a in range(3):
                weight = np.float64(weights_a[middle, a]) * np.float64(weights_b[i, b])
                if weight == 0:
                    continue
                index = first_a[middle] + a
                tap = 0
                while tap < count and indices[i, tap] != index:
                    tap += 1
                if tap == count:
                    indices[i, tap] = index
                    count += 1
                weights[i, tap] += np.float32(weight)
        for tap in range(count, NUM_TAPS):
            indices[i, tap] = indices[i, 0]
    return indices, weights
