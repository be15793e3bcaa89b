"""Recut a finished run on CPUs, from the logits that it kept: `python jobs/recut.py --tables ... --output ...`.

Exit code 0: done; 1: done, but more images failed than --max-failure-rate allows, or the run broke (the same command
continues it); 2: the job could not start, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from jobs.common.night_job import NightJob
from pipeline.recut.settings import RecutSettings

if TYPE_CHECKING:
    from pipeline.runs.check import Checked

PROG = program("recut.py")


def main(args: Sequence[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    settings = parse(RecutSettings, args, prog=PROG)
    job = NightJob(settings.of_night(), [PROG, *args])

    def check() -> "Checked":
        from pipeline.recut.check import check_recut

        return check_recut(settings)

    return run_job(PROG, lambda: job.run(check), kept=job.kept, on_end=job.ended)


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
