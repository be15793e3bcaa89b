"""Work on a CPU in as many threads as torch has, for kernels that let Python's lock go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Part = TypeVar("Part")


def in_parts(length: int, least: int, work: Callable[[int, int], Part]) -> list[Part]:
    """The results of `work(first, end)` for parts of 0 .. `length`, in order; a part has at least `least` of these."""
    threads = max(1, min(torch.get_num_threads(), length // least))
    if threads == 1:
        return [work(0, length)]
    ends = [length * place // threads for place in range(threads + 1)]
    return list(_pool(threads).map(work, ends[:-1], ends[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="part")
