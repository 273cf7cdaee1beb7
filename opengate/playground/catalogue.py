"""What a user may use: models and collections."""

from collections.abc import Collection as Some
from typing import Any

from django.db.models import QuerySet

from accounts.models import User
from knowledge.models import Collection
from routing.models import Router
from usage.models import Limit, LimitType

MOST_COLLECTIONS = 200  # that a page offers


def limits_of(user: User) -> dict[Router, dict[str, int | None]]:
    """The limits of the user's role by router, in the order of names; only of routers that somebody serves."""
    found: dict[Router, dict[str, int | None]] = {}
    rows = Limit.objects.filter(role_id=user.role_id, router__providers__isnull=False)
    for limit in rows.select_related("router").order_by("router__name", "type").distinct():
        found.setdefault(limit.router, {})[limit.type] = limit.value
    return found


def open_models(user: User, types: Some[str]) -> list[Router]:
    """The routers of these types that the user may call."""
    return [
        router
        for router, limits in limits_of(user).items()
        if router.type in types and len(limits) == len(LimitType.values) and 0 not in limits.values()
    ]


def collections_of(user: User) -> QuerySet[Collection, Any]:
    """Those the user may read, the user's own first."""
    rows = Collection.objects.visible_to(user.pk).select_related("owner")
    return rows.order_by("visibility", "name", "id")


def offered_collections(user: User) -> list[dict[str, Any]]:
    """As many as a page offers, with whose they are."""
    rows = collections_of(user)[:MOST_COLLECTIONS]
    return [{"id": row.pk, "name": row.name, "is_own": row.owner_id == user.pk, "chunks": row.chunks} for row in rows]
