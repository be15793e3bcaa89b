"""Segment every image of a bucket: `python jobs/segment_bucket.py --input ... --output ... --model ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
goes on where it stopped); 2: it could not start, for the one reason given.
"""

import signal
import sys
from collections.abc import Sequence
from logging import WARNING

from jobs.command_line import fail, parse
from jobs.leave import leave_with
from pipeline.cluster.environment import set_ray_environment
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError
from pipeline.report.progress import Progress
from pipeline.telemetry.log_lines import last_line, show_log_lines

PROG = "segment_bucket.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(Settings, sys.argv[1:] if args is None else args, prog=PROG)
    set_ray_environment()
    show_log_lines(settings.log_format)
    progress = Progress(settings.progress_seconds, settings.log_format)
    try:
        with progress:
            progress.phase("loading PyTorch and Ray")
            # Only now: --help should not wait, and Ray reads its environment when loaded.
            from pipeline.report.summary import print_selfcheck, print_summary
            from pipeline.run import segment_bucket
            from pipeline.runs.selfcheck import selfcheck

            if settings.selfcheck:
                progress.phase("checking this device")
                checked = selfcheck(settings)
            else:
                report = segment_bucket(settings, progress)
    except RunError as error:
        fail(PROG, str(error))
    except BrokenRunError as error:
        last_line(PROG, f"{error}; {progress.kept()}, the same command goes on", with_traceback=True)
        return 1
    except KeyboardInterrupt:
        last_line(PROG, f"interrupted; {progress.kept()}, the same command goes on", level=WARNING)
        return 130
    except SystemExit:  # of the handler in run.py, or of Ray's, which has another code
        last_line(PROG, f"stopped by SIGTERM; {progress.kept()}, the same command goes on", level=WARNING)
        return 128 + signal.SIGTERM
    if settings.selfcheck:
        print_selfcheck(checked)
        return 0 if checked.passes else 1
    if report is None:
        return 0
    print_summary(report, settings)
    return report.exit_code(settings.max_failure_rate)


if __name__ == "__main__":
    leave_with(main)
