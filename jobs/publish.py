"""Publish a run that --gate has held back: `python jobs/publish.py --tables s3://bucket/tables --run-id R`.

Then the report page of the run is written, as at the end of a run that passes its gate.

Exit code 0: done, however many images failed; 1: a table could not be changed, run the same command again; 2: nothing
was changed, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM, run the same command again.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from jobs.common.run_page import write_run_page
from pipeline.runs.settings import PublishSettings

if TYPE_CHECKING:
    from pipeline.gate.publish_held import Held

PROG = program("publish.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(PublishSettings, sys.argv[1:] if args is None else args, prog=PROG)
    published: list[Held] = []
    code = run_job(PROG, lambda: _publish(settings, published), kept="run the same command again")
    if published and published[0].wants_page:  # after the end of the job, which a page must not change
        write_run_page(settings.tables, settings.run_id, published[0].page_images)
    return code


def _publish(settings: PublishSettings, published: "list[Held]") -> int:
    # Imported only now, because --help should not wait for pyarrow and deltalake.
    from pipeline.gate.publish_held import publish_held
    from pipeline.report.summary import print_summary
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines("text")
    published.append(publish_held(settings))
    print_summary(published[0].report, settings.tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
