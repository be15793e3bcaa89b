"""What people see at the end of a run."""

import logging
import sys

from rich.console import Console
from rich.table import Table

from pipeline.books import Report
from pipeline.config import Settings


def show_log_lines() -> None:
    """The pipeline's own messages, one line each, on stderr. May be called again."""
    log = logging.getLogger("pipeline")
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def print_summary(report: Report, settings: Settings) -> None:
    """The books as a table, then where the tables lie."""
    table = Table(title=f"run {report.run_id}", show_header=False)
    table.add_row("images", f"{report.num_images:,}")
    table.add_row("ok", f"{report.num_ok:,}")
    table.add_row("failed", f"{report.num_failed:,} (budget {settings.max_failure_rate:.2%})")
    for code, count in report.failed_by_code.items():
        table.add_row(f"  {code}", f"{count:,}")
    table.add_row("segments", f"{report.num_segments:,}")
    table.add_row("shards", f"{report.num_shards:,} ({report.num_shards_done_before:,} done before)")
    table.add_row("images/s", f"{report.images_per_second:,.2f} in {report.seconds:,.1f} s, model load excluded")
    # Highlighting off and no wrapping: a job's log is read by people and by grep.
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name in ("images", "segments"):
        console.print(f"{name}: {settings.output.rstrip('/')}/{name}/run={report.run_id}/*.parquet", markup=False)
