"""Log lines and tables of a store check."""

import logging

from rich.table import Table
from rich.text import Text

from pipeline.store_check.check import StoreCheck
from pipeline.store_check.properties import Finding, Verdict
from pipeline.telemetry.console import output_console

logger = logging.getLogger(__name__)

_WORDS = {
    Verdict.OK: Text("ok"),
    Verdict.NOTE: Text("note"),
    Verdict.UNSAFE: Text("UNSAFE", "bold red"),
    Verdict.UNUSABLE: Text("UNUSABLE", "bold red"),
}
_VERDICTS = {
    Verdict.OK: "fit: runs can write and read here",
    Verdict.UNSAFE: "unsafe: nothing here keeps a second job from writing at the same time, so jobs refuse this store "
    "unless they have --allow-unsafe-store",
    Verdict.UNUSABLE: "cannot be used: a run here could fail, lose results or repeat them",
}
EXIT_CODES = {Verdict.OK: 0, Verdict.UNSAFE: 1, Verdict.UNUSABLE: 2}


def say(finding: Finding) -> None:
    """Log one finding while the check runs."""
    logger.info("%s: %s", finding.what, finding.found)


def print_check(check: StoreCheck) -> None:
    """Print a row for each property and each kind of request, then the verdict."""
    console = output_console()
    table = Table(title=check.store)
    for name in ("property", "found", ""):
        table.add_column(name, overflow="fold")
    for finding in check.findings:
        table.add_row(finding.what, finding.found, _WORDS[finding.verdict])
    console.print(table)
    times = Table(title="milliseconds, one request at a time")
    for name in ("request", "number", "median", "slowest"):
        times.add_column(name, justify="left" if name == "request" else "right")
    for latency in check.latencies:
        times.add_row(latency.kind, f"{latency.number:,}", f"{latency.median:,.1f}", f"{latency.most:,.1f}")
    console.print(times)
    console.print(f"verdict: {_VERDICTS[check.verdict]}")
