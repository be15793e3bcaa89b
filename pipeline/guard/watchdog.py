"""No step hangs and no process grows for ever: the process ends instead, and says over which object.

Code says what it is at (`with watch("decoding", key)`); one daemon thread per process looks at the clock and at the
memory, and ends the process with one line on standard error. Ray starts a new process and gives it the shard again.

A thread cannot run while a C function holds Python's lock. So it keeps winding an alarm of `faulthandler`, whose thread
needs no lock: when nobody winds it any more it prints where every thread is and ends the process.
"""

import contextlib
import faulthandler
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.guard.memory import MemoryBound

_LOOK_SECONDS = 0.1  # at 2 GB/s, as fast as memory can be touched, a process grows 0.2 GB between two looks
_WIND_SECONDS = 1.0
_STANDARD_ERROR = 2  # the descriptor: `sys.stderr` may be something that keeps lines to itself

TRIED_AGAIN = "the shard is retried"
TRIED_ONE_BY_ONE = "the shard is retried; after two such crashes its images are processed one by one"


@dataclass(frozen=True)
class _Step:
    name: str
    object: str
    started: float  # time.monotonic()


_steps: dict[int, _Step] = {}  # what the threads of this process are at, oldest first
_numbers = itertools.count()


@contextlib.contextmanager
def watch(name: str, what: str) -> Iterator[None]:
    """The body is the step `name` on the object `what`. Costs a microsecond or two, with or without a watchdog."""
    number = next(_numbers)
    _steps[number] = _Step(name, what, time.monotonic())
    try:
        yield
    finally:
        del _steps[number]


def start_watchdog(step_timeout: float, then: str, bound: MemoryBound | None = None) -> None:
    """From now on end this process when a step takes longer than `step_timeout` seconds or memory breaks `bound`.

    `then` is the end of the line: what happens next. To be called once in a process, when it is ready for work.
    """
    # Two dumps at one time would not be two alarms: faulthandler has one, so there is one watchdog.
    threading.Thread(target=_watch, args=(step_timeout, then, bound), name="watchdog", daemon=True).start()


def _watch(step_timeout: float, then: str, bound: MemoryBound | None) -> None:
    wound = float("-inf")
    while True:
        now = time.monotonic()
        if now - wound >= _WIND_SECONDS:
            faulthandler.dump_traceback_later(step_timeout + _WIND_SECONDS, exit=True, file=_STANDARD_ERROR)
            wound = now
        if said := _overdue(now, step_timeout) or _too_large(bound):
            line = f"{socket.gethostname()}, process {os.getpid()}: {said}. The process ends; {then}.\n"
            os.write(_STANDARD_ERROR, line.encode())
            os._exit(1)
        time.sleep(_LOOK_SECONDS)


def _overdue(now: float, step_timeout: float) -> str | None:
    # A copy in one go, since other threads add and remove steps; the oldest is the first.
    for step in list(_steps.values())[:1]:
        if now - step.started > step_timeout:
            return f"{step.name} {step.object} did not finish within {step_timeout:g} s (--step-timeout)"
    return None


def _too_large(bound: MemoryBound | None) -> str | None:
    if bound is None or (breach := bound.breach()) is None:
        return None
    steps = "; ".join(f"{step.name} {step.object}" for step in list(_steps.values()))
    return f"this process takes too much memory: {breach}. Steps in progress: {steps or 'none'}"
