"""What people see of a drill."""

import sys

from rich.console import Console
from rich.table import Table

from pipeline.drill.drill import Finding


def say(finding: Finding) -> None:
    """One line on stderr while the drill goes on."""
    print(f"{finding.step}: {finding.done}: {finding.found}", file=sys.stderr, flush=True)


def print_findings(findings: list[Finding]) -> None:
    """All of it as a table."""
    table = Table(title="drill")
    for name in ("step", "done", "found", ""):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.step, finding.done, finding.found, "ok" if finding.is_good else "[bold red]WRONG[/]")
    Console(highlight=False).print(table)
