"""Train a Mask2Former: `python jobs/finetune.py --images ... --panoptic-gt ... --model ... --output ...`.

Exit code 0: done; 1: the training broke (the same command goes on from its last checkpoint); 2: it could not start, or
not go on, for the one reason given; 130: interrupted.
"""

import sys
import traceback
from collections.abc import Sequence

from jobs.command_line import fail, parse
from pipeline.cluster.environment import set_ray_environment
from pipeline.errors import BrokenRunError, RunError
from pipeline.train.settings import FinetuneSettings

PROG = "finetune.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(FinetuneSettings, sys.argv[1:] if args is None else args, prog=PROG)
    set_ray_environment()
    # Only now, because these load Ray and torch: --help should not wait, and Ray reads its environment when loaded.
    from pipeline.telemetry.log_lines import show_log_lines
    from pipeline.train.finetune import finetune

    show_log_lines()
    try:
        finetune(settings)
    except RunError as error:
        fail(PROG, str(error))
    except BrokenRunError as error:
        traceback.print_exc()
        print(f"{PROG}: error: {error}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(f"model: {settings.output.rstrip('/')}/model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
