"""When an allowance refills: the next time that a clock on a wall shows an hour."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones


@cache
def time_zones() -> tuple[str, ...]:
    """The names of all time zones, in order; to find them takes a walk over hundreds of files."""
    return tuple(sorted(available_timezones()))


def day(text: str) -> date:
    """A day as commands are given it, like 2026-11-30; raises ValueError."""
    return date.fromisoformat(text)


def next_day(now: datetime, zone: ZoneInfo, hour: int) -> datetime:
    """The first moment after `now`, in UTC, at which a day begins whose first hour is `hour` in the zone."""
    local = now.astimezone(zone)
    moment = _at(local, hour)
    while moment <= now:
        local += timedelta(days=1)
        moment = _at(local, hour)
    return moment


def next_month(now: datetime, zone: ZoneInfo, day: int, hour: int) -> datetime:
    """The first moment after `now`, in UTC, at which the zone's calendar shows the day (1 to 28) and the hour."""
    local = now.astimezone(zone).replace(day=day)
    moment = _at(local, hour)
    while moment <= now:
        local = (local.replace(day=28) + timedelta(days=4)).replace(day=day)
        moment = _at(local, hour)
    return moment


def _at(local: datetime, hour: int) -> datetime:
    """That hour of that date. One that the change to summer time leaves out is the first one after it."""
    return local.replace(hour=hour, minute=0, second=0, microsecond=0, fold=0).astimezone(UTC)
