"""Take the rows of a finished run out of the tables: `python jobs/roll_back.py --output ... --run-id ... --yes`.

Exit code 0: done; 1: a table could not be changed, run the same command again; 2: nothing was changed, for the reason
that is printed; 130, 143: stopped by Ctrl-C or SIGTERM, run the same command again.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.runs.settings import RollBackSettings

PROG = program("roll_back.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(RollBackSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _roll_back(settings), kept="run the same command again")


def _roll_back(settings: RollBackSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and deltalake.
    from pipeline.report.summary import print_roll_back
    from pipeline.runs.roll_back import roll_back
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines("text")
    print_roll_back(roll_back(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
