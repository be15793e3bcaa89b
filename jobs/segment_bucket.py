"""Segment every image of a bucket: `python jobs/segment_bucket.py --input ... --output ... --model ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
continues it); 2: the job could not start, for the reason that is printed; 3: stopped at --deadline or --max-cost (the
same command continues the run), or done but held back by --gate; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from jobs.common.night_job import NightJob
from jobs.common.run_page import write_run_page
from pipeline.config import Settings

PROG = program("segment_bucket.py")


def main(args: Sequence[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    settings = parse(Settings, args, prog=PROG)
    job = NightJob(settings, [PROG, *args])
    code = run_job(PROG, job.run, kept=job.kept, on_end=job.ended)
    if job.finished_run is not None and settings.page:  # after the end of the night, which a page must not change
        write_run_page(settings.output, job.finished_run, settings.page_images)
    return code


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
