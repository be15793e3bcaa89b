"""Is a run like the runs before it? A permutation test over images, widened by how runs differ.

If a run is like the others, its images might as well be any images of all runs. So nights are drawn: as many images as
the new run has are taken out of all images, without repeats, and compared with the rest. This holds for nights of any
size, and for classes in one image of a hundred: that such a class appears or stays away happens in drawn nights, too.

A night is more than its images: weather, another camera. So each figure of a drawn night is shifted, by Student's t
with the spread of the earlier runs beyond that of their images. Three runs say little of it, so it is mixed with a
usual spread, a tenth of the figure, which counts as ten runs.

All figures are judged together: a figure is out of bounds if it is further from the earlier runs, in standard
deviations, than any figure of 998 in 1,000 drawn nights. Small changes pass whatever the spread, as the gate file says.

Legend: D figures of a run, B drawn nights, K earlier runs, M images of all runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.figures import FAILED, SCORE, Figures

_NIGHTS = 2000
_WITHIN = 0.998  # of the drawn nights
_SEED = 20_261_130  # the same runs give the same bounds
_USUAL = 0.1  # of a figure is its standard deviation between runs, as long as they do not say otherwise ...
_USUAL_RUNS = 10  # ... with more weight than this
_FEWEST = 5  # images that show a share, or would as often as before, so that it is judged; 3 if there are no 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Violation:
    """A figure that is out of its bounds."""

    name: str
    value: float
    low: float
    high: float
    num_runs: int

    def __str__(self) -> str:
        show = "{:.3f}".format if self.name.startswith("mean ") else "{:.2%}".format
        return (
            f"{self.name} is {show(self.value)}; the last {self.num_runs} runs let expect {show(self.low)} to "
            f"{show(self.high)}"
        )


def violations(new: Figures, earlier: Sequence[Figures], bounds: GateBounds) -> list[Violation]:
    """The figures of `new` that are out of the bounds which the `earlier` runs give."""
    earlier = [one for one in earlier if one.num_ok]
    if not new.num_images or not earlier:
        return []
    classes = sorted({name for one in (new, *earlier) for name in one.shares})
    shares = ["failed images: share", *(f"class {name}: share of the pixels" for name in classes)]
    names = ["mean number of segments", "mean score", *shares]
    tolerated = np.array([bounds.segments, bounds.score, bounds.failed, *([bounds.class_share] * len(classes))])
    values_MD, others = new.matrix(classes), [one.matrix(classes) for one in earlier]
    shifts_D, freedom_D = _spread_between(others)
    before_MD = np.concatenate(others)
    means_D, found_D = _means(before_MD), _means(values_MD)
    rng = np.random.default_rng(_SEED)
    drawn_BD = _drawn(np.concatenate([values_MD, before_MD]), len(values_MD), rng)
    drawn_BD += shifts_D * rng.standard_t(freedom_D, drawn_BD.shape)
    is_judged = ~np.isnan(means_D) & ~np.isnan(found_D) & _are_seen(values_MD, before_MD)
    spreads_D = drawn_BD.std(axis=0)
    away_BD = np.abs(drawn_BD) / np.where(spreads_D > 0, spreads_D, np.inf)
    furthest = float(np.quantile(away_BD[:, is_judged].max(axis=1, initial=0.0), _WITHIN))
    reach_D = np.maximum(furthest * spreads_D, tolerated)
    lows_D, highs_D = np.maximum(means_D - reach_D, 0.0), means_D + reach_D
    highs_D[1:] = np.minimum(highs_D[1:], 1.0)  # scores and shares
    lows_D[FAILED] = 0.0  # it is no fault if fewer images fail
    is_out = is_judged & ((found_D < lows_D) | (found_D > highs_D))
    return [
        Violation(names[d], float(found_D[d]), float(lows_D[d]), float(highs_D[d]), len(earlier))
        for d in np.flatnonzero(is_out).tolist()
    ]


def _are_seen(new_MD: Array, before_MD: Array) -> NDArray[np.bool_]:
    """Which figures are judged: of shares only those that enough images show, in the new run or as often as before."""
    seen_D = np.count_nonzero(np.nan_to_num(new_MD), axis=0)
    expected_D = np.count_nonzero(np.nan_to_num(before_MD), axis=0) * (len(new_MD) / len(before_MD))
    is_seen: NDArray[np.bool_] = np.maximum(seen_D, expected_D) >= max(3, min(_FEWEST, len(new_MD)))
    is_seen[:FAILED] = True
    return is_seen


def _spread_between(runs: Sequence[Array]) -> tuple[Array, Array]:
    """[D] the scale of the shift of another run against these, and its degrees of freedom, by analysis of variance.

    Of a single run, nothing is known of how runs differ but the usual spread.
    """
    numbers_KD = np.array([np.count_nonzero(~np.isnan(run), axis=0) for run in runs], np.float64)
    means_KD = np.nan_to_num([_means(run) for run in runs])
    totals_D = np.maximum(numbers_KD.sum(axis=0), 1)
    mean_D = (numbers_KD * means_KD).sum(axis=0) / totals_D
    residuals = [np.nansum((run - means) ** 2, axis=0) for run, means in zip(runs, means_KD, strict=True)]
    within_D = np.sum(residuals, axis=0) / np.maximum(totals_D - len(runs), 1)
    between_D = (numbers_KD * (means_KD - mean_D) ** 2).sum(axis=0) - (len(runs) - 1) * within_D
    of_a_run_D = np.maximum((numbers_KD**2).sum(axis=0) / totals_D, 1)  # images; large runs say more
    more_D = np.maximum(totals_D / of_a_run_D - 1, 0)  # degrees of freedom of as many runs of this size
    found_D = np.where(more_D > 0, between_D / np.maximum(totals_D - of_a_run_D, 1), 0.0)
    usual_D = _USUAL * np.where(np.arange(mean_D.size) == SCORE, 1 - mean_D, mean_D)
    variance_D = np.maximum((more_D * found_D + _USUAL_RUNS * usual_D**2) / (more_D + _USUAL_RUNS), 0.0)
    return np.sqrt(variance_D * (1 + of_a_run_D / totals_D)), more_D + _USUAL_RUNS


def _drawn(values_MD: Array, size: int, rng: np.random.Generator) -> Array:
    """[B, D] by how much the mean of `size` images, drawn without repeats, differs from the mean of the rest."""
    is_known_MD = ~np.isnan(values_MD)
    values_MD = np.where(is_known_MD, values_MD, 0.0)
    sums_D, numbers_D = values_MD.sum(axis=0), is_known_MD.sum(axis=0)
    fewer = min(size, len(values_MD) - size)
    drawn_BD = np.empty((_NIGHTS, values_MD.shape[1]))
    for night in range(_NIGHTS):
        taken = rng.choice(len(values_MD), fewer, replace=False, shuffle=False)
        sums, numbers = values_MD[taken].sum(axis=0), is_known_MD[taken].sum(axis=0)
        of_taken, of_rest = sums / np.maximum(numbers, 1), (sums_D - sums) / np.maximum(numbers_D - numbers, 1)
        drawn_BD[night] = np.where((numbers > 0) & (numbers < numbers_D), of_taken - of_rest, 0.0)
    return drawn_BD if fewer == size else -drawn_BD


def _means(values_MD: Array) -> Array:
    """[D] means over images, NaN left out; of a column without any number NaN."""
    numbers_D = np.count_nonzero(~np.isnan(values_MD), axis=0)
    means: Array = np.where(numbers_D > 0, np.nansum(values_MD, axis=0) / np.maximum(numbers_D, 1), np.nan)
    return means
