"""What stages say about the shards that they have in hand: to a function that they are given, and without waiting."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class UnderWay:
    """A shard that a stage has in hand."""

    shard: int
    stage: str  # reading | segmenting | writing
    first_key: str  # of its images
    host: str
    since: float  # seconds since the epoch, when this stage took it first


@dataclass(frozen=True)
class InFlight:
    """What stages have said so far."""

    oldest: UnderWay | None  # the shard that a stage has in hand for longest, if any
    stages: frozenset[str]  # that have had a shard in hand


Tell = Callable[[int, str, str], AbstractContextManager[None]]  # (shard, stage, first key) -> while it is in hand


def tell_nobody(shard: int, stage: str, first_key: str) -> AbstractContextManager[None]:
    """Where nobody asks."""
    return nullcontext()
