"""Which shards are under way, where and since when: stages say it, the progress line shows the oldest.

One small Ray actor beside the driver holds what is in flight, nothing else. Telling it costs a stage one message that
nobody waits for; a stage that cannot reach it goes on.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster.resources import on_this_node
from pipeline.telemetry.in_flight import UnderWay

_ANSWER_SECONDS = 5.0


class Board:
    """What stages are given: small, and safe to pickle."""

    def __init__(self, actor: Any):
        self._actor = actor

    @contextlib.contextmanager
    def in_hand(self, shard: int, stage: str, first_key: str) -> Iterator[None]:
        """Say that this process is at `stage` of a shard. One that fails or dies at it leaves it standing."""
        with contextlib.suppress(RayError):
            self._actor.take.remote(UnderWay(shard, stage, first_key, socket.gethostname(), time.time()))
        yield
        with contextlib.suppress(RayError):
            self._actor.leave.remote(shard, stage)

    def done(self, shard: int) -> None:
        """Say that the shard has a receipt."""
        with contextlib.suppress(RayError):
            self._actor.done.remote(shard)

    def oldest(self) -> UnderWay | None:
        """The shard that a stage has in hand for longest, if any; None also where nobody answers.

        Shards that wait between stages do not count: Ray reads ahead of the model, and that is no straggling.
        """
        try:
            oldest: UnderWay | None = ray.get(self._actor.oldest.remote(), timeout=_ANSWER_SECONDS)
        except RayError:
            return None
        return oldest


class _Held:
    def __init__(self) -> None:
        self.under_way: dict[int, UnderWay] = {}

    def take(self, taken: UnderWay) -> None:
        before = self.under_way.get(taken.shard)
        if before is not None and before.stage == taken.stage:  # its worker has died, or Ray repeats it
            taken = replace(taken, since=before.since)
        self.under_way[taken.shard] = taken

    def leave(self, shard: int, stage: str) -> None:
        # Messages of different processes may overtake each other: the next stage may have taken it already.
        if shard in self.under_way and self.under_way[shard].stage == stage:
            del self.under_way[shard]

    def done(self, shard: int) -> None:
        self.under_way.pop(shard, None)

    def oldest(self) -> UnderWay | None:
        return min(self.under_way.values(), key=lambda one: one.since, default=None)


def start_board() -> Board:
    """A board on this node; it ends with the driver."""
    return Board(ray.remote(_Held).options(num_cpus=0, scheduling_strategy=on_this_node()).remote())
