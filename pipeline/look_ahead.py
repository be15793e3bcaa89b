"""Compute results ahead of their reader, in the order of the items and up to a bound."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Pending(Protocol[R_co]):
    """The methods of `concurrent.futures.Future` that `look_ahead` needs."""

    def result(self) -> R_co: ...

    def cancel(self) -> bool: ...


def look_ahead(
    submit: Callable[[T], Pending[R_co]],
    items: Iterable[T],
    ahead: int | Callable[[], int],
    *,
    size: Callable[[T], int] | None = None,
    most_size: float = math.inf,
) -> Iterator[R_co]:
    """The result of `submit(item)` for each item, in the order of the items.

    Beside the result that the reader waits for, at most `ahead` other results are under way; if `ahead` is a function,
    it is called again for each item. The sizes of all items under way, including the awaited one, add up to at most
    `most_size`; a larger item is computed alone.

    An item is taken from `items` only when the items before it leave room for it. If `items`, `submit` or a result
    raises, or if the reader closes the iterator, all computations that have not begun are cancelled.
    """
    waiting: deque[tuple[int, Pending[R_co]]] = deque()
    try:
        for item in items:
            new = size(item) if size is not None else 0
            # No local name holds a result while the reader works: results may be large.
            while waiting and sum(one for one, _ in waiting) + new > most_size:
                yield waiting.popleft()[1].result()
            waiting.append((new, submit(item)))
            while len(waiting) > (ahead if isinstance(ahead, int) else ahead()):
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        for _, pending in waiting:
            pending.cancel()
