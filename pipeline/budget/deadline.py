"""--deadline: a time of day or a moment, and when that is."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from pipeline.errors import RunError

# A time of day is the nearest one: for half a day it is ahead, then for half a day it has passed. So a command that is
# repeated after its deadline, as KubeRay does with one that failed, is refused and does not work through the next day.
AHEAD = timedelta(hours=12)
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def time_zone(name: str) -> tzinfo:
    """The time zone of this name. RunError if there is none."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # no such zone; a name like ../x; a folder of zones
        raise RunError(
            f"--time-zone {name}: this machine knows no such zone; write a name such as Europe/Berlin or UTC (pip "
            "install tzdata brings all names)"
        ) from None


def check_deadline(text: str) -> None:
    """RunError if `text` is neither a time of day nor a moment with an offset."""
    if not _TIME_OF_DAY.fullmatch(text):
        _moment(text)


def deadline_after(text: str, zone: tzinfo, now: datetime, ahead: timedelta = AHEAD) -> datetime:
    """The moment of --deadline `text`, in UTC, for a command that starts at `now`. RunError if it has passed.

    A time of day is read in `zone` and counts as passed if its next occurrence is further away than `ahead`. Where the
    clocks skip this time or show it twice, the offset before the change counts.
    """
    day_time = _TIME_OF_DAY.fullmatch(text)
    if day_time is None:
        moment = _moment(text)
        if moment <= now:
            raise RunError(f"--deadline {text} has passed; it is {now:%Y-%m-%dT%H:%M:%SZ}")
        return moment
    today = now.astimezone(zone).replace(
        hour=int(day_time[1]), minute=int(day_time[2]), second=0, microsecond=0, fold=0
    )
    days = [(today + timedelta(days=days)).astimezone(UTC) for days in (-1, 0, 1)]
    moment = min(day for day in days if day > now)
    if moment - now > ahead:
        before = max(day for day in days if day <= now)
        hours, most = (now - before) / timedelta(hours=1), ahead / timedelta(hours=1)
        raise RunError(
            f"--deadline {text} passed {hours:.1f} h ago; a time of day is at most {most:g} h ahead, "
            f"so for a later deadline write a moment, such as {moment:%Y-%m-%dT%H:%M:%SZ}"
        )
    return moment


def _moment(text: str) -> datetime:
    moment: datetime | None
    try:
        moment = datetime.fromisoformat(text)
        moment = None if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise RunError(
            f"--deadline is {text!r}; write a time of day such as 06:00, or a moment with its offset such as "
            "2026-12-01T06:00+01:00"
        )
    return moment
