"""Receipts, each of which proves that a shard is finished, and the totals of receipts."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.telemetry.costs import add_up


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One Parquet file as written. `path` is relative to the output."""

    path: str
    num_rows: int
    size_bytes: int
    sha256: str
    first_key: str | None  # smallest and largest image_key; None if there are no rows
    last_key: str | None


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is finished: all its parts are in the output, and complete."""

    shard: int
    num_images: int
    num_removed: int  # how many of these images are removed from the input
    failed_by_code: dict[str, int]  # images with status `failed`, by error code
    parts: dict[str, PartRecord]  # by table
    started: float  # when a model actor took the shard, seconds since the epoch
    finished: float  # when its parts were written
    seconds: dict[str, float] = field(default_factory=dict)  # seconds of each step: see costs.STEPS
    model_actor: str = ""  # the model actor that segmented the shard: host and process
    model_ended: float = 0.0  # when that actor finished the shard

    @property
    def num_failed(self) -> int:
        return sum(self.failed_by_code.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Receipt":
        values: dict[str, Any] = json.loads(line)
        values["parts"] = {table: PartRecord(**part) for table, part in values["parts"].items()}
        return cls(**values)


@dataclass
class Totals:
    """The totals of a run, added up receipt by receipt, in little memory for any number of images."""

    num_images: int = 0
    num_removed: int = 0
    num_segments: int = 0
    failed_by_code: dict[str, int] = field(default_factory=dict)
    shards: set[int] = field(default_factory=set)  # at most 200 k small ints at 100 M images
    seconds: dict[str, float] = field(default_factory=dict)  # by step

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
        for code, count in receipt.failed_by_code.items():
            self.failed_by_code[code] = self.failed_by_code.get(code, 0) + count
        return True
