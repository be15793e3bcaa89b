"""Check the published tables of an output: `python jobs/verify.py --tables s3://bucket/tables`.

Exit code 0: nothing is wrong; 1: something is, as the lines say; 2: the tables could not be checked, for the reason
that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.verify.settings import VerifySettings

PROG = program("verify.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(VerifySettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _verify(settings))


def _verify(settings: VerifySettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and numba.
    from pipeline.telemetry.log_lines import show_log_lines
    from pipeline.verify.report import print_verdict
    from pipeline.verify.verify import verify

    show_log_lines("text")
    verdict = verify(settings)
    print_verdict(verdict)
    if settings.report is not None:
        verdict.write(settings.report)
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
