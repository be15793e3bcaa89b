"""How many model actors a run takes: as many as may be, or as many as --deadline and --max-cost need.

The speed comes from the file of --forecast; without the file, the first shards of the command measure it.
"""

import logging
import time
from dataclasses import replace

from pipeline.commit.receipt import Receipt
from pipeline.forecast.forecast import Forecast, Work, choose_actors, forecast
from pipeline.forecast.limits import Limits
from pipeline.forecast.measured import Measured
from pipeline.forecast.meter import RunMeter
from pipeline.forecast.speed import WARM_UP_SHARDS
from pipeline.telemetry.console import dollars, hms

logger = logging.getLogger(__name__)

_MEASURED_SHARDS = WARM_UP_SHARDS + 2  # of each actor
# A new number of actors is a new start of the actors. For fewer shards than this many times the measured ones, that
# is not worth the time.
_WORTH_MEASURING = 8


class Staff:
    """Of one command that works on a run."""

    def __init__(self, limits: Limits, left: Work, fingerprint: str):
        """`left`: what earlier commands have left."""
        self.limits, self.left, self.given, self.fingerprint = limits, left, limits.measured, fingerprint
        self.meter = RunMeter(time.time())
        self.number = 0  # of actors, as chosen

    def num_shards_to_measure(self, bounds: tuple[int, int], at_start: int) -> int:
        """How many shards the actors of the start have to do before a number is chosen; 0: choose at once.

        `bounds`: min, max of the actors.
        """
        number = _MEASURED_SHARDS * at_start
        has_choice = self.limits.are_set and self.given is None and bounds[0] < bounds[1]
        return number if has_choice and self.left.num_shards >= _WORTH_MEASURING * number else 0

    def add(self, receipt: Receipt) -> None:
        self.meter.add(receipt)
        images = receipt.num_images - receipt.num_removed
        self.left = Work(max(0, self.left.num_images - images), max(0, self.left.num_shards - 1))

    def choose(self, bounds: tuple[int, int]) -> int:
        """The number of model actors for the rest, of `bounds` (min, max)."""
        self.number = bounds[1]
        measured = self.measured()
        if not self.limits.are_set or measured is None or not self.left.num_shards:
            return self.number
        deadline = self.limits.deadline
        self.number = choose_actors(
            measured,
            self.left,
            bounds,
            self.limits.prices,
            None if deadline is None else deadline.timestamp() - time.time(),
            None if self.limits.max_cost is None else max(0.01, self.limits.max_cost - self.limits.cost),
        )
        expected = describe(forecast(measured, self.left, self.number, self.limits.prices))
        logger.info("%d of at most %d model actors: %s", self.number, bounds[1], expected)
        return self.number

    def describe(self, rest: Work) -> str:
        """What is left, in words: images, and with the measured speed also time and cost."""
        images = f"{rest.num_images:,} images are left"
        measured = self.measured()
        if measured is None or not rest.num_images:
            return images
        return f"{images}: {describe(forecast(measured, rest, self.number, self.limits.prices))}"

    def measured(self) -> Measured | None:
        """The measurements of this command; the file of --forecast, until the command has measured enough shards."""
        own = self.meter.measured(
            fingerprint=self.fingerprint,
            device_name=self.limits.device_name or "unknown",
            units_per_actor=self.limits.units_per_actor,
        )
        if own is not None and self.given is not None and self.meter.speed.later.shards < _MEASURED_SHARDS:
            own = None
        return own or (None if self.given is None else replace(self.given, begin_seconds=0.0))


def describe(expected: Forecast) -> str:
    """`about 2:18:00 with 8 model actors, 17.9 hours of devices, 44.75 USD`"""
    hours = f"{expected.device_hours.value:,.2f} hours of devices"
    cost = "" if expected.cost is None else f", {dollars(expected.cost.value)} USD"
    return f"about {hms(expected.seconds.value)} with {expected.actors}, {hours}{cost}"
