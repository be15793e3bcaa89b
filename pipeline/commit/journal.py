"""The journal: receipts of finished shards, appended in batches. One PUT writes a batch: the commit point.

A shard counts as finished once the journal has a receipt of it. Files in the output that no receipt names are ignored.

Every driver that works on a run is an attempt with its own number. When an attempt starts, it records which journal
objects of earlier attempts exist. From then on, any further objects of earlier attempts are ignored: this fences off a
driver that seemed dead and goes on writing. So all readers, now and later, see the same receipts in the same order.
"""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO
from typing import Annotated

from annotated_types import Interval
from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from pipeline.commit.receipt import MOST_SHARDS, Receipt
from pipeline.guard.kill_points import reached
from pipeline.layout import ATTEMPT, JOURNAL_OBJECT, RunFolder, numbered
from pipeline.look_ahead import look_ahead
from pipeline.store.conditional_writes import create_new
from pipeline.store.filesystem import put_object
from pipeline.store.json_records import STRICT
from pipeline.telemetry.metrics import IMAGES, RECEIPTS, SEGMENTS

# If the driver is killed, receipts of at most this many seconds are lost, and their shards are processed again.
JOURNAL_SECONDS = 5.0

_READ_THREADS = 16  # a day of work is 17,000 small objects

_Number = Annotated[int, Interval(ge=0, le=10**9)]


@with_config(STRICT)
class _Attempt(TypedDict):
    """What the readers of `attempts/000002.json` need: journal numbers that count, by earlier attempt."""

    accepted: dict[str, list[_Number]]


_ATTEMPT = TypeAdapter(_Attempt)


class Journal:
    """The receipts of the run in `folder`: `journal/000001-000000.jsonl`, by attempt and number."""

    def __init__(self, folder: RunFolder, attempt: int = 0):
        """`attempt` is the attempt of the driver that appends; readers need no attempt."""
        self.folder = folder
        self.filesystem = folder.filesystem
        self.attempt = attempt
        self.next_number = 0

    @classmethod
    def start_attempt(cls, folder: RunFolder) -> "Journal":
        """Start a new attempt and return its journal. From now on, earlier drivers cannot add to the journal."""
        journal = cls(folder)
        journal.attempt = 1 + max(journal._attempts(), default=0)
        while True:
            accepted: dict[str, list[int]] = {}
            for attempt, number, _ in journal._counted():
                accepted.setdefault(str(attempt), []).append(number)
            content = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "accepted": accepted,
            }
            path = f"{folder.attempts}/{numbered(ATTEMPT, journal.attempt)}"
            if create_new(folder.filesystem, path, json.dumps(content).encode(), folder.has_conditions):
                break
            journal.attempt += 1
        reached("attempt written")
        return journal

    def append(self, receipts: Iterable[Receipt]) -> None:
        """Commit receipts. After this returns, their shards are never opened again."""
        lines = "".join(receipt.to_json() + "\n" for receipt in receipts)
        if lines:
            reached("before journal")
            path = f"{self.folder.journal}/{numbered(JOURNAL_OBJECT, self.attempt, self.next_number)}"
            self.next_number += 1  # also if the write fails: the object may exist and must not be overwritten
            put_object(self.filesystem, path, lines.encode())
            reached("after journal")

    def read(self, num_shards: int = MOST_SHARDS) -> Iterator[Receipt]:
        """All receipts that count, one per shard, in the order of their commits. `num_shards`: of the run's plan.

        RunError if an object of the journal is damaged, or a receipt is not one of a shard of this run.
        """
        return (receipt for _, receipt in self.read_with_attempts(num_shards))

    def read_with_attempts(self, num_shards: int = MOST_SHARDS) -> Iterator[tuple[int, Receipt]]:
        """Like `read`, with the number of the attempt that committed each receipt."""
        seen: set[int] = set()
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="journal") as threads:
            objects = ((attempt, path) for attempt, _, path in self._counted())
            for attempt, receipts in look_ahead(
                lambda found: threads.submit(self._read_object, *found), objects, _READ_THREADS
            ):
                for receipt in receipts:
                    if receipt.shard >= num_shards:
                        why = f"it has a receipt of shard {receipt.shard}, but the plan has {num_shards} shards"
                        raise self.folder.output.damaged(self.folder.journal, why)
                    if receipt.shard not in seen:
                        seen.add(receipt.shard)
                        yield attempt, receipt

    def _read_object(self, attempt: int, path: str) -> tuple[int, list[Receipt]]:
        receipts = []
        for number, line in enumerate(BytesIO(self.folder.output.read(path)), 1):
            try:
                receipts.append(Receipt.from_json(line, self.folder.run_id))
            except ValueError as error:
                raise self.folder.output.damaged(f"{path}, line {number},", str(error)) from None
        return attempt, receipts

    def is_the_latest(self) -> bool:
        """Whether everything that this attempt appended counts, because no other attempt has started since."""
        return self.latest_attempt() == self.attempt

    def latest_attempt(self) -> int:
        """The number of the attempt that has started last; 0 if none has."""
        return max(self._attempts(), default=0)

    def _attempts(self) -> dict[int, str]:
        """The path of each attempt's object, by number of the attempt."""
        found = self.folder.output.list_numbered(self.folder.attempts, ATTEMPT)
        return {attempt: path for (attempt,), path in found}

    def _counted(self) -> Iterator[tuple[int, int, str]]:
        """(attempt, number, path) of every journal object that counts, in order."""
        attempts, output = self._attempts(), self.folder.output
        latest = max(attempts, default=0)
        accepted: dict[str, set[int]] = {}
        if attempts:
            content = output.parse(_ATTEMPT, output.read(attempts[latest]), attempts[latest])
            accepted = {attempt: set(numbers) for attempt, numbers in content["accepted"].items()}
        for (attempt, number), path in output.list_numbered(self.folder.journal, JOURNAL_OBJECT):
            if attempt >= latest or number in accepted.get(str(attempt), ()):
                yield attempt, number, path


