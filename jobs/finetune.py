"""Train a Mask2Former: `python jobs/finetune.py --images ... --panoptic-gt ... --model ... --output ...`.

Exit code 0: done; 1: the training broke (the same command goes on from its last checkpoint); 2: it could not start, or
not go on, for the one reason given; 130: interrupted.
"""

import sys
from collections.abc import Sequence
from logging import WARNING

from jobs.command_line import fail, parse
from jobs.leave import leave_with
from pipeline.cluster.environment import set_ray_environment
from pipeline.errors import BrokenRunError, RunError
from pipeline.report.progress import Progress
from pipeline.telemetry.log_lines import last_line, show_log_lines
from pipeline.train.settings import FinetuneSettings

PROG = "finetune.py"

_SIGN_OF_LIFE_SECONDS = 10.0


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(FinetuneSettings, sys.argv[1:] if args is None else args, prog=PROG)
    set_ray_environment()
    show_log_lines(settings.log_format)
    try:
        with Progress(_SIGN_OF_LIFE_SECONDS, settings.log_format) as progress:
            progress.phase("loading PyTorch and Ray")
            # Only now: --help should not wait, and Ray reads its environment when loaded.
            from pipeline.train.finetune import finetune

        finetune(settings)
    except RunError as error:
        fail(PROG, str(error))
    except BrokenRunError as error:
        last_line(PROG, f"{error}; the same command goes on from the last checkpoint", with_traceback=True)
        return 1
    except KeyboardInterrupt:
        last_line(PROG, "interrupted; the same command goes on from the last checkpoint", level=WARNING)
        return 130
    print(f"model: {settings.output.rstrip('/')}/model")
    return 0


if __name__ == "__main__":
    leave_with(main)
