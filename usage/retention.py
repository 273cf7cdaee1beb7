"""Records of single calls are kept as long as a setting says; their daily sums stay."""

from datetime import UTC, date, datetime, time, timedelta

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from usage import rollups
from usage.models import DailyUsage

BATCH = 5_000
MOST = 100_000  # at a time: the worker has other things to do


def first_day_kept() -> date | None:
    """The oldest UTC day whose records are kept; None when all are."""
    days: int | None = settings.USAGE_RETENTION_DAYS
    return None if days is None else timezone.now().astimezone(UTC).date() - timedelta(days=days)


def delete_old() -> int:
    """Delete records of days that are not kept, MOST at most, in batches that hold no lock for long; answers how many.

    What is not yet in the roll-ups waits for another time. The sums of those days are marked first: from then on
    nobody expects their records, and roll-ups are no longer computed from what is left of them.
    """
    first = first_day_kept()
    if first is None or not rollups.roll_up():
        return 0
    with transaction.atomic():
        rollups.lock()
        DailyUsage.objects.filter(day__lt=first, records_deleted=False).update(records_deleted=True)
    deleted = 0
    while deleted < MOST and (batch := _delete_batch(datetime.combine(first, time.min, UTC))):
        deleted += batch
    return deleted


def _delete_batch(before: datetime) -> int:
    """A record that came late may be among them, and in no roll-up yet: their days are looked at again."""
    with transaction.atomic(), connection.cursor() as cursor:
        rollups.lock()
        cursor.execute(
            """
            DELETE FROM usage_usagerecord WHERE id IN (
                SELECT id FROM usage_usagerecord WHERE created < %s ORDER BY created LIMIT %s
            ) RETURNING (created AT TIME ZONE 'UTC')::date
            """,
            [before, BATCH],
        )
        days = [day for (day,) in cursor.fetchall()]
        DailyUsage.objects.filter(day__in=set(days), records_deleted=False).update(records_deleted=True)
        rollups.take_from_daily(set(days))
        return len(days)
