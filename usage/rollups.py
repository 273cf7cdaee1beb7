"""Sums of hours and days for the console's charts, which follow the records by some seconds.

A run looks which hours new records touch, and computes each of them anew from all its records; then their days out of
their hours. So a run may be broken off, or happen twice, and nothing is counted twice. A day of which records were
deleted (`usage.retention`) takes its sums from DailyUsage and keeps the histograms that it has.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.utils import timezone

from usage.models import DailyUsage, Grain, Rollup, RollupProgress

logger = logging.getLogger(__name__)

# What was quicker than the first bound is in the first place of a histogram, what was slower than the last in the last.
# Stored histograms have these bounds: changing them takes new columns.
BOUNDS_MS: Final = (
    *(1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700),
    *(1_000, 1_500, 2_000, 3_000, 5_000, 7_000, 10_000, 15_000, 20_000, 30_000, 60_000, 120_000, 300_000),
)
PLACES: Final = len(BOUNDS_MS) + 1

HOURS_KEPT_DAYS: Final = 10
HOURS_TRUSTED_DAYS: Final = 8  # older days do not lean on hours that are about to be deleted
SETTLING: Final = timedelta(seconds=60)
LONG_OPEN: Final = timedelta(minutes=10)
OVERLAP: Final = 10_000  # ids before the last that the first run does not take for settled
BACKFILL_DAYS: Final = 30  # of a run
_LOCK = 7_061_936_845_472  # an advisory lock of Postgres: one writer at a time

_TABLE = Rollup._meta.db_table
_KEYS = ("organization_id", "router_id", "provider_id")
_NAMES = ("organization_name", "router_name", "provider_model_name")
_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost", "gco2eq", "kwh")
_HISTOGRAMS = ("latency", "ttft")
_GROUP = ", ".join(_KEYS)
_ANSWERED = "status BETWEEN 200 AND 299"
_BOUNDS = f"ARRAY[{', '.join(map(str, BOUNDS_MS))}]"


def _each(template: str, names: Sequence[str]) -> str:
    return ", ".join(template.format(name=name) for name in names)


def sum_of_histograms(name: str) -> str:
    """Adds up arrays place by place: to unnest them would make a row of each place."""
    return f"ARRAY[{', '.join(f'sum({name}[{place}])' for place in range(1, PLACES + 1))}]"


def _places(name: str) -> str:
    counts = (f"coalesce(sum(requests) FILTER (WHERE {name} = {place}), 0)::int" for place in range(PLACES))
    return f"ARRAY[{', '.join(counts)}] AS {name}"


# Each source answers start, keys, names, sums and histograms, for %(starts)s.
_FROM_RECORDS = f"""
    SELECT start, {_GROUP}, {_each("max({name}) AS {name}", _NAMES)}, {_each("sum({name}) AS {name}", _SUMS)},
           {", ".join(map(_places, _HISTOGRAMS))}
    FROM (
        SELECT wanted.start, {_GROUP}, {_each("max({name}) AS {name}", _NAMES)}, count(*) AS requests,
               count(*) FILTER (WHERE NOT {_ANSWERED}) AS errors, sum(prompt_tokens) AS prompt_tokens,
               sum(completion_tokens) AS completion_tokens, sum(cost) AS cost, sum(gco2eq) AS gco2eq,
               sum((kwh_min + kwh_max) / 2) AS kwh,
               CASE WHEN {_ANSWERED} THEN width_bucket(latency_ms, {_BOUNDS}) END AS latency,
               CASE WHEN {_ANSWERED} THEN width_bucket(ttft_ms, {_BOUNDS}) END AS ttft
        FROM unnest(%(starts)s::timestamptz[]) AS wanted(start)
        JOIN usage_usagerecord ON created >= wanted.start AND created < wanted.start + ('1 ' || %(grain)s)::interval
        GROUP BY wanted.start, {_GROUP}, latency, ttft
    ) AS counted GROUP BY start, {_GROUP}
