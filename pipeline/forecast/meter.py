"""Measure a run while its receipts come in."""

import math
from datetime import UTC, datetime

from pipeline.commit.receipt import Receipt
from pipeline.forecast.measured import Measured, Size
from pipeline.forecast.ratio import Ratio
from pipeline.forecast.speed import SpeedMeter
from pipeline.schema import ALL_TABLES
from pipeline.telemetry.costs import add_up


class RunMeter:
    """Adds up the receipts of one command, in little memory for any number of shards."""

    def __init__(self, began: float):
        """`began`: when the first actor was asked for, in seconds since the epoch."""
        self.began = began
        self.speed = SpeedMeter()
        self.num_failed = 0
        self.first_started, self.last_finished = math.inf, began
        self.seconds: dict[str, float] = {}  # by step
        self._write_seconds = 0.0
        self._bytes = {table: Ratio() for table in ALL_TABLES}

    @property
    def num_images(self) -> int:
        return self.speed.all.images

    def add(self, receipt: Receipt) -> None:
        self.speed.add(receipt)
        self.num_failed += receipt.num_failed
        self.first_started = min(self.first_started, receipt.started)
        self.last_finished = max(self.last_finished, receipt.finished)
        self._write_seconds += max(0.0, receipt.finished - receipt.model_ended)
        self.seconds = add_up(self.seconds, receipt.seconds)
        for table, part in receipt.parts.items():
            self._bytes[table].add(receipt.num_images - receipt.num_removed, part.size_bytes)

    def measured(
        self,
        *,
        fingerprint: str,
        device_name: str,
        units_per_actor: float,
        begin_seconds: float = 0.0,
        end_seconds: float = 0.0,
        part_bytes: dict[str, int] | None = None,
    ) -> Measured | None:
        """None as long as no image has been measured. `part_bytes`: what a part has beside its rows, by table."""
        speed = self.speed.speed()
        if speed is None:
            return None
        return Measured(
            version=1,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=fingerprint,
            device_name=device_name,
            units_per_actor=units_per_actor,
            num_images=self.num_images,
            num_failed=self.num_failed,
            num_actors=len(self.speed.actors),
            begin_seconds=begin_seconds,
            load_seconds=max(0.0, self.first_started - self.began) + speed.warm_up_seconds,
            image_seconds=speed.image_seconds,
            standard_error=speed.standard_error,
            write_seconds=self._write_seconds / self.speed.all.shards,
            end_seconds=end_seconds,
            step_ms={step: round(1e3 * seconds / self.num_images, 3) for step, seconds in self.seconds.items()},
            sizes={table: _size(self._bytes[table], empty) for table, empty in (part_bytes or {}).items()},
        )


def _size(parts: Ratio, empty: int) -> Size:
    """The rest of a part, beside what each part has, is shared out to the images."""
    rest = max(0.0, parts.total - empty * parts.shards)
    return Size(rest / parts.images, parts.standard_error, empty)
