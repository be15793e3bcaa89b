"""The totals of receipts. Loads nothing heavy, because the progress line of `jobs/` holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.telemetry.costs import add_up

if TYPE_CHECKING:
    from pipeline.commit.receipt import Receipt


@dataclass
class Totals:
    """The totals of a run, added up receipt by receipt, in little memory for any number of images."""

    num_images: int = 0
    num_removed: int = 0
    num_segments: int = 0
    failed_by_code: dict[str, int] = field(default_factory=dict)
    shards: set[int] = field(default_factory=set)  # at most 200 k small ints at 100 M images
    seconds: dict[str, float] = field(default_factory=dict)  # by step
    part_bytes: dict[str, int] = field(default_factory=dict)  # by table

    @property
    def num_failed(self) -> int:
        return sum(self.failed_by_code.values())

    def add(self, receipt: Receipt) -> bool:
        """Count `receipt`. Return False if its shard is already counted (the first receipt wins)."""
        if receipt.shard in self.shards:
            return False
        self.shards.add(receipt.shard)
        self.num_images += receipt.num_images
        self.num_removed += receipt.num_removed
        self.num_segments += receipt.parts["segments"].num_rows
        self.seconds = add_up(self.seconds, receipt.seconds)
        for table, part in receipt.parts.items():
            self.part_bytes[table] = self.part_bytes.get(table, 0) + part.size_bytes
        for code, count in receipt.failed_by_code.items():
            self.failed_by_code[code] = self.failed_by_code.get(code, 0) + count
        return True
