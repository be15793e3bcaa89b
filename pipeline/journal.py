"""What is done: receipts of shards, appended in batches. One object a batch, one PUT: that PUT is the commit point.

A shard counts when a receipt of it stands in the journal; files that happen to lie in the output count for nothing.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec

from pipeline.storage import put_object

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
    """The receipts of one run below `folder`: `000000.jsonl`, `000001.jsonl`, ..."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, folder: str):
        self.filesystem = filesystem
        self.folder = folder
        self.next_number = len(self._files())

    def append(self, receipts: Iterable[Receipt]) -> None:
        """Commit receipts: after this returns, their shards are never opened again."""
        lines = "".join(receipt.to_json() + "\n" for receipt in receipts)
        if lines:
            put_object(self.filesystem, f"{self.folder}/{self.next_number:06d}.jsonl", lines.encode())
            self.next_number += 1

    def read(self) -> Iterator[Receipt]:
        """All receipts, oldest first."""
        for path in self._files():
            for line in self.filesystem.cat_file(path).decode().splitlines():
                yield Receipt.from_json(line)

    def _files(self) -> list[str]:
        try:
            names = self.filesystem.ls(self.folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.endswith(".jsonl"))


class Committer:
    """Collects receipts and commits them every JOURNAL_SECONDS and at the end, whatever ends the run."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.receipts: list[Receipt] = []
        self.since = time.monotonic()

    def __enter__(self) -> "Committer":
        return self

    def add(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)
        if time.monotonic() - self.since >= JOURNAL_SECONDS:
            self.commit()

    def commit(self) -> None:
        self.journal.append(self.receipts)
        self.receipts, self.since = [], time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self.commit()
