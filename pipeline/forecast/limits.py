"""--deadline and --max-cost while a run goes on: what it has spent, and whether it may begin another shard.

A run at a limit begins no shard that would not be done in time or would cost too much, by the time of the slowest of
the last shards, and ends once the shards that it has begun are written.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline.budget.deadline import deadline_after, time_zone
from pipeline.budget.prices import CPU, Prices, read_prices
from pipeline.commit.receipt import Receipt
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.forecast.measured import Measured, read_measured
from pipeline.telemetry.in_flight import InFlight
from pipeline.telemetry.metrics import COST

logger = logging.getLogger(__name__)

_LAST_SHARDS = 16
_RATE_SECONDS = 60.0  # model actors report every few seconds, not all at once
# For shards that were begun: then the run ends without them. Twice the slowest of the last shards, and:
_PATIENCE_SECONDS = 300.0


def limits_of(settings: Settings, fingerprint: str) -> "Limits":
    """The limits of a command that starts now, for a run with this fingerprint.

    RunError if the deadline has passed, if the file of --prices is no table, or if the file of --forecast does not fit.
    """
    deadline = None
    if settings.deadline is not None:
        deadline = deadline_after(settings.deadline, time_zone(settings.time_zone), datetime.now(UTC))
    measured = None if settings.forecast is None else read_measured(Path(settings.forecast), fingerprint)
    return Limits(deadline, settings.max_cost, read_prices(settings.prices), measured)


class Limits:
    """The limits of one command. Times are seconds since the epoch. Threads may share them."""

    def __init__(
        self, deadline: datetime | None, max_cost: float | None, prices: Prices, measured: Measured | None = None
    ):
        """`max_cost`: US dollars; `measured`: the speed, if it is known beforehand."""
        self.deadline, self.max_cost, self.prices, self.measured = deadline, max_cost, prices, measured
        self.device_names: tuple[str, ...] = ()  # as far as they are known before actors start
        self.units_per_actor = 1.0
        self.cost = 0.0  # US dollars so far
        self.reached: str | None = None  # the limit in words, once no more shards are begun
        self.fault: str | None = None  # why the cost is not known, if --max-cost needs to know it
        self.stopped_at = 0.0
        self.unpriced: set[str] = set()
        self._lock = threading.Lock()  # for the next line, and for `reached`
        self._shard_seconds: deque[float] = deque(maxlen=_LAST_SHARDS)
        self._held: Mapping[str, float] = {}  # seconds by device, of the last report
        self._costs: deque[tuple[float, float]] = deque()  # when, and the cost then, of the last minutes

    @property
    def are_set(self) -> bool:
        return self.deadline is not None or self.max_cost is not None

    def set_devices(self, device: str, names: Iterable[str], units_per_actor: float) -> None:
        """The devices of the model actors: cuda or cpu, and the names that are known before they start.

        `units_per_actor`: CPUs, or the part of a GPU.
        RunError if --max-cost needs the price of one that has none, or if --forecast was measured on another device.
        """
        self.device_names, self.units_per_actor = tuple(names), units_per_actor
        if self.max_cost is not None:
            for name in self.device_names:
                self.prices.need(name, units_per_actor)
        if self.measured is not None and (self.measured.device_name == CPU) != (device == CPU):
            raise RunError(
                f"--forecast was measured on {self.measured.device_name}, but this run is on {device}; run "
                "plan_bucket.py --calibrate with the same --device"
            )

    @property
    def device_name(self) -> str | None:
        """Of several kinds, the one that has worked most; before the first report, the one that is known beforehand."""
        return max(self._held, key=self._held.__getitem__, default=self.device_names[0] if self.device_names else None)

    def add(self, receipt: Receipt) -> None:
        """A shard is done: a shard that is begun now is expected to take as long."""
        with self._lock:
            self._shard_seconds.append(receipt.finished - receipt.started)

    def look(self, seen: InFlight | None, now: float) -> None:
        """Take up what model actors have reported. A device without a price is a `fault` if --max-cost needs the price.

        While the reports cannot be read, the run goes on spending as before.
        """
        if seen is not None:
            self._held = seen.held
            more = sum(self._cost_of(name, seconds) for name, seconds in seen.held.items()) - self.cost
        else:
            more = self._usd_per_second * (now - self._costs[-1][0]) if self._costs else 0.0
        if more > 0:
            self.cost += more
            COST.add(more)
        self._costs.append((now, self.cost))
        while len(self._costs) > 2 and now - self._costs[1][0] >= _RATE_SECONDS:
            self._costs.popleft()

    @property
    def _usd_per_second(self) -> float:
        (began, before), (ended, after) = (self._costs[0], self._costs[-1]) if self._costs else ((0.0, 0.0),) * 2
        return (after - before) / (ended - began) if ended > began else 0.0

    def _cost_of(self, device_name: str, seconds: float) -> float:
        price = self.prices.of(device_name, self.units_per_actor)
        if price is None and device_name not in self.unpriced:
            self.unpriced.add(device_name)
            if self.max_cost is not None:
                self.fault = f"--max-cost: {self.prices.missing(device_name)}"
            else:
                logger.info("--prices %s has no price of %s: its cost is not counted", self.prices.source, device_name)
        return seconds / 3600 * (price or 0.0)

    def may_begin(self, now: float) -> bool:
        """Whether the run may begin another shard; once it may not, it never may again, and `reached` says why."""
        with self._lock:
            if self.reached is None:
                self.reached = self._limit_at(now, max(self._shard_seconds, default=0.0))
                if self.reached is not None:
                    self.stopped_at = now
                    logger.info("%s is reached: no more shards are begun", self.reached)
            return self.reached is None

    def _limit_at(self, now: float, shard_seconds: float) -> str | None:
        """The limit that a shard of `shard_seconds` would exceed, in words."""
        if self.fault is not None:
            return "--max-cost"
        if self.deadline is not None and now + shard_seconds >= self.deadline.timestamp():
            return f"--deadline {self.deadline.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if self.max_cost is not None and self.cost + shard_seconds * self._usd_per_second >= self.max_cost:
            return f"--max-cost {self.max_cost:g}"
        return None

    def is_out_of_patience(self, now: float) -> bool:
        """Whether to wait no longer for the shards that were begun before the limit was reached."""
        with self._lock:
            return now - self.stopped_at > _PATIENCE_SECONDS + 2 * max(self._shard_seconds, default=0.0)
