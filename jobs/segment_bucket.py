"""Segment every image of a bucket: `python jobs/segment_bucket.py --input ... --output ... --model ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
goes on where it stopped); 2: it could not start, for the one reason given.
"""

import signal
import sys
import traceback
from collections.abc import Sequence

from jobs.command_line import fail, parse
from pipeline.cluster.environment import set_ray_environment
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError

PROG = "segment_bucket.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(Settings, sys.argv[1:] if args is None else args, prog=PROG)
    set_ray_environment()
    # Only now, because these load Ray and torch: --help should not wait, and Ray reads its environment when loaded.
    from pipeline.report.summary import print_selfcheck, print_summary
    from pipeline.run import segment_bucket
    from pipeline.runs.selfcheck import selfcheck
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines()
    if settings.selfcheck:
        try:
            checked = selfcheck(settings)
        except RunError as error:
            fail(PROG, str(error))
        print_selfcheck(checked)
        return 0 if checked.passes else 1
    try:
        report = segment_bucket(settings)
    except RunError as error:
        fail(PROG, str(error))
    except BrokenRunError as error:
        traceback.print_exc()
        print(f"{PROG}: error: {error}; what is done is kept, the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    except SystemExit:  # of the handler in run.py, or of Ray's, which has another code
        print(f"{PROG}: stopped by SIGTERM; what is done is kept, the same command goes on", file=sys.stderr)
        return 128 + signal.SIGTERM
    if report is None:
        return 0
    print_summary(report, settings)
    return report.exit_code(settings.max_failure_rate)


if __name__ == "__main__":
    sys.exit(main())
