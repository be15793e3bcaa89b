"""Try settings on a sample while processes and the store fail: `python jobs/drill.py --input ... --output ... --model
...`.

Exit code 0: every image has one row, and all rows equal the rows of an undisturbed run; 1: they do not, and the printed
table shows where; 2: the drill could not run, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs import segment_bucket
from jobs.common.command_line import flags_of, parse, program
from jobs.common.ends import run_job
from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from pipeline.telemetry.log_lines import show_log_lines

PROG = program("drill.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(DrillSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _drill(settings))


def _drill(settings: DrillSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and the store's client.
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
