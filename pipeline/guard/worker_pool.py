"""Worker processes for work that needs several CPUs of one machine, outside of Ray."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pipeline.errors import RunError


@contextlib.contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, each of which calls `initializer` first. RunError if a worker dies.

    At the end of the context, tasks that have not begun are dropped. A worker ends when the process that made the pool
    is gone, even if that process was killed. Without this, workers wait for their next task for ever: a queue of
    multiprocessing does not say that nobody writes to it any more.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
    executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(initializer, initargs))
    try:
        yield executor
    except BrokenProcessPool:
        raise RunError("a worker process died, most likely because memory ran out; try fewer --workers") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"
    parent.join()
    os._exit(1)
