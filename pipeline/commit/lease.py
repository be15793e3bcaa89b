"""A lease on the output: the driver that holds it renews it, and other drivers stay away.

A driver that finds a recently renewed lease is refused at once. If the holder has not renewed the lease for half of its
duration, the driver waits until the lease runs out. If the lease names a process of this machine that no longer exists,
the lease is taken over at once.

The age of a lease is measured by the store's clock (date of the store's answer minus the object's time of change), so
drivers need no common clock. A driver that cannot renew its lease in time stops by itself. A driver that was stopped
(SIGSTOP, a suspended machine) and wakes after another driver took over learns this at its next renewal, and whatever it
wrote in between is ignored: see the fence in `journal.py` and the transactions in `publish.py`.

On a store whose conditional writes do not hold, `claims.py` takes the place of this file.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import fsspec
from annotated_types import Interval, Len
from pydantic import StringConstraints, TypeAdapter, with_config

from pipeline.commit.held_lease import MOST_LEASE_BYTES, RENEWALS, HeldLease
from pipeline.commit.process_identity import is_gone
from pipeline.errors import RunError
from pipeline.guard.kill_points import reached
from pipeline.store.conditional_writes import Stored, create_object, read_stored, replace_object
from pipeline.store.filesystem import STORE_ERRORS, one_line
from pipeline.store.json_records import STRICT, parse_record
from pipeline.store.objects import TooManyBytesError

logger = logging.getLogger(__name__)


@with_config(STRICT)
@dataclass(frozen=True)
class Holder:
    """The fields of lease.json that other drivers read."""

    host: Annotated[str, Len(0, 300)]
    pid: int
    process: Annotated[str, StringConstraints(pattern=r"^$|^[0-9a-f-]+/[0-9]+/[0-9]+/[0-9]+$")]  # process_identity
    since: Annotated[str, Len(0, 40)]
    seconds: Annotated[float, Interval(ge=0.001, le=86400.0)]
    token: str
    released: bool


_HOLDER = TypeAdapter(Holder)


class Lease(HeldLease):
    """A lease in one object, which only the holder of its last version can replace. `path`: of that object."""

    def __init__(
        self,
        filesystem: fsspec.AbstractFileSystem,
        path: str,
        seconds: float,
        on_loss: Callable[[], None] = lambda: None,
    ):
        super().__init__(filesystem, seconds, on_loss)
        self.path = path
        self.waited_for = ""
        self.version = ""

    def __enter__(self) -> "Lease":
        """Raises RunError if another driver holds the lease."""
        self._take()
        reached("lease taken")
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()
        if self.lost is None:
            with contextlib.suppress(*STORE_ERRORS):  # the lease runs out by itself
                replace_object(self.filesystem, self.path, self._content(released=True), self.version)

    def _take(self) -> None:
        while True:
            started = time.monotonic()
            try:
                found = read_stored(self.filesystem, self.path, MOST_LEASE_BYTES)
            except TooManyBytesError as error:
                raise self._damaged(error) from None
            if found is None:
                version = create_object(self.filesystem, self.path, self._content(released=False))
            elif (wait := self._seconds_to_wait(found)) > 0:
                time.sleep(min(wait, 1.0))
                continue
            else:
                version = replace_object(self.filesystem, self.path, self._content(released=False), found.version)
            if version is None:
                raise RunError(f"another job has just taken the lease on --output, {self.path}")
            self.version, self.renewed_at = version, started
            return

    def _seconds_to_wait(self, found: Stored) -> float:
        """The seconds until the lease `found` may be taken over. RunError if its holder seems to be alive."""
        try:
            holder = parse_record(_HOLDER, found.data)
        except ValueError as error:
            raise self._damaged(error) from None
        who = f"process {holder.pid} on {holder.host}"
        if holder.released:
            return 0.0
        if is_gone(holder.process):
            logger.warning(
                "the lease on --output names %s, which no longer exists, so the lease is taken over at once", who
            )
            return 0.0
        lasts = holder.seconds
        left = lasts - found.age_seconds
        if left > lasts / 2:
            raise RunError(
                f"--output is in use by {who} since {holder.since}; if that process is dead, its lease "
                f"{self.path} runs out in {left:.0f} s"
            )
        if found.version != self.waited_for:
            self.waited_for = found.version
            logger.warning(
                "%s has not renewed the lease on --output for %.0f s; waiting to take over the lease",
                who,
                found.age_seconds,
            )
        return left

    def _damaged(self, error: Exception) -> RunError:
        return RunError(
            f"the lease on --output {self.path} is damaged, or another program wrote it: {error}; if no job is using "
            "this output, delete the lease"
        )

    def _keep(self) -> None:
        while not self.ended.wait(self.seconds / RENEWALS):
            self.renewals += 1
            started = time.monotonic()
            try:
                version = replace_object(self.filesystem, self.path, self._content(released=False), self.version)
            except STORE_ERRORS as error:
                if time.monotonic() - self.renewed_at > self.seconds * (1 - 1 / RENEWALS):
                    self._lose(f"the lease could not be renewed: {one_line(error)}")
                    return
                continue
            if version is None:
                self._lose("another driver took the lease")
                return
            self.version, self.renewed_at = version, started


def holder_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str | None:
    """The token of the lease at `path` if somebody holds the lease now, else None. Raises errors of STORE_ERRORS.

    A damaged lease has no holder that could be named.
    """
    found = read_stored(filesystem, path, MOST_LEASE_BYTES)
    if found is None:
        return None
    try:
        holder = parse_record(_HOLDER, found.data)
    except ValueError:
        return None
    return None if holder.released or found.age_seconds > holder.seconds else holder.token
