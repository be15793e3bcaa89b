"""The table of docs/monitoring.md is made from the registry: `python -m tests.support.metrics_table` writes it."""

import re

from pipeline.telemetry.instruments import Histogram, Instrument
from pipeline.telemetry.metrics import ALL
from tests.support.places import ROOT

PAGE = ROOT / "docs" / "monitoring.md"
_HEAD = "| metric | type | labels | |\n|---|---|---|---|\n"
_TABLE = re.compile(re.escape(_HEAD) + r"(?:\|.*\n)*")


def table() -> str:
    """A row a metric, in the order of the registry."""
    return _HEAD + "".join(map(_row, ALL))


def _row(metric: Instrument) -> str:
    text = metric.text
    if isinstance(metric, Histogram):
        text += f" Buckets: {', '.join(f'{bucket:g}' for bucket in metric.buckets)}."
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.exported_name}` | {metric.kind} | {labels} | {text} |\n"


def page_with_table() -> str:
    """The page, with the table as it must be."""
    text, number = _TABLE.subn(lambda _: table(), PAGE.read_text())
    assert number == 1, "docs/monitoring.md has no table of metrics, or two"
    return text


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
