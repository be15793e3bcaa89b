"""Write a network as ONNX or pt2: `python jobs/export_model.py --format onnx --model ... --output ...`.

Exit code 0: done; 1: the file computes something else than PyTorch, so no folder was written; 2: the export could not
start, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from pipeline.export_model.settings import ExportModelSettings
from pipeline.telemetry.log_lines import show_log_lines

PROG = program("export_model.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(ExportModelSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _export(settings), kept="nothing was written")


def _export(settings: ExportModelSettings) -> int:
    show_log_lines("text")
    # Imported only now, because --help should not wait for PyTorch.
    from pipeline.export_model.export_model import export_model
    from pipeline.export_model.report import print_exported_model

    print_exported_model(export_model(settings))
    return 0


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
