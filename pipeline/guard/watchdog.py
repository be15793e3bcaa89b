"""The watchdog ends a process if a step hangs or if memory grows too far, and names the objects in work.

Code marks its steps (`with watch("decoding", key)`). One daemon thread per process checks the clock and the memory, and
ends the process with one line on standard error. Ray then starts a new process and gives it the shard again.

That thread cannot run while a C function holds Python's lock. So the thread keeps resetting a timer of `faulthandler`,
whose own thread needs no lock: if nobody resets the timer, it prints the stack of every thread and ends the process.
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
from pipeline.telemetry.log_lines import line_to_send

_LOOK_SECONDS = 0.1  # at 2 GB/s, as fast as memory can be touched, a process grows 0.2 GB between two looks
_WIND_SECONDS = 1.0
_STANDARD_ERROR = 2  # the descriptor, because `sys.stderr` may be an object that holds lines back

TRIED_AGAIN = "the shard is retried"
TRIED_ONE_BY_ONE = "the shard is retried; after two such crashes its images are processed one by one"


@dataclass(frozen=True)
class _Step:
    name: str
    object: str
    started: float  # time.monotonic()


_steps: dict[int, _Step] = {}  # the current steps of all threads of this process, oldest first
_numbers = itertools.count()


@contextlib.contextmanager
def watch(name: str, what: str) -> Iterator[None]:
    """Mark the body as the step `name` on the object `what`. Costs a microsecond or two, with or without a watchdog."""
    number = next(_numbers)
    _steps[number] = _Step(name, what, time.monotonic())
    try:
        yield
    finally:
        del _steps[number]


def start_watchdog(step_timeout: float, then: str, bound: MemoryBound | None = None) -> None:
    """From now on, end this process if a step takes longer than `step_timeout` seconds or if memory breaks `bound`.

    `then` is the end of the message: what happens next. Call this once in a process, when it is ready for work.
    """
    # faulthandler has only one timer, so a process can have only one watchdog.
    threading.Thread(target=_watch, args=(step_timeout, then, bound), name="watchdog", daemon=True).start()


def _watch(step_timeout: float, then: str, bound: MemoryBound | None) -> None:
    wound = float("-inf")
    while True:
        now = time.monotonic()
        if now - wound >= _WIND_SECONDS:
            faulthandler.dump_traceback_later(step_timeout + _WIND_SECONDS, exit=True, file=_STANDARD_ERROR)
            wound = now
        if said := _overdue(now, step_timeout) or _too_large(bound):
            message = f"{socket.gethostname()}, process {os.getpid()}: {said}. The process ends; {then}."
            os.write(_STANDARD_ERROR, f"{line_to_send(__name__, message, **_about_image())}\n".encode())
            os._exit(1)
        time.sleep(_LOOK_SECONDS)


def _overdue(now: float, step_timeout: float) -> str | None:
    # `list` copies in one operation, because other threads add and remove steps. The oldest step is the first.
    for step in list(_steps.values())[:1]:
        if now - step.started > step_timeout:
            return f"{step.name} {step.object} did not finish within {step_timeout:g} s (--step-timeout)"
    return None


def _about_image() -> dict[str, str]:
    """`image_key` for a log line, if the oldest step works on one image, and not on a batch or shard."""
    steps = list(_steps.values())
    scheme, is_uri, _ = steps[0].object.partition("://") if steps else ("", "", "")
    return {"image_key": steps[0].object} if is_uri and scheme.isalnum() else {}


def _too_large(bound: MemoryBound | None) -> str | None:
    if bound is None or (breach := bound.breach()) is None:
        return None
    steps = "; ".join(f"{step.name} {step.object}" for step in list(_steps.values()))
    return f"this process takes too much memory: {breach}. Steps in progress: {steps or 'none'}"
