"""Publish a run that --gate has held back: `python jobs/publish.py --tables s3://bucket/tables --run-id R`.

Exit code 0: done; 1: a table could not be changed, run the same command again; 2: nothing was changed, for the reason
that is printed; 130, 143: stopped by Ctrl-C or SIGTERM, run the same command again.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.runs.settings import PublishSettings

PROG = program("publish.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(PublishSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _publish(settings), kept="run the same command again")


def _publish(settings: PublishSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and deltalake.
    from pipeline.gate.publish_held import publish_held
    from pipeline.report.summary import print_summary
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines("text")
    print_summary(publish_held(settings), settings.tables, max_failure_rate=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
