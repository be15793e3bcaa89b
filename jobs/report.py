"""Write a page that shows a finished run: `python jobs/report.py --tables out`.

Exit code 0: done; 2: the page could not be written, for the reason that is printed; 130, 143: stopped by Ctrl-C or
SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.page.settings import ReportSettings

PROG = program("report.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(ReportSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _report(settings))


def _report(settings: ReportSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and duckdb.
    from pipeline.page.publish import publish_page
    from pipeline.telemetry.console import say

    published = publish_page(settings)
    say(f"report: {published.address}")
    if settings.overlays is not None:
        written, unreadable = (published.overlays[name] for name in ("written", "unreadable"))
        lost = f"; {unreadable:,} images could not be read again" if unreadable else ""
        say(f"overlays: {written:,} in {settings.overlays}{lost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
