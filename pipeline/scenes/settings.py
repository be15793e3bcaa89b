"""The settings of a data set of synthetic scenes: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, Section, check_fields

MAX_SCENES = 1_000_000  # file names have six digits

_SCENES = Section("scene")


@dataclass(frozen=True)
class ScenesSettings:
    """Draw synthetic scenes of things and stuff and write them as a COCO data set, panoptic and instances.

    A scene depends only on seed, index and size: training and validation data may share a seed if their indices
    differ. OUTPUT may be a local folder or a URI (s3://bucket/prefix). Credentials come from the usual AWS chain.
    """

    output: Annotated[str, IN_AND_OUT]
    """Write images/, panoptic/, panoptic.json and instances.json below this folder or URI prefix, which must hold no
    data set yet."""
    number: Annotated[int, _SCENES, Interval(ge=1, le=MAX_SCENES)] = 1000
    """Draw N scenes."""
    seed: Annotated[int, _SCENES, Interval(ge=0, le=2**31 - 1)] = 0
    """Choose the endless series that the scenes come from."""
    first_index: Annotated[int, _SCENES, Interval(ge=0, le=MAX_SCENES - 1)] = 0
    """Begin at this scene of the series; file names carry the number of the scene."""
    height: Annotated[int, _SCENES, Interval(ge=32, le=8192)] = 128
    """Draw images of this height, in pixels."""
    width: Annotated[int, _SCENES, Interval(ge=32, le=8192)] = 128
    """Draw images of this width, in pixels."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.first_index + self.number > MAX_SCENES:
            raise RunError(
                f"--first-index {self.first_index} and --number {self.number} go beyond scene {MAX_SCENES - 1}, "
                "the last number that fits into file names"
            )
