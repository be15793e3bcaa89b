"""List the nights of an output: `python jobs/nights.py --output s3://bucket/tables`.

Exit code 0: done; 1: no night has finished or found nothing to do within --expect-within; 2: the output cannot be read,
for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import logging
import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.nights.settings import NightsSettings

PROG = program("nights.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(NightsSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _list(settings))


def _list(settings: NightsSettings) -> int:
    # Imported only now, because --help should not wait for the store's client.
    from datetime import UTC, datetime

    from pipeline.layout import Output
    from pipeline.nights.seen import lacks_good_night, seen_nights
    from pipeline.report.nights import print_nights, print_nights_as_json
    from pipeline.telemetry.log_lines import last_line, show_log_lines

    show_log_lines()
    output = Output.open(settings.output)
    nights = seen_nights(output, settings.most(), settings.first_day())
    if settings.json:
        print_nights_as_json(nights)
    else:
        print_nights(nights, settings.output)
    expected = settings.expected()
    lack = None if expected is None else lacks_good_night(output, expected, datetime.now(UTC))
    if lack is None:
        return 0
    words = f"no night of {settings.output} has finished or found nothing to do within {settings.expect_within}; {lack}"
    last_line(PROG, words, level=logging.WARNING)
    return 1


if __name__ == "__main__":
    sys.exit(main())
