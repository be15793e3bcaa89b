"""What the two kinds of lease have in common (`lease.py`, `claims.py`): a thread keeps the lease until it is lost."""

import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import fsspec

from pipeline.commit.process_identity import process_identity
from pipeline.errors import BrokenRunError

RENEWALS = 4  # per duration of a lease, so that one lost request does no harm
MOST_LEASE_BYTES = 2**16  # of an object that names a holder


class HeldLease(ABC):
    """Held from `__enter__` to `__exit__`. Once the lease is lost, `check` raises, and a thread calls `on_loss`."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, seconds: float, on_loss: Callable[[], None]):
        self.filesystem = filesystem
        self.seconds = seconds
        self.on_loss = on_loss
        self.token = uuid.uuid4().hex
        self.since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.renewals = 0
        self.renewed_at = 0.0  # our monotonic clock just before the last successful request was sent
        self.lost: str | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    @abstractmethod
    def __enter__(self) -> "HeldLease":
        """Raises RunError if another driver holds the lease."""

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    def check(self) -> None:
        """Raise BrokenRunError if the lease is lost, or so old that another driver may have taken it."""
        if self.lost is None and time.monotonic() - self.renewed_at > self.seconds:
            self.lost = f"the lease was not renewed for {self.seconds:g} s"
        if self.lost is not None:
            raise BrokenRunError(f"this driver lost the lease on --output ({self.lost}) and stops")

    @abstractmethod
    def _keep(self) -> None:
        """Renew the lease until `ended` is set or the lease is lost."""

    def _lose(self, why: str) -> None:
        self.lost = why
        self.on_loss()

    def _content(self, **more: Any) -> bytes:
        """The object that names this holder. `token` and `renewals` make each content unique, which conditional writes
        need.
        """
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process_identity(os.getpid()),
            "since": self.since,
            "seconds": self.seconds,
            "token": self.token,
            "renewals": self.renewals,
            **more,
        }
        return json.dumps(content).encode()
