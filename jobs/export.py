"""Write published tables in other formats: `python jobs/export.py --tables ... --format coco-panoptic --to ...`.

Exit code 0: done; 2: the rows could not be exported, for the reason that is printed; 130, 143: stopped by Ctrl-C or
SIGTERM, run the same command again to go on.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from pipeline.export.settings import ExportSettings

PROG = program("export.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(ExportSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _export(settings), kept="run the same command again to go on")


def _export(settings: ExportSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and numba.
    from pipeline.export.export import export
    from pipeline.export.report import print_exported

    print_exported(settings, export(settings))
    return 0


def command() -> NoReturn:
    # Else DuckDB ends the job with a page about its objects that Python has not freed.
    leave_with(main)


if __name__ == "__main__":
    command()
