"""Compare what the device computes with plain PyTorch, and time it: `python jobs/selfcheck.py --input ... --model ...`.

Exit code 0: rounding explains the differences; 1: rounding does not explain them; 2: the check could not start, for the
reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.cluster.environment import set_ray_environment
from pipeline.config import SelfCheckSettings

PROG = program("selfcheck.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(SelfCheckSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _check(settings))


def _check(settings: SelfCheckSettings) -> int:
    set_ray_environment()
    # Imported only now: --help should not wait for Ray and torch, and Ray reads its environment when it is imported.
    from pipeline.report.summary import print_selfcheck
    from pipeline.runs.selfcheck import selfcheck
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines(settings.log_format)
    checked = selfcheck(settings)
    print_selfcheck(checked)
    return 0 if checked.passes else 1


if __name__ == "__main__":
    sys.exit(main())
