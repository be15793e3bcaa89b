"""Paint a closed outline as OpenCV's fillPoly does, by another way."""

import numpy as np


def painted(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels on the outline, and those inside of it by the even-odd rule."""
    mask = np.zeros(shape, bool)
    ends = np.roll(corners, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(corners, ends, strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        assert {abs(x1 - x0), abs(y1 - y0)} <= {0, steps}, "straight or diagonal"
        for n in range(steps + 1):
            mask[y0 + n * np.sign(y1 - y0), x0 + n * np.sign(x1 - x0)] = True
    outline = mask.copy()
    for y, x in np.argwhere(~outline):
        # A ray to the left, slightly below the middle of the row.
        crossings = 0
        for (x0, y0), (x1, y1) in zip(corners, ends, strict=True):
            if min(y0, y1) <= y < max(y0, y1):
                crossings += x0 + (x1 - x0) * (y + 1e-3 - y0) / (y1 - y0) < x
        mask[y, x] = crossings % 2 == 1
    return mask
