"""The settings of a store check: their names, types, defaults and help texts. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from pipeline.setting_fields import IN_AND_OUT, RUN_CONTROL, Section, check_fields

_CHECK = Section("check")


@dataclass(frozen=True)
class StoreCheckSettings:
    """Try whether a bucket or folder does what segment_bucket.py relies on: conditional writes, reads, listings.

    The check writes small objects into a new folder below OUTPUT and removes them at the end. Credentials come from the
    usual AWS chain. Exit code 0: fit; 1: unsafe, because two jobs at once could both write; 2: it cannot be used.
    """

    output: Annotated[str, IN_AND_OUT]
    """Try this folder or URI prefix, which may be the --output of runs."""
    objects: Annotated[int, _CHECK, Interval(ge=0, le=100_000)] = 1_100
    """List N small objects; more than 1,000 need several pages. 0: leave the listing of many objects out."""
    rounds: Annotated[int, _CHECK, Interval(ge=1, le=1_000)] = 5
    """Let eight threads race for one conditional write N times, for a create and for a replace."""
    log_format: Annotated[Literal["text", "json"], RUN_CONTROL] = "text"
    """json: write each line on stderr as a JSON object."""

    def __post_init__(self) -> None:
        check_fields(self)
