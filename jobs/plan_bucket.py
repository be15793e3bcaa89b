"""What `segment_bucket.py` would do with the same arguments: how many images, and why. Writes nothing, needs no GPU.

Exit code 0; 2 where the job could not start, for the one reason given.
"""

import sys
from collections.abc import Sequence

from jobs.command_line import fail, parse
from pipeline.config import Settings
from pipeline.errors import RunError

PROG = "plan_bucket.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(Settings, sys.argv[1:] if args is None else args, prog=PROG)
    if settings.selfcheck:
        fail(PROG, "--selfcheck belongs to segment_bucket.py")
    from pipeline.report.summary import print_preview
    from pipeline.runs.preview import preview  # loads torch to read the checkpoint: --help should not wait
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines(settings.log_format)
    try:
        print_preview(preview(settings))
    except RunError as error:
        fail(PROG, str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