"""  # noqa: S608  names of our own columns
_FROM_HOURS = f"""
    SELECT wanted.start, {_GROUP}, {_each("(array_agg({name} ORDER BY hours.start DESC))[1] AS {name}", _NAMES)},
           {_each("sum({name}) AS {name}", _SUMS)},
           {", ".join(f"{sum_of_histograms(name)}::int[] AS {name}" for name in _HISTOGRAMS)}
    FROM unnest(%(starts)s::timestamptz[]) AS wanted(start)
    JOIN {_TABLE} AS hours ON hours.grain = 'hour'
     AND hours.start >= wanted.start AND hours.start < wanted.start + interval '1 day'
    GROUP BY wanted.start, {_GROUP}
"""  # noqa: S608
_FROM_DAILY = f"""
    SELECT wanted.start, {_GROUP}, {_each("max({name}) AS {name}", _NAMES)}, {_each("sum({name}) AS {name}", _SUMS)},
           {_each("array_fill(0, ARRAY[" + str(PLACES) + "]) AS {name}", _HISTOGRAMS)}
    FROM unnest(%(starts)s::timestamptz[]) AS wanted(start)
    JOIN {DailyUsage._meta.db_table} AS daily ON daily.day = (wanted.start AT TIME ZONE 'UTC')::date
    WHERE requests > 0 GROUP BY wanted.start, {_GROUP}
"""  # noqa: S608


def _written(source: str, columns: Sequence[str]) -> str:
    """A statement that makes the roll-ups of %(starts)s those of the source; of rows that stay, `columns` follow it."""
    same = " AND ".join(f"coalesce(fresh.{key}, 0) = coalesce(kept.{key}, 0)" for key in _KEYS)
    everything = ", ".join(("start", *_KEYS, *_NAMES, *_SUMS, *_HISTOGRAMS))
    return f"""
        WITH fresh AS MATERIALIZED ({source}), gone AS (
            DELETE FROM {_TABLE} AS kept WHERE grain = %(grain)s AND start = ANY(%(starts)s)
             AND NOT EXISTS (SELECT FROM fresh WHERE fresh.start = kept.start AND {same})
        )
        INSERT INTO {_TABLE} AS kept (grain, {everything}) SELECT %(grain)s, {everything} FROM fresh
        ON CONFLICT (grain, start, {_GROUP}) DO UPDATE SET {_each("{name} = EXCLUDED.{name}", columns)}
        WHERE ({_each("kept.{name}", columns)}) IS DISTINCT FROM ({_each("EXCLUDED.{name}", columns)})
    """  # noqa: S608


_WRITE_RECORDS = _written(_FROM_RECORDS, (*_NAMES, *_SUMS, *_HISTOGRAMS))
_WRITE_HOURS = _written(_FROM_HOURS, (*_NAMES, *_SUMS, *_HISTOGRAMS))
_WRITE_DAILY = _written(_FROM_DAILY, (*_NAMES, *_SUMS))


def roll_up(now: datetime | None = None) -> bool:
    """Bring the roll-ups up to date; False when another is at it, or days from before the first run remain."""
    now = now or timezone.now()
    if not _is_backfilled(now):
        return False
    before = RollupProgress.objects.get()
    with connection.cursor() as cursor:
        # In this order: what the horizon says is over, the next statement sees.
        cursor.execute(
            """
            SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint,
                   (SELECT coalesce(max(id), 0) FROM usage_usagerecord)
            FROM pg_current_snapshot() AS now
            """
        )
        oldest_xid, next_xid, last_id = cursor.fetchone()
        cursor.execute(
            "SELECT DISTINCT date_trunc('hour', created, 'UTC') FROM usage_usagerecord WHERE id > %s",
            [before.settled_id],
        )
        touched = sorted(hour for (hour,) in cursor.fetchall())
    days: dict[date, list[datetime]] = defaultdict(list)
    for hour in touched:
        days[hour.astimezone(UTC).date()].append(hour)
    for day, hours in days.items():
        with transaction.atomic():
            if not _claim():
                return False
            _compute(day, hours, now)
    with transaction.atomic():
        if not _claim():
            return False
        progress = RollupProgress.objects.get()
        progress.as_of = now if progress.as_of is None else max(progress.as_of, now)
        if (progress.mark_id, progress.mark_xid) == (before.mark_id, before.mark_xid):
            _settle(progress, oldest_xid, next_xid, last_id, now)
        progress.save(update_fields=["settled_id", "mark_id", "mark_xid", "marked", "as_of"])
        Rollup.objects.filter(grain=Grain.HOUR, start__lt=_start(_day(now), -HOURS_KEPT_DAYS)).delete()
    return True


def _settle(progress: RollupProgress, oldest_xid: int, next_xid: int, last_id: int, now: datetime) -> None:
    """Move on, when all that ran at the mark was over before this run looked for new records."""
    if progress.mark_xid is not None and progress.marked is not None and progress.mark_xid <= next_xid:
        # A moment more: an id may be given out just before its transaction gets a number.
        is_open = oldest_xid < progress.mark_xid
        if is_open and now - progress.marked > LONG_OPEN:
            told = "A transaction is open since before %s: all hours from then on are summed up in each run."
            logger.warning(told, f"{progress.marked:%Y-%m-%d %H:%M:%S}")
        if is_open or now - progress.marked < SETTLING:
            return
        progress.settled_id = max(progress.settled_id, progress.mark_id)
    # A mark ahead of all transactions is that of another server, which this database was restored from.
    progress.mark_id, progress.mark_xid, progress.marked = last_id, next_xid, now


def take_from_daily(days: Collection[date]) -> None:
    """Have days whose records are deleted, in this transaction, agree with DailyUsage."""
    lock()
    _write(_WRITE_DAILY, Grain.DAY, [_start(day) for day in days])


def lock() -> None:
    """Nobody else writes roll-ups until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])


