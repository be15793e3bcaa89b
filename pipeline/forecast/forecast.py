"""How long a run will take, and what it will cost and write, from what a sample has measured; how many actors it needs.

The times of a run add up: it begins (imports, listing, plan), its actors load the model, they work, the last parts are
written, the tables are published. Shards are whole: with N actors, the time of ceil(shards / N) shards passes.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from pipeline.budget.prices import Prices
from pipeline.forecast.measured import Measured, Size

_SURE = 1.96  # standard errors on either side: 95 % of samples
_MOST_FOR_LOADING = 0.1  # share of --max-cost that may go for loading models


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    num_images: int  # to segment; rows of images that are removed from the input take no time
    num_shards: int


@dataclass(frozen=True)
class Between:
    """A value, and the interval that holds the value of the whole for 95 % of samples; None: unknown."""

    value: float
    low: float | None
    high: float | None

    @property
    def surely_below(self) -> float:
        """The upper end; the value itself if that is unknown."""
        return self.value if self.high is None else self.high


@dataclass(frozen=True)
class Forecast:
    """Of a run with `num_actors` model actors."""

    num_actors: int
    seconds: Between  # from the start of the command to its end
    device_hours: Between  # that model actors hold devices: GPU hours, or hours of CPUs
    cost: Between | None  # US dollars; None if the table has no price of the device
    bytes_of: dict[str, Between]  # of the parts, by table

    @property
    def actors(self) -> str:
        """`8 model actors`"""
        return f"{self.num_actors:,} model actor{'s' if self.num_actors > 1 else ''}"


def forecast(measured: Measured, work: Work, num_actors: int, prices: Prices) -> Forecast:
    """What the run takes with `num_actors` actors, or fewer if there are fewer shards."""
    actors = max(1, min(num_actors, work.num_shards))
    # What an image takes, as often as it is waited for: the shards are spread over the actors, and none is cut.
    waits = work.num_images / work.num_shards * math.ceil(work.num_shards / actors) if work.num_shards else 0.0
    # A sample of the whole bucket has no error.
    error = _of_rest(measured.standard_error, measured.num_images, work.num_images)
    around = measured.begin_seconds + measured.end_seconds
    held = measured.load_seconds + measured.write_seconds + waits * measured.image_seconds
    seconds = _between(around + held, waits, error)
    hours = actors * measured.units_per_actor / 3600
    device_hours = _scaled(_between(held, waits, error), hours)
    price = prices.of(measured.device_name)
    return Forecast(
        actors,
        seconds,
        device_hours,
        None if price is None else _scaled(device_hours, price),
        {table: _bytes(size, measured.num_images, work) for table, size in measured.sizes.items()},
    )


def choose_actors(
    measured: Measured,
    work: Work,
    bounds: tuple[int, int],
    prices: Prices,
    seconds_left: float | None,
    max_cost: float | None,
) -> int:
    """How many model actors to take, of `bounds` (min, max).

    `seconds_left`: until the deadline, from the start of the command. The fewest that are surely done by then; if none
    are, or without a deadline, as many as may be. With `max_cost`, loading the models takes a tenth of it at most.
    """
    least, most = bounds
    price = prices.of(measured.device_name, measured.units_per_actor)
    if max_cost is not None and price:
        of_one = price * measured.load_seconds / 3600
        most = max(least, min(most, math.floor(_MOST_FOR_LOADING * max_cost / of_one))) if of_one else most
    if seconds_left is None:
        return most

    def is_in_time(number: int) -> bool:
        return forecast(measured, work, number, prices).seconds.surely_below <= seconds_left

    return bisect_left(range(most), True, least, key=is_in_time)  # more actors are never slower


def _of_rest(error: float | None, num_sampled: int, num_images: int) -> float | None:
    if error is None or num_images <= 0:
        return error
    return error * math.sqrt(max(0.0, 1.0 - num_sampled / num_images))


def _between(value: float, times: float, error: float | None) -> Between:
    if error is None:
        return Between(value, None, None)
    return Between(value, max(0.0, value - _SURE * times * error), value + _SURE * times * error)


def _scaled(one: Between, factor: float) -> Between:
    low, high = (None if end is None else factor * end for end in (one.low, one.high))
    return Between(factor * one.value, low, high)


def _bytes(size: Size, num_sampled: int, work: Work) -> Between:
    value = size.image_bytes * work.num_images + size.part_bytes * work.num_shards
    return _between(value, work.num_images, _of_rest(size.standard_error, num_sampled, work.num_images))
