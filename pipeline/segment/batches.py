"""Which images share a batch, and how far ahead of the device they are decoded: plain functions."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def plan_batches(
    padded_hws: Sequence[tuple[int, int] | None], most_of: Callable[[tuple[int, int]], int]
) -> list[list[int]]:
    """Indices grouped by equal padded size, at most `most_of` that size each; None is left out. Order is kept."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, padded_hw in enumerate(padded_hws):
        if padded_hw is not None:
            groups.setdefault(padded_hw, []).append(index)
    steps = {padded_hw: most_of(padded_hw) for padded_hw in groups}
    return [group[i : i + steps[hw]] for hw, group in groups.items() for i in range(0, len(group), steps[hw])]


def look_ahead(submit: Callable[[T], R], items: Iterable[T], depth: Callable[[], int]) -> Iterator[R]:
    """submit(item) for each item in order, at most `depth()` ahead of what has been taken."""
    waiting: deque[R] = deque()
    for item in items:
        waiting.append(submit(item))
        while len(waiting) > depth():
            yield waiting.popleft()
    yield from waiting
