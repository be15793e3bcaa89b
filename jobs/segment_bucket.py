"""Segment every image of a bucket: `python jobs/segment_bucket.py --input ... --output ... --model ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
continues it); 2: the job could not start, for the reason that is printed; 3: stopped at --deadline or --max-cost (the
same command continues the run), or done but held back by --gate; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from jobs.common.run_page import write_run_page
from pipeline.cluster.environment import set_ray_environment
from pipeline.config import Settings
from pipeline.errors import JobEnd
from pipeline.report.progress import Progress
from pipeline.telemetry.log_lines import show_log_lines

if TYPE_CHECKING:
    from pipeline.nights.night import Night

PROG = program("segment_bucket.py")


def main(args: Sequence[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    settings = parse(Settings, args, prog=PROG)
    progress = Progress(settings.progress_seconds, settings.log_format)
    job = _Job(settings, progress, [PROG, *args])
    code = run_job(PROG, job.segment, kept=job.kept, on_end=job.ended)
    if job.finished_run is not None and settings.page:  # after the end of the night, which a page must not change
        write_run_page(settings.output, job.finished_run, settings.page_images)
    return code


class _Job:
    """One night: segments, and keeps a record of the night."""

    def __init__(self, settings: Settings, progress: Progress, command: Sequence[str]):
        self.settings, self.progress, self.command = settings, progress, command
        self.night: Night | None = None
        self.finished_run: str | None = None  # by this job

    def segment(self) -> int:
        """Returns the exit code."""
        set_ray_environment()
        show_log_lines(self.settings.log_format)
        with self.progress:
            self.progress.phase("loading PyTorch and Ray")
            # Imported only now: --help should not wait, Ray reads its environment when it is imported, and a night that
            # is killed while PyTorch loads should have left its record.
            from pipeline.nights.night import Night
            from pipeline.runs.places import usable_output, with_whole_places

            self.night = Night(self.command)
            self.night.start(usable_output(with_whole_places(self.settings)))
            from pipeline.report.summary import print_summary
            from pipeline.run import segment_bucket

            report = segment_bucket(self.settings, self.progress, self.night.tell)
        if report is None:
            return 0
        print_summary(report, self.settings.output, self.settings.max_failure_rate)
        self.finished_run = report.run_id
        return report.exit_code(self.settings.max_failure_rate)

    def kept(self) -> str:
        """What a stopped job says."""
        return f"{self.progress.kept()}; run the same command again to continue"

    def ended(self, end: JobEnd, exit_code: int, reason: str) -> None:
        """Take the end down, if the night has started."""
        if self.night is not None:
            too_many = "more images failed than --max-failure-rate allows" if end == "finished" and exit_code else ""
            self.night.end(end, exit_code, reason or too_many, self.progress.counts())


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
