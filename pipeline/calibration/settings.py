"""The settings of jobs/plan_bucket.py: those of the run, and how to measure a sample. Nothing heavy is loaded here."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

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
        """The settings of the run of the sample: those of the run, without its limits and its name."""
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Settings)}
        changed: dict[str, Any] = {
            "output": output,
            "images_per_shard": images_per_shard,
            "run_id": None,
            "deadline": None,
            "max_cost": None,
            "forecast": None,
            "max_failures": None,
            "publish_every": None,
            "compact": False,
        }
        return Settings(**{**given, **changed})
