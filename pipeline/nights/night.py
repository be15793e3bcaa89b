"""Record a night while it goes on: one place for every command of segment_bucket.py.

`start` is called once the output is known to be usable, and before anything heavy is loaded. So a command leaves no
record if its words cannot be read, if the refusal concerns the output itself (no such bucket, no right to write, inside
of the input, of another schema version), or if it is killed before that.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from m2f_core import __version__
from pipeline.commit.process_identity import process_identity
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.nights.record import End, NightRecord, new_name, short, short_command, write_record
from pipeline.store.filesystem import STORE_ERRORS, one_line

logger = logging.getLogger(__name__)


class Night:
    """The record of the night of this process."""

    def __init__(self, command: Sequence[str]):
        now = datetime.now(UTC)
        self.since = time.monotonic()
        self.name = new_name(now)
        self.output: Output | None = None
        self.record = NightRecord(
            started_at=now,
            host=short(socket.gethostname()),
            pid=os.getpid(),
            process=process_identity(os.getpid()),
            version=__version__,
            command=short_command(tuple(command)),
        )
        self.nothing_to_do: str | None = None

    def start(self, output: Output) -> None:
        """Write the record, without an end. RunError if `output` cannot be written."""
        with output.errors():
            write_record(output, self.name, self.record)
        self.output = output

    def tell(self, *, nothing_to_do: str | None = None, **known: str) -> None:
        """Take down what became known: `lease`, `run_id`, or why there is nothing to do."""
        if nothing_to_do is not None:
            self.nothing_to_do = nothing_to_do
            return
        self.record = self.record.model_copy(update=known)
        self._write()

    def end(self, end: End, exit_code: int, reason: str, counts: Mapping[str, int]) -> None:
        """Write the end of a night that has started. A store that fails now is a warning."""
        if end == "finished" and self.nothing_to_do is not None:
            end, reason = "nothing to do", self.nothing_to_do
        self.record = self.record.model_copy(
            update={
                "ended_at": datetime.now(UTC),
                "seconds": round(time.monotonic() - self.since, 3),
                "end": end,
                "exit_code": exit_code,
                "reason": short(reason),
                "counts": dict(counts),
            }
        )
        self._write()

    def _write(self) -> None:
        if self.output is None:
            return
        try:
            write_record(self.output, self.name, self.record)
        except (RunError, *STORE_ERRORS) as error:
            logger.warning("the record of this night cannot be written: %s", one_line(error))


Tell = Callable[..., Any]


def tell_nobody(**known: str) -> None:
    """For a run without a record, as in a benchmark."""
