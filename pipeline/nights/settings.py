"""The settings of jobs/nights.py: their names, types, defaults and help texts. Nothing heavy is imported here."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, Section, check_fields, duration_of

_NIGHTS = Section("selection")
DEFAULT_LAST = 14


@dataclass(frozen=True)
class NightsSettings:
    """List the nights of an output: when each command of segment_bucket.py ran, how it ended, how many images.

    A night that found nothing to do has a line, and a night that did not run has none. Nothing is written.
    """

    output: Annotated[str, IN_AND_OUT]
    """List the nights of this folder or URI prefix, the --output of the runs."""
    last: Annotated[int | None, _NIGHTS, Interval(ge=1, le=100_000)] = None
    """List the last N nights. Default: 14; with --since, all."""
    since: Annotated[str | None, _NIGHTS] = None
    """List nights that started on this day (UTC) or later, such as 2026-11-29."""
    json: Annotated[bool, _NIGHTS] = False
    """Print each night as a JSON object on a line of its own."""
    expect_within: Annotated[str | None, _NIGHTS] = None
    """Exit with code 1 if no night has finished or found nothing to do within this time, such as 26h, 90m or 2d."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.first_day()
        self.expected()

    def first_day(self) -> date | None:
        """--since as a day, or None if the flag was not given."""
        if self.since is None:
            return None
        try:
            return date.fromisoformat(self.since)
        except ValueError:
            raise RunError(f"--since is {self.since!r}; write a day such as 2026-11-29") from None

    def most(self) -> int | None:
        """How many nights to list at most; None for all."""
        return self.last or (None if self.since is not None else DEFAULT_LAST)

    def expected(self) -> timedelta | None:
        """--expect-within as a duration, or None if the flag was not given."""
        if self.expect_within is None:
            return None
        return duration_of("--expect-within", self.expect_within)
