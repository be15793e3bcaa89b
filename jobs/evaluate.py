"""Score a finished run against ground truth: `python jobs/evaluate.py --tables ... --panoptic-gt panoptic.json`.

Exit code 0: done; 2: the run could not be scored, for the reason that is printed; 130, 143: stopped by Ctrl-C or
SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.evaluate.settings import EvaluationSettings

PROG = program("evaluate.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(EvaluationSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _evaluate(settings))


def _evaluate(settings: EvaluationSettings) -> int:
    # Imported only now, because --help should not wait for pyarrow and numba.
    from pipeline.evaluate.evaluate import evaluate, write_report
    from pipeline.evaluate.report import print_evaluation

    report = evaluate(settings)
    print_evaluation(report)
    if settings.report is not None:
        write_report(settings.report, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