def percentile(histogram: Sequence[int] | None, share: float) -> float | None:
    """Milliseconds within which that share of the calls was done; None without calls.

    Calls are taken to be spread evenly between two bounds, so it is off by less than the distance of the two around
    it: between 2 ms and 30 s by at most two thirds of the truth, of many calls by a tenth. Beyond the last bound it
    is that bound.
    """
    total = sum(histogram or ())
    if not histogram or not total:
        return None
    wanted, seen = share * total, 0
    for place, count in enumerate(histogram):
        if count and seen + count >= wanted:
            if place == len(BOUNDS_MS):
                break
            low = BOUNDS_MS[place - 1] if place else 0
            return low + (BOUNDS_MS[place] - low) * (wanted - seen) / count
        seen += count
    return float(BOUNDS_MS[-1])


def _is_backfilled(now: datetime) -> bool:
    """Whether all days from before the first run are summed up; some more of them are, at each call."""
    for _ in range(BACKFILL_DAYS):
        with transaction.atomic():
            if not _claim():
                return False
            progress = RollupProgress.objects.first() or _begin()
            if progress.is_backfilled:
                return True
            days = DailyUsage.objects.filter(requests__gt=0)
            if progress.last_day is not None:
                days = days.filter(day__gt=progress.last_day)
            progress.last_day = days.order_by("day").values_list("day", flat=True).first() or progress.last_day
            progress.is_backfilled = not days.exists()
            if not progress.is_backfilled and progress.last_day is not None:
                day = _start(progress.last_day)
                _compute(progress.last_day, [day + timedelta(hours=hour) for hour in range(24)], now)
            progress.save(update_fields=["last_day", "is_backfilled"])
    return RollupProgress.objects.filter(is_backfilled=True).exists()


def _begin() -> RollupProgress:
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(id), 0) FROM usage_usagerecord")
        return RollupProgress.objects.create(settled_id=max(cursor.fetchone()[0] - OVERLAP, 0))


def _compute(day: date, hours: Sequence[datetime], now: datetime) -> None:
    """Sum up these hours of the day, and the day; run it under the lock, in a transaction."""
    starts = [_start(day)]
    if DailyUsage.objects.filter(day=day, records_deleted=True).exists():
        _write(_WRITE_DAILY, Grain.DAY, starts)
    elif day < _day(now) - timedelta(days=HOURS_TRUSTED_DAYS):
        _write(_WRITE_RECORDS, Grain.DAY, starts)
    else:
        _write(_WRITE_RECORDS, Grain.HOUR, hours)
        _write(_WRITE_HOURS, Grain.DAY, starts)


def _write(statement: str, grain: Grain, starts: Sequence[datetime]) -> None:
    arguments: dict[str, Any] = {"grain": grain.value, "starts": list(starts)}
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)


def _claim() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        return bool(cursor.fetchone()[0])


def _day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _start(day: date, days: int = 0) -> datetime:
    return datetime.combine(day + timedelta(days=days), time.min, UTC)
