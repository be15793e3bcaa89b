"""Mask logits with fewer bits, to be kept and reduced again later with other settings.

A code of 12 bits holds the sign of a logit and how far the logit is from 0: finely near 0, where the borders of masks
lie, and coarsely far from 0. A code c >= 0 stands for the logits from e(c) to e(c + 1), with e(c) = exp(c / 256) - 1,
and reads as e(c + 1/2); the code -1 - c stands for their negatives. So each logit keeps its sign, two logits never
change their order (they may become equal), the error is at most 0.2 % of 1 + |logit|, and logits beyond 64 become 64.

With 8 bits, 4 pixels in 1,000 change in semantic segmentation, and the bytes are three fifths; see docs/decisions.md.

Legend: K kept queries; h, w mask logits.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

_PER_E = 256
_MOST = 64.0
_LARGEST = int(math.log1p(_MOST) * _PER_E)


def quantise(masks_Khw: torch.Tensor) -> torch.Tensor:
    """Mask logits (float32, finite) -> codes (int16), on the device of the logits."""
    codes = (masks_Khw.abs().log1p() * _PER_E).clamp_max(_LARGEST).to(torch.int16)  # to() cuts the fraction off
    return torch.where(masks_Khw < 0, -1 - codes, codes)


def dequantise(codes_Khw: NDArray[np.int16]) -> torch.Tensor:
    """Codes -> mask logits (float32). ValueError if there is no such code."""
    sizes = np.where(codes_Khw < 0, -1 - codes_Khw, codes_Khw)
    if sizes.size and sizes.max() > _LARGEST:
        raise ValueError(f"{sizes.max()} is no code of a mask logit; the largest is {_LARGEST}")
    logits = np.expm1((np.arange(_LARGEST + 1) + 0.5) / _PER_E).astype(np.float32)[sizes]
    return torch.from_numpy(np.where(codes_Khw < 0, -logits, logits))


def pack_codes(codes_Khw: NDArray[np.int16]) -> bytes:
    """Codes as bytes that compress well: differences along each row, first all low bytes, then all high bytes."""
    differences = np.diff(codes_Khw, axis=-1, prepend=np.int16(0)).astype("<i2")
    return differences.view(np.uint8).reshape(-1, 2).T.tobytes()


def unpack_codes(data: bytes, shape_Khw: tuple[int, int, int]) -> NDArray[np.int16]:
    """The inverse of `pack_codes`. ValueError if the bytes are not as many as `shape_Khw` needs."""
    low_high = np.frombuffer(data, np.uint8).reshape(2, math.prod(shape_Khw))
    differences = np.ascontiguousarray(low_high.T).view("<i2").reshape(shape_Khw)
    return np.cumsum(differences, axis=-1, dtype=np.int16)
