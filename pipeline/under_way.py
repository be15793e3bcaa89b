"""What stages say about the shards that they have taken: to a function that they are given, and without waiting."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class UnderWay:
    """A shard that a stage has taken and that has no receipt yet."""

    shard: int
    stage: str  # reading | segmenting | writing
    first_key: str  # of its images
    host: str
    since: float  # seconds since the epoch, when the first stage took it


Tell = Callable[[int, str, str], None]  # (shard, stage, first key)


def tell_nobody(shard: int, stage: str, first_key: str) -> None:
    """Where nobody asks."""
