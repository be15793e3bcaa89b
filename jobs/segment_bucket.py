"""Segment every image of a bucket: `python jobs/segment_bucket.py --input ... --output ... --model ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
continues it); 2: the job could not start, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from pipeline.cluster.environment import set_ray_environment
from pipeline.config import Settings
from pipeline.report.progress import Progress
from pipeline.telemetry.log_lines import show_log_lines

PROG = program("segment_bucket.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(Settings, sys.argv[1:] if args is None else args, prog=PROG)
    progress = Progress(settings.progress_seconds, settings.log_format)

    def kept() -> str:
        return f"{progress.kept()}; run the same command again to continue"

    return run_job(PROG, lambda: _segment(settings, progress), kept=kept)


def _segment(settings: Settings, progress: Progress) -> int:
    set_ray_environment()
    show_log_lines(settings.log_format)
    with progress:
        progress.phase("loading PyTorch and Ray")
        # Imported only now, because --help should not wait, and because Ray reads its environment when it is imported.
        from pipeline.report.summary import print_summary
        from pipeline.run import segment_bucket

        report = segment_bucket(settings, progress)
    if report is None:
        return 0
    print_summary(report, settings.output, settings.max_failure_rate)
    return report.exit_code(settings.max_failure_rate)


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
