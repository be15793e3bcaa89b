"""Worker processes for work that needs several CPUs of one machine, outside of Ray."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of fresh processes, each of which calls `initializer` first.

    A worker ends when the process that made the pool is gone, even if that process was killed. Without this, workers
    wait for their next task for ever: a queue of multiprocessing does not say that nobody writes to it any more.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
    return ProcessPoolExecutor(workers, context, initializer=_start, initargs=(initializer, initargs))


def _start(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"
    parent.join()
    os._exit(1)
