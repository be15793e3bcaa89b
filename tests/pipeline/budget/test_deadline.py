"""When a deadline is: times of day in zones with and without summer time, moments, and what is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budget.deadline import AHEAD, check_deadline, deadline_after, time_zone
from pipeline.config import Settings
from pipeline.errors import RunError

NIGHT = datetime(2026, 12, 1, 1, 0, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Kiritimati")


@pytest.mark.parametrize(
    ("text", "zone", "now", "moment"),
    [
        ("06:00", "UTC", NIGHT, datetime(2026, 12, 1, 6, tzinfo=UTC)),
        ("06:00", "Europe/Berlin", NIGHT, datetime(2026, 12, 1, 5, tzinfo=UTC)),
        ("06:00", "UTC", datetime(2026, 11, 30, 22, tzinfo=UTC), datetime(2026, 12, 1, 6, tzinfo=UTC)),
        ("00:00", "UTC", datetime(2026, 11, 30, 23, 59, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        # The clocks go from 02:00 to 03:00: 02:30 is not there, and counts by the offset before.
        ("02:30", "Europe/Berlin", datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        # The clocks go from 03:00 to 02:00: the first 02:30 counts.
        ("02:30", "Europe/Berlin", datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("2026-12-01T06:00+01:00", "UTC", NIGHT, datetime(2026, 12, 1, 5, tzinfo=UTC)),
        ("2026-12-24T06:00:00Z", "UTC", NIGHT, datetime(2026, 12, 24, 6, tzinfo=UTC)),
    ],
)
def test_a_deadline_is_a_moment(text, zone, now, moment):
    assert deadline_after(text, time_zone(zone), now) == moment


@given(
    st.times().map(lambda time: f"{time:%H:%M}"),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_a_time_of_day_is_ahead_for_half_a_day_and_has_passed_for_the_other_half(text, zone_name, now):
    zone = time_zone(zone_name)
    moment = deadline_after(text, zone, now, ahead=timedelta(hours=26))
    assert now < moment <= now + timedelta(hours=26)
    if f"{moment.astimezone(zone):%H:%M}" != text:  # the clocks skip it
        assert moment.astimezone(zone).utcoffset() != (moment - timedelta(hours=2)).astimezone(zone).utcoffset()
    if moment - now <= AHEAD:
        assert deadline_after(text, zone, now) == moment
    else:
        with pytest.raises(RunError, match=f"--deadline {text} passed .* h ago"):
            deadline_after(text, zone, now)


def test_a_command_that_is_repeated_after_its_deadline_is_refused():
    """KubeRay repeats a job that ended with a code other than 0: it must not work until the next morning."""
    just_after = datetime(2026, 12, 1, 6, 0, 30, tzinfo=UTC)
    words = "--deadline 06:00 passed 0.0 h ago; a time of day is at most 12 h ahead, .*such as 2026-12-02T06:00:00Z"
    with pytest.raises(RunError, match=words):
        deadline_after("06:00", UTC, just_after)
    with pytest.raises(RunError, match=r"2026-12-01T06:00\+01:00 has passed; it is 2026-12-01T06:00:30Z"):
        deadline_after("2026-12-01T06:00+01:00", UTC, just_after)


@pytest.mark.parametrize(
    "text", ["6:00", "24:00", "06:60", "tomorrow", "2026-12-01", "2026-12-01T06:00", "5h", "0001-01-01T00:00+10:00"]
)
def test_what_is_no_time_is_refused_at_once(text):
    with pytest.raises(RunError, match=r"write a time of day such as 06:00, or a moment"):
        check_deadline(text)
    with pytest.raises(RunError, match="--deadline is"):
        Settings(input="in", output="out", deadline=text)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "CEST4"])
def test_a_zone_that_there_is_not_is_refused(name):
    with pytest.raises(RunError, match=f"--time-zone {name}: this machine knows no such zone"):
        Settings(input="in", output="out", time_zone=name)
