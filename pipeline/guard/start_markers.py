"""Start markers count how often work on a shard began: one object for each start, written before the work begins.

An image that kills its worker leaves no other trace. A start that ends well leaves its marker too, but then the shard
is finished and nobody reads the marker. The few shards that are started again for other reasons (a node that left, a
driver that was killed) cost time and change no row.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from m2f_core.whole_files import is_temporary
from pipeline.errors import RunError
from pipeline.layout import RunFolder
from pipeline.store.conditional_writes import create_new
from pipeline.store.filesystem import store_errors_as


class Starts:
    """The starts of a run's shards, as this process sees and makes them. Thread safe."""

    def __init__(self, run: RunFolder):
        self.run = run
        self.door = _Door()

    @contextlib.contextmanager
    def start(self, shard: int) -> Iterator[int]:
        """Write a start marker for `shard` and run the body. Yields how often the shard was started before.

        A shard that was started before has the process to itself: if it kills the process again, no other shard is
        blamed, and no other shard can kill the process meanwhile.
        """
        with self.door.together():
            if self._leave_marker(shard, 1):
                yield 0
                return
        with self.door.alone():
            number = 2
            while not self._leave_marker(shard, number):
                number += 1
            yield number - 1

    def _leave_marker(self, shard: int, number: int) -> bool:
        """Write the marker of start `number`. Return False if there was such a start already. Sends one request."""
        who = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "id": uuid.uuid4().hex}
        path = f"{self.run.started}/{shard:06d}-{number}"
        with store_errors_as(RunError, f"--output cannot be written: {path}"):
            return create_new(self.run.filesystem, path, json.dumps(who).encode(), self.run.has_conditions)


def is_start_marker(path: str) -> bool:
    """Whether this program gave an object in `started/` its name; a killed process leaves half-written ones."""
    return is_temporary(path) or re.fullmatch(r"[0-9]{6,}-[0-9]+", path.rpartition("/")[2]) is not None


class _Door:
    """A lock that admits any number of threads together, or one alone. A thread that waits to be alone is not
    overtaken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting_alone = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside >= 0 and self._waiting_alone == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: self._inside == 0)
            self._waiting_alone -= 1
            self._inside = -1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0
                self._changed.notify_all()
