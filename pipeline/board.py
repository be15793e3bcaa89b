"""Which shards are under way, where and since when: stages say it, the progress line shows the oldest.

One small Ray actor beside the driver holds what is in flight, nothing else. Telling it costs a stage one message that
nobody waits for; a stage that cannot reach it goes on.
"""

import contextlib
import socket
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.under_way import UnderWay

_ANSWER_SECONDS = 5.0


class Board:
    """What stages are given: small, and safe to pickle."""

    def __init__(self, actor: Any):
        self._actor = actor

    def take(self, shard: int, stage: str, first_key: str) -> None:
        """Say that this process has begun `stage` of a shard."""
        with contextlib.suppress(RayError):
            self._actor.take.remote(UnderWay(shard, stage, first_key, socket.gethostname(), time.time()))

    def done(self, shard: int) -> None:
        """Say that the shard has a receipt."""
        with contextlib.suppress(RayError):
            self._actor.done.remote(shard)

    def oldest(self) -> UnderWay | None:
        """The shard that is under way for longest, if any; None also where nobody answers."""
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
        since = taken.since if before is None else min(before.since, taken.since)
        self.under_way[taken.shard] = UnderWay(taken.shard, taken.stage, taken.first_key, taken.host, since)

    def done(self, shard: int) -> None:
        self.under_way.pop(shard, None)

    def oldest(self) -> UnderWay | None:
        return min(self.under_way.values(), key=lambda one: one.since, default=None)


def start_board() -> Board:
    """A board on this node; it ends with the driver."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board(ray.remote(_Held).options(num_cpus=0, scheduling_strategy=node).remote())
