"""Reports of the stages about the shards that they are working on. A stage calls a given function and never waits."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.telemetry.costs import Costs

STAGES = ("reading", "segmenting", "writing")  # in the order of the flow
RECEIPT = "receipt"  # what a shard waits for after the last stage


@dataclass(frozen=True)
class UnderWay:
    """A shard that a stage is working on."""

    shard: int
    stage: str  # of STAGES
    first_key: str  # key of the shard's first image
    host: str
    since: float  # seconds since the epoch, when this stage first began the shard


@dataclass(frozen=True)
class InFlight:
    """The reports of all stages so far."""

    oldest: UnderWay | None  # the shard that a stage has been working on for longest, if any
    stages: frozenset[str]  # stages that have worked on a shard
    working: Mapping[str, int] = field(default_factory=dict)  # shards that a stage is working on, by stage
    waiting: Mapping[str, int] = field(default_factory=dict)  # shards that wait, by stage or RECEIPT
    held: Mapping[str, float] = field(default_factory=dict)  # seconds that model actors held devices, by device name

    @property
    def num_begun(self) -> int:
        """Shards that a model has begun and that have no receipt yet."""
        _, segmenting, writing = STAGES
        working = self.working.get(segmenting, 0) + self.working.get(writing, 0)
        return working + self.waiting.get(writing, 0) + self.waiting.get(RECEIPT, 0)


@dataclass(frozen=True)
class Visit:
    """The time that a shard spent at a stage, for the trace. All times are seconds since the epoch."""

    shard: int
    stage: str
    first_key: str
    host: str
    began: float
    ended: float
    lost: bool = False  # the visit never ended, and `ended` is when the shard came back to the stage
    steps: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)  # began, ended, seconds as in Costs


class Tell(Protocol):
    """Report that a stage works on a shard while the context is open; `costs` has grown by its end.

    The context is True if the run stops: then, and only then, the stage leaves the shard alone.
    """

    def __call__(
        self, shard: int, stage: str, first_key: str, costs: Costs | None = None
    ) -> AbstractContextManager[bool]: ...


def tell_nobody(shard: int, stage: str, first_key: str, costs: Costs | None = None) -> AbstractContextManager[bool]:
    """Report nothing, for a run without an in-flight actor."""
    return nullcontext(False)


class Hold(Protocol):
    """Report that a model actor has held its device for so many seconds more."""

    def __call__(self, device_name: str, seconds: float) -> None: ...


def hold_nothing(device_name: str, seconds: float) -> None:
    """Do not report how long devices are held, for a run without an in-flight actor."""
