"""Draw a data set of synthetic scenes in COCO's formats: `python jobs/make_scenes.py --output scenes/train`.

Exit code 0: done; 2: the scenes could not be drawn, for the reason that is printed; 130, 143: stopped by Ctrl-C or
SIGTERM.
"""

import sys
from collections.abc import Sequence

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.scenes.settings import ScenesSettings
from pipeline.telemetry.console import say

PROG = program("make_scenes.py")
_KEPT = "run the same command again to draw all scenes"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(ScenesSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _draw(settings), kept=_KEPT)


def _draw(settings: ScenesSettings) -> int:
    # Imported only now, because --help should not wait for numpy and numba.
    from pipeline.scenes.write import write_scenes

    write_scenes(settings)
    say(f"{settings.number} scenes: {settings.output.rstrip('/')}/images, panoptic.json, instances.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
