"""Pixel values as transformers computes them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hf_values(
    values_C: NDArray[np.number],
    rescale_factor: float | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> NDArray[np.number]:
    """Rescale and normalise values whose first axis is the channel; None leaves a step out.

    Rescaling is in float64, rounded to float32. Normalising is in the floating-point type of the values, float32 for
    whole numbers.
    """
    if rescale_factor is not None:
        values_C = (values_C.astype(np.float64) * rescale_factor).astype(np.float32)
    if mean is not None and std is not None:
        dtype = values_C.dtype if values_C.dtype.kind == "f" else np.dtype(np.float32)
        ones = (1,) * (values_C.ndim - 1)
        mean_C, std_C = (np.asarray(numbers, dtype).reshape(-1, *ones) for numbers in (mean, std))
        values_C = (values_C.astype(dtype) - mean_C) / std_C
    return values_C
