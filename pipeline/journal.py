"""What is done: receipts of shards, appended in batches. One object a batch, one PUT: that PUT is the commit point.

A shard counts when a receipt of it stands in the journal; files that happen to lie in the output count for nothing.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec

from pipeline.storage import list_folder, put_object

# Receipts of at most this many seconds are lost (and their shards done again) when the driver is killed.
JOURNAL_SECONDS = 5.0


@dataclass(frozen=True)
class PartRecord:
    """One Parquet file as written. `path` is relative to the output."""

    path: str
    num_rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done: its parts lie in the output, whole."""

    shard: int
    num_images: int
    failed_by_code: dict[str, int]  # images with status `failed`, by error code
    parts: dict[str, PartRecord]  # by table
    started: float  # when a model actor took the shard, seconds since the epoch
    finished: float  # when its parts were written

    @property
    def num_failed(self) -> int:
        return sum(self.failed_by_code.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "Receipt":
        values: dict[str, Any] = json.loads(line)
        values["parts"] = {table: PartRecord(**part) for table, part in values["parts"].items()}
        return cls(**values)


@dataclass
class Totals:
    """The books of a run, added up receipt by receipt: flat in the number of images."""

    num_images: int = 0
    num_segments: int = 0
    failed_by_code: dict[str, int] = field(default_factory=dict)
    shards: set[int] = field(default_factory=set)  # at most 200 k small ints at 100 M images

    @property
    def num_failed(self) -> int:
        return sum(self.failed_by_code.values())

    def add(self, receipt: Receipt) -> bool:
        """Count `receipt`; False where its shard is counted already (the first receipt wins)."""
        if receipt.shard in self.shards:
            return False
        self.shards.add(receipt.shard)
        self.num_images += receipt.num_images
        self.num_segments += receipt.parts["segments"].num_rows
        for code, count in receipt.failed_by_code.items():
            self.failed_by_code[code] = self.failed_by_code.get(code, 0) + count
        return True


class Journal:
    """The receipts of one run below `folder`: `000001-000000.jsonl`, by attempt and number.

    The attempt in the name keeps a driver that outlived its time from overwriting its successor's receipts.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, folder: str, attempt: int):
        self.filesystem = filesystem
        self.folder = folder
        self.attempt = attempt
        self.next_number = 0

    def append(self, receipts: Iterable[Receipt]) -> None:
        """Commit receipts: after this returns, their shards are never opened again."""
        lines = "".join(receipt.to_json() + "\n" for receipt in receipts)
        if lines:
            path = f"{self.folder}/{self.attempt:06d}-{self.next_number:06d}.jsonl"
            put_object(self.filesystem, path, lines.encode())
            self.next_number += 1

    def read(self) -> Iterator[Receipt]:
        """All receipts of all attempts, oldest first."""
        for path in list_folder(self.filesystem, self.folder):
            for line in self.filesystem.cat_file(path).decode().splitlines():
                yield Receipt.from_json(line)


class Committer:
    """Collects receipts and commits them every `seconds` and at the end, whatever ends the run.

    A thread does it, because the next receipt may be long in coming. What it cannot write is raised by `add` or at the
    end.
    """

    def __init__(self, journal: Journal, seconds: float = JOURNAL_SECONDS):
        self.journal = journal
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

    def commit(self) -> None:
        with self.lock:
            self.journal.append(self.receipts)
            self.receipts = []

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()
        self.commit()

    def _commit_in_time(self) -> None:
        while not self.ended.wait(self.seconds):
            try:
                self.commit()
            except Exception as error:  # of the store or the disk; the receipts are kept, the end tries once more
                self.failure = error
                return