class Committer:
    """Collects receipts, and commits them every `seconds` seconds and at the end of the run, whatever ends it.

    A thread commits them, because the next receipt may take long to arrive. If the thread cannot write, `add` or the
    end raises the error.
    """

    def __init__(
        self, journal: Journal, seconds: float = JOURNAL_SECONDS, may_commit: Callable[[], None] = lambda: None
    ):
        """`may_commit` is called before each commit and raises if this driver must not commit."""
        self.journal = journal
        self.may_commit = may_commit
        self.seconds = seconds
        self.receipts: list[Receipt] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._commit_in_time, daemon=True, name="commit")

    def __enter__(self) -> "Committer":
        self.thread.start()
        return self

    def add(self, receipt: Receipt) -> None:
        if self.failure is not None:
            raise self.failure
        with self.lock:
            self.receipts.append(receipt)

    def num_waiting(self) -> int:
        """The number of images whose receipts are not committed yet."""
        with self.lock:
            return sum(receipt.num_images for receipt in self.receipts)

    def commit(self) -> None:
        with self.lock:
            if self.receipts:
                self.may_commit()
                self.journal.append(self.receipts)
                for receipt in self.receipts:
                    _count(receipt)
                self.receipts = []

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()
        self.commit()

    def _commit_in_time(self) -> None:
        while not self.ended.wait(self.seconds):
            try:
                self.commit()
            except Exception as error:  # from the store or the disk; receipts are kept, and the end tries once more
                self.failure = error
                return


def _count(receipt: Receipt) -> None:
    RECEIPTS.add()
    SEGMENTS.add(receipt.parts["segments"].num_rows)
    num_ok = receipt.num_images - receipt.num_failed - receipt.num_removed
    for status, number in (("ok", num_ok), ("removed", receipt.num_removed)):
        IMAGES.add(number, status=status, error_code="")
    for code, number in receipt.failed_by_code.items():
        IMAGES.add(number, status="failed", error_code=code)
