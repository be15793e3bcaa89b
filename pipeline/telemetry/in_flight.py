"""Reports of the stages about the shards that they are working on. A stage calls a given function and never waits."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

STAGES = ("reading", "segmenting", "writing")  # in the order of the flow


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
    waiting: Mapping[str, int] = field(default_factory=dict)  # shards that wait for a stage, by stage


Tell = Callable[[int, str, str], AbstractContextManager[None]]  # (shard, stage, first key) -> context of the work


def tell_nobody(shard: int, stage: str, first_key: str) -> AbstractContextManager[None]:
    """Report nothing, for a run without an in-flight actor."""
    return nullcontext()
