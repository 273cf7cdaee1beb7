"""What was used in a period, by who or what used it; out of the daily sums."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from django.db.models import F, Max, Sum

from usage.models import DailyUsage

# The id to group by, and the name to show with it: that of the latest day.
GROUPS: Mapping[str, tuple[str, str]] = {
    "user": ("user_id", "user_email"),
    "organization": ("organization_id", "organization_name"),
    "router": ("router_id", "router_name"),
    "key": ("key_id", "key_name"),
    "provider": ("provider_id", "provider_model_name"),
    "day": ("day", "day"),
}
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost", "gco2eq", "kwh")


def report(group: str, first: date, last: date) -> list[dict[str, Any]]:
    """A row for each of the group, from the costliest down (days in order), with the sums of `first` to `last`.

    `name` is None for calls without one: of a user in no organization, or without a provider.
    """
    id, name = GROUPS[group]
    days = DailyUsage.objects.filter(day__range=(first, last), requests__gt=0)
    sums = days.values(id).annotate(**{f"sum_{field}": Sum(field) for field in SUMS}, latest=Max("day"))
    rows = list(sums.order_by("day") if group == "day" else sums.order_by(F("sum_cost").desc(), "-sum_requests", id))
    names = _names(days, id, name) if group != "day" else {}
    return [
        {"id" if group != "day" else "day": row[id]}
        | ({"name": names.get(row[id])} if group != "day" else {})
        | {field: row[f"sum_{field}"] for field in SUMS}
        for row in rows
    ]


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {field: sum(row[field] for row in rows) for field in SUMS}


def _names(days: Any, id: str, name: str) -> dict[Any, Any]:
    """The last name of each id; two keys may have the same one, and one may have had two."""
    return dict(days.order_by(id, "-day", "-id").distinct(id).values_list(id, name))
