"""Log lines and table of a drill."""

import logging

from rich.table import Table
from rich.text import Text

from pipeline.drill.drill import Finding
from pipeline.telemetry.console import output_console

logger = logging.getLogger(__name__)


def say(finding: Finding) -> None:
    """Log one finding while the drill runs."""
    logger.info("%s: %s: %s", finding.step, finding.done, finding.found)


def print_findings(findings: list[Finding]) -> None:
    """Print all findings as a table."""
    table = Table(title="drill")
    for name in ("step", "done", "found", ""):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.step, finding.done, finding.found, "ok" if finding.is_good else Text("WRONG", "bold red"))
    output_console().print(table, soft_wrap=False)
