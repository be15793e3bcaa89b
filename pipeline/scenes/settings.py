"""The settings of a data set of synthetic scenes: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with that of `pipeline/config.py`. Nothing heavy is
imported here, so that `--help` answers at once.
"""

from dataclasses import dataclass

from pipeline.errors import RunError

MAX_SCENES = 1_000_000  # file names have six digits


@dataclass(frozen=True)
class ScenesSettings:
    """Draw synthetic scenes of things and stuff and write them as a COCO data set, panoptic and instances.

    A scene depends on seed, index and size alone: training and validation data may share a seed where their indices
    differ. OUTPUT may be a local folder or a URI (s3://bucket/prefix). Credentials come from the usual AWS chain.
    """

    output: str
    """Folder or URI prefix for images/, panoptic/, panoptic.json and instances.json; it must hold no data set yet."""
    number: int = 1000
    """Scenes to draw."""
    seed: int = 0
    """Names the endless series of scenes that they are taken from."""
    first_index: int = 0
    """Index in the series of the first scene, and number in its file name."""
    height: int = 128
    """Of every image, in pixels."""
    width: int = 128
    """Of every image, in pixels."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise RunError("--output is empty")
        for name, low, high in (
            ("number", 1, MAX_SCENES),
            ("seed", 0, 2**31 - 1),
            ("first_index", 0, MAX_SCENES - 1),
            ("height", 32, 8192),
            ("width", 32, 8192),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise RunError(f"--{name.replace('_', '-')} is {value}; it must lie in {low} .. {high}")
        if self.first_index + self.number > MAX_SCENES:
            raise RunError(
                f"--first-index {self.first_index} and --number {self.number} go beyond scene {MAX_SCENES - 1}, "
                "the last that file names have digits for"
            )
