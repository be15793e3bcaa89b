"""Print the nights of an output: a table for people, or one JSON object a line for machines."""

import json
import sys
from collections.abc import Sequence

from rich.table import Table

from pipeline.nights.seen import GOOD, SeenNight
from pipeline.shown_text import printable_json
from pipeline.telemetry.console import hms, output_console, say


def print_nights(nights: Sequence[SeenNight], place: str) -> None:
    """Print a line for each night, the oldest first."""
    if not nights:
        say(f"no night has left a record below {place}")
        return
    table = Table("started (UTC)", "outcome", "exit", "images", "failed", "took", "run", "reason")
    for night in nights:
        record = night.record
        counts = record.counts if record is not None else {}
        table.add_row(
            f"{night.started_at:%Y-%m-%d %H:%M}",
            night.outcome,
            _text(record and record.exit_code),
            f"{counts.get('done', 0):,}/{counts['images']:,}" if "images" in counts else "",
            f"{counts['failed']:,}" if "failed" in counts else "",
            hms(record.seconds) if record is not None and record.seconds is not None else "",
            _text(record and record.run_id),
            night.reason,
            style=None if night.outcome in (*GOOD, "running") else "bold",
        )
    console = output_console()
    if not sys.stdout.isatty():
        console.width = 10_000  # a pipe has no width: one line a night
    console.print(table)


def print_nights_as_json(nights: Sequence[SeenNight]) -> None:
    """Print one JSON object a line, the oldest night first."""
    for night in nights:
        say(printable_json(json.dumps(night.to_dict(), ensure_ascii=False)))


def _text(value: object) -> str:
    return "" if value is None else str(value)
