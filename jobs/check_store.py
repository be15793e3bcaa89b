"""Try whether a store does what runs rely on: `python jobs/check_store.py --output s3://bucket/prefix`.

Exit code 0: fit; 1: unsafe, because nothing would keep a second job from writing at the same time; 2: the store cannot
be used, or could not be tried, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.store_check.settings import StoreCheckSettings
from pipeline.telemetry.log_lines import show_log_lines

PROG = program("check_store.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(StoreCheckSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _check(settings), kept="everything that was written is removed")


def _check(settings: StoreCheckSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and the store's client.
    from pipeline.store_check.check import check_store
    from pipeline.store_check.report import EXIT_CODES, print_check, say

    show_log_lines(settings.log_format)
    check = check_store(settings, say)
    print_check(check)
    return EXIT_CODES[check.verdict]


if __name__ == "__main__":
    sys.exit(main())
