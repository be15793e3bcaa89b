"""Preview `segment_bucket.py` with the same arguments: how many images, and why. Writes nothing, needs no GPU.

With `--calibrate N`, the job segments N of the images in a folder of its own and forecasts time, cost and size.

Exit code 0: done; 2: the job could not start, for the reason that is printed; 130, 143: stopped by Ctrl-C or SIGTERM.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common.command_line import parse, program
from jobs.common.ends import run_job
from pipeline.calibration.settings import PlanSettings
from pipeline.cluster.environment import set_ray_environment

PROG = program("plan_bucket.py")


def main(args: Sequence[str] | None = None) -> int:
    settings = parse(PlanSettings, sys.argv[1:] if args is None else args, prog=PROG)
    return run_job(PROG, lambda: _plan(settings))


def _plan(settings: PlanSettings) -> int:
    # Imported only now, because this loads torch to read the checkpoint, and --help should not wait.
    from pipeline.telemetry.log_lines import show_log_lines

    show_log_lines(settings.log_format)
    if settings.calibrate is not None:
        return _calibrate(settings)
    from pipeline.report.summary import print_preview
    from pipeline.runs.preview import preview

    print_preview(preview(settings))
    return 0


def _calibrate(settings: PlanSettings) -> int:
    from pipeline.report.progress import Progress

    set_ray_environment()  # Ray reads it when it is imported
    with Progress(settings.progress_seconds, settings.log_format) as progress:
        progress.phase("loading PyTorch and Ray")
        from pipeline.calibration.calibrate import calibrate
        from pipeline.report.forecast import print_forecast
        from pipeline.report.summary import print_preview

        done = calibrate(settings, progress)
    print_preview(done.preview)
    if done.measured is not None:
        print_forecast(done.measured, done.work, done.bounds, done.prices, done.deadline, settings.max_cost)
        if settings.forecast is not None:
            done.measured.write(Path(settings.forecast))
    return 0


if __name__ == "__main__":
    sys.exit(main())
