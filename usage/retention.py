"""Records of single calls are kept as long as a setting says; their daily sums stay."""

from datetime import UTC, date, datetime, time, timedelta

from django.conf import settings
from django.utils import timezone

from usage.models import DailyUsage, UsageRecord

BATCH = 5_000
MOST = 100_000  # at a time: the worker has other things to do


def first_day_kept() -> date | None:
    """The oldest UTC day whose records are kept; None when all are."""
    days: int | None = settings.USAGE_RETENTION_DAYS
    return None if days is None else timezone.now().astimezone(UTC).date() - timedelta(days=days)


def delete_old() -> int:
    """Delete records of days that are not kept, MOST at most, in batches that hold no lock for long; answers how many.

    The sums of those days are marked first: from then on nobody expects their records.
    """
    first = first_day_kept()
    if first is None:
        return 0
    DailyUsage.objects.filter(day__lt=first, records_deleted=False).update(records_deleted=True)
    old = UsageRecord.objects.filter(created__lt=datetime.combine(first, time.min, UTC)).order_by("created")
    deleted = 0
    while deleted < MOST and (ids := list(old.values_list("id", flat=True)[:BATCH])):
        deleted += UsageRecord.objects.filter(id__in=ids)._raw_delete("default")
    return deleted
