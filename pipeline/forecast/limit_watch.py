"""Stop a run between shards once a limit is reached: the stages begin no more shards, so the graph runs empty."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar

from pipeline.commit.receipt import Receipt
from pipeline.forecast.limits import Limits
from pipeline.guard.interruption import interrupt_main
from pipeline.telemetry.in_flight import InFlight

T = TypeVar("T")
logger = logging.getLogger(__name__)

# A graph in which no shard is begun runs empty within seconds, unless it waits for a node that does not come, or has
# tens of thousands of shards to let pass. Nothing is lost if it is left.
_EMPTY_SECONDS = 60.0


class Stages(Protocol):
    """What the stages are doing, and the word that stops them: see cluster/in_flight_actor.py."""

    def look(self) -> InFlight | None: ...

    def stop(self) -> None: ...


class LimitWatch:
    """Holds one command to its limits. The main thread calls `add` and `received`, another thread calls `check`."""

    def __init__(self, limits: Limits, stages: Stages):
        self.limits, self.stages = limits, stages
        self.waits = False  # the main thread, for the next item
        self.has_given_up = False
        self.none_begun_since: float | None = None  # after the limit was reached
        self._lock = threading.Lock()

    def add(self, receipt: Receipt) -> None:
        """A shard is done: stop the stages if another one like it would exceed a limit."""
        self.limits.add(receipt)
        if not self.limits.may_begin(time.time()):
            self.stages.stop()

    def check(self) -> None:
        """Count the cost so far, and stop the stages at a limit. Call every few seconds, and after the last shard."""
        with self._lock:
            self._check(time.time(), self.stages.look())

    def _check(self, now: float, seen: InFlight | None) -> None:
        self.limits.look(seen, now)
        if self.limits.may_begin(now):
            return
        self.stages.stop()  # again each time, in case the word was lost
        if self.waits and not self.has_given_up and self._is_in_vain(seen, now):
            self.has_given_up = True
            interrupt_main()

    def _is_in_vain(self, seen: InFlight | None, now: float) -> bool:
        """Whether to wait no longer for the graph to run empty."""
        if seen is None or seen.num_begun:
            self.none_begun_since = None
        elif self.none_begun_since is None:
            self.none_begun_since = now
        if self.none_begun_since is not None:
            return now - self.none_begun_since > _EMPTY_SECONDS
        if not self.limits.is_out_of_patience(now):
            return False
        logger.warning("some shards were begun and are not done; the next command begins them again")
        return True

    def received(self, items: Iterator[T]) -> Iterator[T]:
        """Yield `items` to their end, or until the stages have stopped and waiting for the next item is in vain.

        Ray Data waits for as long as a shard may come, also for a node that never comes, so `check` interrupts it.
        """
        while True:
            self.waits = True
            try:
                item = next(items)
            except StopIteration:
                return
            except KeyboardInterrupt:
                if self.has_given_up:
                    return
                raise
            finally:
                self.waits = False
            yield item
