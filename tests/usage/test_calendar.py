"""When allowances refill: by clocks on walls, through summer time, short months and years' ends."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage import calendar

PARIS = ZoneInfo("Europe/Paris")
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
ZONES = st.sampled_from(
    ["UTC", "Europe/Paris", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca"]
)


def paris(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=PARIS)


@pytest.mark.parametrize(
    ("now", "hour", "then"),
    [
        ("2026-11-23T10:00", 0, "2026-11-24T00:00"),
        ("2026-11-23T05:59", 6, "2026-11-23T06:00"),
        ("2026-11-23T06:00", 6, "2026-11-24T06:00"),
        ("2026-12-31T23:59", 0, "2027-01-01T00:00"),
        ("2026-03-28T12:00", 2, "2026-03-29T03:00"),  # there is no two o'clock that day
        ("2026-03-29T12:00", 2, "2026-03-30T02:00"),
        ("2026-10-24T12:00", 2, "2026-10-25T02:00"),  # of two, the first
    ],
)
def test_a_day_begins_at_its_hour(now, hour, then):
    assert calendar.next_day(paris(now), PARIS, hour) == paris(then).astimezone(UTC)


@pytest.mark.parametrize(
    ("now", "day", "then"),
    [
        ("2026-11-23T10:00", 1, "2026-12-01T00:00"),
        ("2026-01-31T10:00", 28, "2026-02-28T00:00"),
        ("2026-12-15T10:00", 15, "2027-01-15T00:00"),
        ("2026-11-15T00:00", 15, "2026-12-15T00:00"),
        ("2026-11-14T23:59", 15, "2026-11-15T00:00"),
        ("2024-02-29T12:00", 28, "2024-03-28T00:00"),
    ],
)
def test_a_month_begins_at_its_day(now, day, then):
    assert calendar.next_month(paris(now), PARIS, day, 0) == paris(then).astimezone(UTC)


@given(now=MOMENTS, zone=ZONES, hour=st.integers(0, 23))
def test_the_next_day_is_near_and_shows_the_hour(now, zone, hour):
    then = calendar.next_day(now, ZoneInfo(zone), hour)
    assert now < then <= now + timedelta(hours=49)
    local = then.astimezone(ZoneInfo(zone))
    assert (local.minute, local.hour - hour) in ((0, 0), (0, 1), (0, -23), (30, 0)) or zone in ("Pacific/Apia",)


@given(now=MOMENTS, zone=ZONES, day=st.integers(1, 28), hour=st.integers(0, 23))
def test_the_next_month_is_near_and_shows_the_day(now, zone, day, hour):
    then = calendar.next_month(now, ZoneInfo(zone), day, hour)
    assert now < then <= now + timedelta(days=32)
    assert then.astimezone(ZoneInfo(zone)).day == day
