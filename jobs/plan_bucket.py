"""Preview `segment_bucket.py` with the same arguments: how many images, and why. Writes nothing, needs no GPU.

Exit code 0: done; 2: the job could not start, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.config import Settings

PROG = program("plan_bucket.py")
_SUMMARY = "Count the images that segment_bucket.py would process with the same flags, and say why. Nothing is written."


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(Settings, sys.argv[1:] if args is None else args, prog=PROG, summary=_SUMMARY)
    return run_job(PROG, lambda: _plan(settings))


def _plan(settings: Settings) -> int:
    # Imported only now, because this loads torch to read the checkpoint, and --help should not wait.
    from pipeline.report.summary import print_preview
    from pipeline.runs.preview import preview
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines(settings.log_format)
    print_preview(preview(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
