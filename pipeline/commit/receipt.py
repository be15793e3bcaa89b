"""Receipts, each of which proves that a shard is finished."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated

from annotated_types import Interval
from pydantic import StringConstraints, TypeAdapter, with_config

from m2f_core.config.fields import excerpt
from pipeline.layout import part_path
from pipeline.schema import ALL_TABLES, TABLES
from pipeline.store.json_records import STRICT, Count, Seconds, parse_record

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MOST_SHARDS = 2**31 - 1  # the tables hold the number as int32
_RowCount = Annotated[int, Interval(ge=0, le=2**40)]


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class PartRecord:
    """One Parquet file as written. `path` is relative to the output."""

    path: str
    num_rows: _RowCount
    size_bytes: Annotated[int, Interval(ge=1, le=2**40)]
    sha256: Sha256
    first_key: str | None  # smallest and largest image_key; None if there are no rows
    last_key: str | None


@with_config(STRICT)
@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is finished: all its parts are in the output, and complete."""

    shard: Annotated[int, Interval(ge=0, le=MOST_SHARDS)]
    num_images: Annotated[int, Interval(ge=1, le=2**31)]
    num_removed: Count  # how many of these images are removed from the input
    failed_by_code: dict[str, Count]  # images with status `failed`, by error code
    parts: dict[str, PartRecord]  # by table; of `logits` only with --keep-logits
    started: Seconds  # when a model actor took the shard, seconds since the epoch
    finished: Seconds  # when its parts were written
    seconds: dict[str, Seconds] = field(default_factory=dict)  # seconds of each step: see costs.STEPS
    model_actor: str = ""  # the model actor that segmented the shard: host and process
    model_ended: Seconds = 0.0  # when that actor finished the shard

    @property
    def num_failed(self) -> int:
        return sum(self.failed_by_code.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes, run_id: str) -> "Receipt":
        """The receipt of a shard of the run `run_id`. ValueError with one line that names the field that is wrong."""
        receipt = _RECEIPT.validate_json(line) if isinstance(line, str) else parse_record(_RECEIPT, line)
        receipt._check(run_id)
        return receipt

    def _check(self, run_id: str) -> None:
        """ValueError if the receipt does not add up, or names a part of another shard or run: it would count twice."""
        name = f"the receipt of shard {self.shard}"
        if not TABLES.keys() <= self.parts.keys() <= ALL_TABLES.keys():
            raise ValueError(f"{name} has parts of {excerpt(sorted(self.parts))}, not of {sorted(TABLES)}")
        for table, part in self.parts.items():
            expected = part_path(table, run_id, self.shard, part.sha256)
            if part.path != expected:
                raise ValueError(f"{name} has {excerpt(part.path)} as parts.{table}.path; it must be {expected}")
        if self.parts["images"].num_rows != self.num_images:
            rows = self.parts["images"].num_rows
            raise ValueError(f"{name} has {rows} as parts.images.num_rows, but {self.num_images} images")
        if self.num_removed + self.num_failed > self.num_images:
            raise ValueError(f"{name} has more images removed and failed than its {self.num_images}")


_RECEIPT = TypeAdapter(Receipt)
