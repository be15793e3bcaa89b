"""The settings of jobs/plan_bucket.py: all settings of segment_bucket.py, and the settings of a calibration.

Nothing heavy is imported here.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from pipeline.config import Settings
from pipeline.setting_fields import Section

_CALIBRATION = Section("calibration")


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Count the images that segment_bucket.py would process with the same flags, and say why. Nothing is written.

    With --calibrate, run a sample of the images and forecast time, cost and size of the whole.
    """

    calibrate: Annotated[int | None, _CALIBRATION, Interval(ge=1, le=1_000_000)] = None
    """Segment N images, drawn at random from all that the run would process, in a folder of their own that is removed
    at the end; print the forecast, and write it to the file of --forecast, if given."""
    seed: Annotated[int, _CALIBRATION, Interval(ge=0, le=2**31 - 1)] = 0
    """Seed the choice of images."""
    scratch: Annotated[str | None, _CALIBRATION] = None
    """Write the sample below this folder or URI prefix. Default: a folder beside --output."""

    def of_sample(self, output: str, images_per_shard: int) -> Settings:
        """The settings with which the job runs the sample: no limit ends this run, and nothing is published early."""
        return self.of_own_run(
            output=output,
            images_per_shard=images_per_shard,
            run_id=None,
            max_failures=None,
            publish_every=None,
            compact=False,
        )
