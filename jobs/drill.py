"""Try settings on a sample while everything breaks: `python jobs/drill.py --input ... --output ... --model ...`.

Exit code 0: every image ended in one row, and the rows are those of an undisturbed run; 1: not so, the table says
where; 2: the drill could not be run, for the one reason given; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs import segment_bucket
from jobs.command_line import flags_of, parse
from jobs.ends import run_job
from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from pipeline.telemetry.log_lines import show_log_lines

PROG = "drill.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(DrillSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _drill(settings))


def _drill(settings: DrillSettings) -> int:
    # Only now: --help should not wait for pyarrow and the store's client.
    from pipeline.drill.drill import drill
    from pipeline.drill.report import print_findings, say

    show_log_lines(settings.log_format)
    findings = drill(settings, _command, say)
    print_findings(findings)
    return 0 if all(finding.is_good for finding in findings) else 1


def _command(settings: Settings) -> list[str]:
    return [sys.executable, segment_bucket.__file__, *flags_of(settings)]


if __name__ == "__main__":
    sys.exit(main())
