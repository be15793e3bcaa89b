"""The file of --gate: with how many runs a run is compared, and which changes always pass."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import check_fields, plain_type
from pipeline.text.plain_yaml import read_plain_yaml


@dataclass(frozen=True)
class GateBounds:
    """The values of a gate file. All have defaults, so the file may be empty."""

    last_runs: Annotated[int, Interval(ge=1, le=365)] = 10
    """Compare with the last N published runs of the same task."""
    least_runs: Annotated[int, Interval(ge=1, le=365)] = 3
    """If there are fewer, publish the run without a comparison, with a warning."""
    images: Annotated[int, Interval(ge=10, le=20_000)] = 1000
    """Look at N images of each run, evenly chosen."""
    class_share: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.01
    """Let the share of a class in the pixels change by this much, whatever the spread."""
    segments: Annotated[float, Interval(ge=0.0, le=1e6)] = 0.5
    """The same for the mean number of segments of an image."""
    score: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.01
    """The same for the mean score."""
    failed: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.05
    """Let the share of failed images grow by this much, whatever the spread."""
    golden: str | None = None
    """Before a run begins, segment the golden images in this folder or below this URI, and score the result."""
    golden_least: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.9
    """Hold the run back if they score less: PQ of a panoptic run, mIoU of a semantic one, AP of an instance one."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.least_runs > self.last_runs:
            raise RunError(
                f"least_runs {self.least_runs} is more than last_runs {self.last_runs}, so no run would be compared"
            )


def read_gate(path: str) -> GateBounds:
    """The values in the file `path`. RunError with one line if there is no such file, or a value cannot be."""
    try:
        given = read_plain_yaml(Path(path))
    except ValueError as error:
        raise RunError(f"--gate {path}: {error}") from None
    known = {field.name: kind if (kind := plain_type(field)) in (int, float) else str for field in fields(GateBounds)}
    if unknown := sorted(map(str, given.keys() - known.keys())):
        raise RunError(f"--gate {path}: unknown names {', '.join(unknown)}; known names are {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            if not isinstance(value, str):  # as all plain values of the file are, but null, true and false
                raise ValueError
            values[name] = known[name](value)
        except ValueError:
            wanted = "text" if known[name] is str else "number"
            raise RunError(f"--gate {path}: {name} is {value!r:.60}; write a {wanted}") from None
    try:
        return GateBounds(**values)
    except RunError as error:
        raise RunError(f"--gate {path}: {error}") from None
