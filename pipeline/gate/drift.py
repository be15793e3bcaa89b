"""Is a run like the runs before it? Bounds by resampling: what the earlier runs' images would give in other nights.

A night is drawn by choosing one of the earlier runs, and as many of its images as the new run has, with repeats. So the
spread of drawn nights holds both, how much images differ and how much runs differ. All figures are judged together: a
figure is out of bounds if it is further from the mean of the drawn nights, in standard deviations, than any figure of
999 in 1,000 drawn nights, and a margin. Small changes pass whatever the spread, as the gate file says.

Legend: D figures of a run, B drawn nights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.figures import Figures

_NIGHTS = 2000
_WITHIN = 0.999  # of the drawn nights
_MARGIN = 1.1
_SEED = 20_261_130  # the same runs give the same bounds


@dataclass(frozen=True)
class Violation:
    """A figure that is out of its bounds."""

    name: str
    value: float
    low: float
    high: float
    num_runs: int

    def __str__(self) -> str:
        show = "{:.2%}".format if self.name.startswith("class ") else "{:.3f}".format
        return (
            f"{self.name} is {show(self.value)}; the last {self.num_runs} runs let expect {show(self.low)} to "
            f"{show(self.high)}"
        )


def violations(new: Figures, earlier: Sequence[Figures], bounds: GateBounds) -> list[Violation]:
    """The figures of `new` that are out of the bounds which the `earlier` runs give."""
    earlier = [one for one in earlier if one.num_images]
    if not new.num_images or not earlier:
        return []
    classes = sorted({name for one in (new, *earlier) for name in one.shares})
    names = ["mean number of segments", "mean score", *(f"class {name}: share of the pixels" for name in classes)]
    tolerated = np.array([bounds.segments, bounds.score, *([bounds.class_share] * len(classes))])
    matrices = [one.matrix(classes) for one in earlier]
    rng = np.random.default_rng(_SEED)
    drawn_BD = np.empty((_NIGHTS, len(names)))
    for night in range(_NIGHTS):
        of_run = matrices[rng.integers(len(matrices))]
        drawn_BD[night] = _means(of_run[rng.integers(len(of_run), size=new.num_images)])
    drawn_BD = np.where(np.isnan(drawn_BD), np.nanmean(drawn_BD, axis=0), drawn_BD)
    means, spreads = drawn_BD.mean(axis=0), drawn_BD.std(axis=0)
    away = np.abs(drawn_BD - means) / np.where(spreads > 0, spreads, np.inf)
    furthest = _MARGIN * float(np.quantile(away.max(axis=1), _WITHIN))
    furthest *= math.sqrt(1 + 1 / len(earlier))  # few runs say little of how much runs differ
    reach = np.maximum(furthest * spreads, tolerated)
    values = _means(new.matrix(classes))
    lows, highs = np.maximum(means - reach, 0.0), means + reach
    highs[1:] = np.minimum(highs[1:], 1.0)  # scores and shares
    is_out = (values < lows) | (values > highs) | np.isnan(values)
    return [
        Violation(names[d], float(values[d]), float(lows[d]), float(highs[d]), len(earlier))
        for d in np.flatnonzero(is_out).tolist()
    ]


def _means(values: np.ndarray) -> np.ndarray:
    """Means over images, NaN left out; of a column without any number NaN."""
    known = ~np.isnan(values)
    numbers = known.sum(axis=0)
    sums = np.where(known, values, 0.0).sum(axis=0)
    return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
