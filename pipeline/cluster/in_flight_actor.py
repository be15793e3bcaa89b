"""The in-flight actor: which shards are under way, where and since when. The progress line shows the oldest shard.

This small Ray actor runs on the driver's node. Each stage reports the shards that it works on. A report is one message
for which the stage does not wait; a stage that cannot reach the actor continues.
"""

import contextlib
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.cluster.resources import on_this_node
from pipeline.telemetry.in_flight import STAGES, InFlight, UnderWay

_ANSWER_SECONDS = 5.0


class Board:
    """The stages' handle of the in-flight actor: small, and safe to pickle."""

    def __init__(self, name: str, actor: Any = None):
        """`name` is the actor's name in the namespace of the job."""
        self.name = name
        self._actor = actor

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle the name only: with a handle among its arguments, an actor needs that object to restart (ray#53727).
        return Board, (self.name,)

    def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the actor and return a reference to the result. RayError if the actor is gone."""
        if self._actor is None:
            try:
                self._actor = ray.get_actor(self.name)
            except ValueError as error:
                raise RayActorError(error_msg=str(error)) from None
        return getattr(self._actor, method).remote(*args)

    @contextlib.contextmanager
    def in_hand(self, shard: int, stage: str, first_key: str) -> Iterator[None]:
        """Report that this process is at `stage` of a shard. If it fails or dies there, the report stays."""
        with contextlib.suppress(RayError):
            self._call("take", UnderWay(shard, stage, first_key, socket.gethostname(), time.time()))
        yield
        with contextlib.suppress(RayError):
            self._call("leave", shard, stage)

    def done(self, shard: int) -> None:
        """Report that the shard has a receipt."""
        with contextlib.suppress(RayError):
            self._call("done", shard)

    def look(self) -> InFlight | None:
        """The reports of the stages; None if the actor does not answer.

        Shards that wait between stages do not count as old: Ray reads ahead of the model, so waiting is normal.
        """
        try:
            seen: InFlight | None = ray.get(self._call("look"), timeout=_ANSWER_SECONDS)
        except RayError:
            return None
        return seen


class _Held:
    def __init__(self) -> None:
        self.under_way: dict[int, UnderWay] = {}
        self.waiting: dict[int, str] = {}  # shard -> the stage that it waits for
        self.stages: frozenset[str] = frozenset()

    def take(self, taken: UnderWay) -> None:
        self.stages |= {taken.stage}
        before = self.under_way.get(taken.shard)
        if before is not None and before.stage == taken.stage:  # a worker died, or Ray repeats the task
            taken = replace(taken, since=before.since)
        self.under_way[taken.shard] = taken
        self.waiting.pop(taken.shard, None)

    def leave(self, shard: int, stage: str) -> None:
        # Messages of different processes may overtake each other: the next stage may already have the shard.
        if shard in self.under_way and self.under_way[shard].stage == stage:
            del self.under_way[shard]
            if stage != STAGES[-1]:
                self.waiting[shard] = STAGES[STAGES.index(stage) + 1]

    def done(self, shard: int) -> None:
        self.under_way.pop(shard, None)
        self.waiting.pop(shard, None)

    def look(self) -> InFlight:
        return InFlight(
            min(self.under_way.values(), key=lambda one: one.since, default=None),
            self.stages,
            working=Counter(one.stage for one in self.under_way.values()),
            waiting=Counter(self.waiting.values()),
        )


def start_board() -> Board:
    """Start the in-flight actor on this node; it ends with the driver."""
    name = f"in-flight-{secrets.token_hex(8)}"
    actor = ray.remote(_Held).options(name=name, num_cpus=0, scheduling_strategy=on_this_node()).remote()
    return Board(name, actor)
