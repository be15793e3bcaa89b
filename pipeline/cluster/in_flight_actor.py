"""The in-flight actor: which shards are under way, where and since when. The progress line shows the oldest shard.

This small Ray actor runs on the driver's node. Each stage reports the shards that it works on. A stage that takes a
shard waits for the answer whether the run stops; for other reports no stage waits. A stage that cannot reach the actor
continues.
"""

import contextlib
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.cluster.resources import on_this_node
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.in_flight import RECEIPT, STAGES, InFlight, UnderWay, Visit

_ANSWER_SECONDS = 5.0
_MOST_VISITS = 100_000  # kept for the trace if the driver does not fetch them: about 40 MB


class Board:
    """The stages' handle of the in-flight actor: small, and safe to pickle."""

    def __init__(self, name: str, traced: bool = False, actor: Any = None):
        """`name` is the actor's name in the namespace of the job; `traced`: keep the visits for `drain`."""
        self.name = name
        self.traced = traced
        self._actor = actor
        self._done: deque[int] = deque()  # shards that the actor does not know yet to have a receipt

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle the name only: with a handle among its arguments, an actor needs that object to restart (ray#53727).
        return Board, (self.name, self.traced)

    def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the actor and return a reference to the result. RayError if the actor is gone."""
        if self._actor is None:
            try:
                self._actor = ray.get_actor(self.name)
            except ValueError as error:
                raise RayActorError(error_msg=str(error)) from None
        return getattr(self._actor, method).remote(*args)

    @contextlib.contextmanager
    def in_hand(self, shard: int, stage: str, first_key: str, costs: Costs | None = None) -> Iterator[bool]:
        """Report that this process is at `stage` of a shard. If it fails or dies there, the report stays.

        The context is True if the run stops and the stage has to leave the shard alone: see `stop`. `costs` has the
        steps of the visit by the end of the context.
        """
        stops = False
        with contextlib.suppress(RayError):
            taken = UnderWay(shard, stage, first_key, socket.gethostname(), time.time())
            stops = ray.get(self._call("take", taken), timeout=_ANSWER_SECONDS)
        yield stops
        with contextlib.suppress(RayError):
            if stops:
                return
            steps = {step: (*span, costs.seconds[step]) for step, span in costs.spans.items()} if costs else {}
            self._call("leave", shard, stage, time.time(), steps if self.traced else {})

    def hold(self, device_name: str, seconds: float) -> None:
        """Report that a model actor has held its device for so much longer."""
        with contextlib.suppress(RayError):
            self._call("hold", device_name, seconds)

    def done(self, shard: int) -> None:
        """Report with the next `look` that the shard has a receipt: a call for each shard would cost the driver CPU."""
        self._done.append(shard)

    def stop(self) -> None:
        """From now on, no model begins a shard and nothing more is read. Shards that a model has begun are written."""
        with contextlib.suppress(RayError):
            self._call("stop")

    def look(self) -> InFlight | None:
        """The reports of the stages; None if the actor does not answer.

        Shards that wait between stages do not count as old: Ray reads ahead of the model, so waiting is normal.
        """
        done = []
        with contextlib.suppress(IndexError):
            while True:  # several threads look
                done.append(self._done.popleft())
        try:
            seen: InFlight | None = ray.get(self._call("look", done), timeout=_ANSWER_SECONDS)
        except RayError:
            self._done.extend(done)  # for the next look; a shard that is reported twice is as done as before
            return None
        return seen

    def drain(self) -> list[Visit]:
        """The visits since the last call; none if the actor does not answer."""
        try:
            visits: list[Visit] = ray.get(self._call("drain"), timeout=_ANSWER_SECONDS)
        except RayError:
            return []
        return visits


class _Held:
    def __init__(self, traced: bool) -> None:
        self.traced = traced
        self.begun: dict[tuple[int, str], UnderWay] = {}  # by shard and stage, if the run is traced
        self.visits: deque[Visit] = deque(maxlen=_MOST_VISITS)
        self.under_way: dict[int, UnderWay] = {}
        self.waiting: dict[int, str] = {}  # shard -> the stage that it waits for
        self.stages: frozenset[str] = frozenset()
        self.held: dict[str, float] = {}  # seconds by name of the device
        self.stops = False

    def stop(self) -> None:
        self.stops = True

    def hold(self, device_name: str, seconds: float) -> None:
        self.held[device_name] = self.held.get(device_name, 0.0) + seconds

    def take(self, taken: UnderWay) -> bool:
        """Whether the stage has to leave the shard alone."""
        if self.stops and taken.stage != STAGES[-1]:
            self.done(taken.shard)
            return True
        self.stages |= {taken.stage}
        if self.traced:
            self._end_visit(taken.shard, taken.stage, taken.since, {}, lost=True)
            self.begun[taken.shard, taken.stage] = taken
        before = self.under_way.get(taken.shard)
        if before is not None and before.stage == taken.stage:  # a worker died, or Ray repeats the task
            taken = replace(taken, since=before.since)
        self.under_way[taken.shard] = taken
        self.waiting.pop(taken.shard, None)
        return False

    def leave(self, shard: int, stage: str, ended: float, steps: dict[str, tuple[float, float, float]]) -> None:
        self._end_visit(shard, stage, ended, steps)
        # Messages of different processes may overtake each other: the next stage may already have the shard.
        if shard in self.under_way and self.under_way[shard].stage == stage:
            del self.under_way[shard]
            self.waiting[shard] = RECEIPT if stage == STAGES[-1] else STAGES[STAGES.index(stage) + 1]

    def done(self, shard: int) -> None:
        self.under_way.pop(shard, None)
        self.waiting.pop(shard, None)

    def _end_visit(
        self, shard: int, stage: str, ended: float, steps: dict[str, tuple[float, float, float]], lost: bool = False
    ) -> None:
        one = self.begun.pop((shard, stage), None)
        if one is not None:
            self.visits.append(Visit(shard, stage, one.first_key, one.host, one.since, ended, lost, steps))

    def drain(self) -> list[Visit]:
        visits, self.visits = list(self.visits), deque(maxlen=_MOST_VISITS)
        return visits

    def look(self, done: list[int]) -> InFlight:
        for shard in done:
            self.done(shard)
        return InFlight(
            min(self.under_way.values(), key=lambda one: one.since, default=None),
            self.stages,
            working=Counter(one.stage for one in self.under_way.values()),
            waiting=Counter(self.waiting.values()),
            held=dict(self.held),
        )


def start_board(traced: bool = False) -> Board:
    """Start the in-flight actor on this node; it ends with the driver. `traced`: it keeps visits for `Board.drain`."""
    name = f"in-flight-{secrets.token_hex(8)}"
    actor = ray.remote(_Held).options(name=name, num_cpus=0, scheduling_strategy=on_this_node()).remote(traced)
    return Board(name, traced, actor)
