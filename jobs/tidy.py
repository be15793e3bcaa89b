"""Make room in an output: `python jobs/tidy.py --output s3://bucket/tables --older-than 30d --yes`.

Exit code 0: done; 1: a table could not be changed, run the same command again; 2: nothing was changed, for the reason
that is printed; 130, 143: stopped by Ctrl-C or SIGTERM, run the same command again.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.runs.settings import TidySettings

PROG = program("tidy.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(TidySettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _tidy(settings), kept="run the same command again")


def _tidy(settings: TidySettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and deltalake.
    from pipeline.telemetry.log_lines import show_log_lines
    from pipeline.tidy.report import print_tidied
    from pipeline.tidy.tidy import tidy

    show_log_lines("text")
    print_tidied(tidy(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
