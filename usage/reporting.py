"""What was used in a period, by who or what used it; out of the daily sums."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import F, Max, QuerySet, Sum

from usage.models import DailyUsage, UsageRecord

# The id to group by, and the name to show with it: that of the latest day.
GROUPS: Mapping[str, tuple[str, str]] = {
    "user": ("user_id", "user_email"),
    "organization": ("organization_id", "organization_name"),
    "router": ("router_id", "router_name"),
    "key": ("key_id", "key_name"),
    "provider": ("provider_id", "provider_model_name"),
    "endpoint": ("endpoint", "endpoint"),
    "day": ("day", "day"),
}
SUMS: Mapping[str, type[int | Decimal | float]] = {
    "requests": int,
    "errors": int,
    "prompt_tokens": int,
    "completion_tokens": int,
    "cost": Decimal,
    "gco2eq": Decimal,
    "kwh": float,
}


def report(group: str, first: date, last: date) -> list[dict[str, Any]]:
    """A row for each of the group, from the costliest down (days in order), with the sums of `first` to `last`.

    It is told by `id` and `name`, a day or endpoint by itself. `name` is None for calls without one: of a user in no
    organization, or without a provider.
    """
    id, name = GROUPS[group]
    is_named = id != name
    days = DailyUsage.objects.filter(day__range=(first, last), requests__gt=0)
    sums = days.values(id).annotate(**{f"sum_{field}": Sum(field) for field in SUMS}, latest=Max("day"))
    rows = list(sums.order_by("day") if group == "day" else sums.order_by(F("sum_cost").desc(), "-sum_requests", id))
    names = _names(days, id, name) if is_named else {}
    return [
        ({"id": row[id], "name": names.get(row[id])} if is_named else {group: row[id]})
        | {field: row[f"sum_{field}"] for field in SUMS}
        for row in rows
    ]


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {field: sum((row[field] for row in rows), kind()) for field, kind in SUMS.items()}


def _names(days: Any, id: str, name: str) -> dict[Any, Any]:
    """A name of each id on its last day; two keys may have the same one, and one may have had two."""
    return dict(days.order_by(id, "-day", "-id").distinct(id).values_list(id, name))


def answered(user_id: int, since: datetime, until: datetime | None, endpoint: str | None) -> QuerySet[UsageRecord]:
    """The user's calls that were answered with a status of 2xx, of that time, the newest first."""
    rows = UsageRecord.objects.filter(user_id=user_id, status__range=(200, 299), created__gte=since)
    if until is not None:
        rows = rows.filter(created__lte=until)
    if endpoint is not None:
        rows = rows.filter(endpoint=endpoint)
    return rows.order_by("-created", "-id")


def number_answered(user_id: int, since: datetime, until: datetime | None, endpoint: str | None) -> int:
    """How many `answered` has: of whole days by their sums, so that a million rows are not walked through."""
    before = (since - timedelta(microseconds=1)).astimezone(UTC).date()
    if before == date.max:
        return answered(user_id, since, until, endpoint).count()
    first = before + timedelta(days=1)  # the first whole day
    days = DailyUsage.objects.filter(user_id=user_id, day__gte=first, records_deleted=False)
    if endpoint is not None:
        days = days.filter(endpoint=endpoint)
    number = answered(user_id, since, _begins(first) - timedelta(microseconds=1), endpoint).count()
    if until is not None:
        last = until.astimezone(UTC).date()  # begun and not whole
        if last < first:
            return answered(user_id, since, until, endpoint).count()
        days = days.filter(day__lt=last)
        number += answered(user_id, _begins(last), until, endpoint).count()
    return number + int(days.aggregate(number=Sum(F("requests") - F("errors")))["number"] or 0)


def _begins(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
