"""Draw a data set of synthetic scenes in COCO's formats: `python jobs/make_scenes.py --output scenes/train`.

Exit code 0: done; 2: it could not be done, for the one reason given.
"""

import sys
from collections.abc import Sequence

from jobs.command_line import fail, parse
from pipeline.errors import RunError
from pipeline.scenes.settings import ScenesSettings

PROG = "make_scenes.py"


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(ScenesSettings, sys.argv[1:] if args is None else args, prog=PROG)
    # Only now: --help should not wait for numpy and numba.
    from pipeline.scenes.write import write_scenes

    try:
        write_scenes(settings)
    except RunError as error:
        fail(PROG, str(error))
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; the same command draws all scenes again", file=sys.stderr)
        return 130
    print(f"{settings.number} scenes: {settings.output.rstrip('/')}/images, panoptic.json, instances.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
