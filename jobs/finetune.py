"""Train a Mask2Former: `python jobs/finetune.py --images ... --panoptic-gt ... --model ... --output ...`.

Exit code 0: done; 1: the training broke (the same command continues it from its last checkpoint); 2: the training could
not start or continue, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with, run_job
from pipeline.cluster.environment import set_ray_environment
from pipeline.report.progress import Progress
from pipeline.telemetry.console import say
from pipeline.telemetry.log_lines import show_log_lines
from pipeline.train.settings import FinetuneSettings

PROG = program("finetune.py")
_KEPT = "saved checkpoints are kept; run the same command again to continue from the last one"

_SIGN_OF_LIFE_SECONDS = 10.0


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(FinetuneSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _train(settings), kept=_KEPT)


def _train(settings: FinetuneSettings) -> int:
    set_ray_environment()
    show_log_lines(settings.log_format)
    with Progress(_SIGN_OF_LIFE_SECONDS, settings.log_format) as progress:
        progress.phase("loading PyTorch and Ray")
        # Imported only now, because --help should not wait, and because Ray reads its environment when it is imported.
        from pipeline.train.finetune import finetune

    finetune(settings)
    say(f"model: {settings.output.rstrip('/')}/model")
    return 0


def command() -> NoReturn:
    leave_with(main)


if __name__ == "__main__":
    command()
