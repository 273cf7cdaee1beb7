"""The front page of the console: how things go, what is about to go wrong, and what to do first."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.models import Exists, OuterRef
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from accounts.models import Organization, Permission, Role, User
from inference import health
from knowledge.models import UNFINISHED, Collection, Document, Status
from opengate.charts import Chart, Series
from opengate.redis import RedisAway
from routing import health as routing_health
from routing.health import Health
from routing.models import Provider, Router
from usage import shortage, trends
from usage.models import Grain, Limit, Rollup, RollupProgress
from usage.trends import Sums

logger = logging.getLogger(__name__)

STALE = timedelta(minutes=2)
PATIENCE = "3s"  # with a query: a page that lacks a part is better than none
ORGANIZATIONS_SHOWN = 500
PROVIDERS_SHOWN = 100
COLLECTIONS_SHOWN = 10
DOCUMENTS_COUNTED = 10_000


@dataclass(frozen=True)
class Period:
    """A time up to now that begins on a full hour or day of UTC; charts have a point for each `step`."""

    label: str
    length: timedelta
    grain: Grain
    step: timedelta
    format: str
    charted: Grain

    def first(self, now: datetime) -> datetime:
        if self.grain == Grain.HOUR:
            return now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1) - self.length
        return datetime.combine(now.date() + timedelta(days=1), time.min, UTC) - self.length


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PERIODS: Mapping[str, Period] = {
    "24h": Period("24 hours", DAY, Grain.HOUR, HOUR, "%H:%M", Grain.HOUR),
    "7d": Period("7 days", 7 * DAY, Grain.DAY, 6 * HOUR, "%a %d, %H:%M", Grain.HOUR),
    "30d": Period("30 days", 30 * DAY, Grain.DAY, DAY, "%d %b", Grain.DAY),
    "90d": Period("90 days", 90 * DAY, Grain.DAY, DAY, "%d %b", Grain.DAY),
}
DEFAULT = "24h"


def context(request: HttpRequest) -> dict[str, Any]:
    """What the page shows to this person: None of what is not theirs to see, `failed` of what cannot be said."""
    now = timezone.now().astimezone(UTC)
    organizations = _block(request, "usage.view_rollup", _organizations)
    names = (organizations or {}).get("names", {})
    chosen = request.GET.get("period", "")
    period = PERIODS.get(chosen, PERIODS[DEFAULT])
    organization = names.get(request.GET.get("organization", ""))
    organization_id = int(request.GET["organization"]) if organization else None
    return {
        "periods": PERIODS,
        "period": period,
        "period_name": chosen if chosen in PERIODS else DEFAULT,
        "organizations": names,
        "organization": organization,
        "organization_id": organization_id,
        "usage": _block(request, "usage.view_rollup", lambda: _usage(period, organization_id, now)),
        "providers": _block(request, "routing.view_provider", _providers),
        "budgets": _block(
            request, "usage.view_account", lambda: {"rows": shortage.budgets_running_out(now, organization_id)}
        ),
        "documents": _block(request, "knowledge.view_document", lambda: _documents(now, organization_id)),
        "steps": _block(request, "routing.add_router", _steps),
    }


def _block(request: HttpRequest, permission: str, found: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    user: Any = request.user
    if not user.has_perm(permission):
        return None
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            # To compile such queries takes longer than to run them.
            cursor.execute(f"SET LOCAL statement_timeout = '{PATIENCE}'; SET LOCAL jit = off")
            return found()
    except (DatabaseError, RedisAway):
        logger.exception("A part of the dashboard is missing.")
        return {"failed": True}


def _organizations() -> dict[str, Any]:
    rows = Organization.objects.order_by("name").values_list("id", "name")[:ORGANIZATIONS_SHOWN]
    return {"names": {str(id): name for id, name in rows}}


# Usage


def _usage(period: Period, organization_id: int | None, now: datetime) -> dict[str, Any]:
    progress = RollupProgress.objects.first()
    as_of = progress.as_of if progress else None
    first = period.first(now)
    points = trends.over_time(period.charted, first, period.step, organization_id)
    sums = sum(points.values(), Sums())
    before = trends.total(period.grain, first - period.length, first, organization_id)
    share = min(max((as_of or now) - first, HOUR), period.length) / period.length
    return {
        "as_of": as_of,
        "age_seconds": None if as_of is None else max(int((now - as_of).total_seconds()), 0),
        "is_stale": as_of is None or now - as_of > STALE,
        "summed_up_to": progress.last_day if progress and not progress.is_backfilled else None,
        "is_empty": not Rollup.objects.exists(),
        "figures": _figures(sums, before, share),
        "charts": _charts(period, first, now, points),
        "routers": trends.of_routers(period.grain, first, organization_id),
    }


@dataclass(frozen=True)
class Figure:
    name: str
    value: Any
    unit: str
    note: str
    change: str


def _figures(sums: Sums, before: Sums, share: float) -> list[Figure]:
    """`share` is how much of the period has passed: as much of the one before is compared."""

    def changed(name: str) -> str:
        return _change(float(getattr(sums, name)), float(getattr(before, name)) * share)

    errors = "–" if sums.error_share is None else f"{sums.error_share:.1%}"
    return [
        Figure("Requests", sums.requests, "", "", changed("requests")),
        Figure("Errors", errors, "", f"{sums.errors:,} calls", _points(sums, before)),
        Figure("Tokens", sums.tokens, "", f"{sums.completion_tokens:,} of completions", changed("tokens")),
        Figure("Cost", round(sums.cost, 2), "", "", changed("cost")),
        Figure("Carbon", round(sums.gco2eq, 2), "g", f"{sums.kwh:,.3f} kWh", changed("gco2eq")),
    ]


def _change(now: float, before: float) -> str:
    if not before:
        return "nothing before" if now else "as before"
    ratio = now / before - 1
    if abs(ratio) < 0.005:
        return "as before"
    return f"{'▲ up' if ratio > 0 else '▼ down'} {abs(ratio):,.0%}"


def _points(now: Sums, before: Sums) -> str:
    if now.error_share is None or before.error_share is None:
        return "nothing to compare"
    points = 100 * (now.error_share - before.error_share)
    if abs(points) < 0.05:
        return "as before"
    return f"{'▲ up' if points > 0 else '▼ down'} {abs(points):.1f} points"


def _charts(period: Period, first: datetime, now: datetime, points: Mapping[datetime, Sums]) -> list[Chart]:
    moments = [first + number * period.step for number in range(period.length // period.step)]
    moments = [moment for moment in moments if moment <= now]
    labels = [moment.strftime(period.format) for moment in moments]
    sums = [points.get(moment, Sums()) for moment in moments]

    def line(name: str, field: str) -> Series:
        return Series(name, [getattr(one, field) for one in sums])

    answered = Series("Answered", [one.requests - one.errors for one in sums])
    errors = Series("Errors", [one.errors for one in sums], is_bad=True)
    tokens = [line("Prompt", "prompt_tokens"), line("Completion", "completion_tokens")]
    return [
        Chart("requests", "Requests", labels, [answered, errors], stacked=True),
        Chart("tokens", "Tokens", labels, tokens, stacked=True),
        Chart("cost", "Cost", labels, [line("Cost", "cost")]),
        Chart("carbon", "Carbon", labels, [line("Carbon", "gco2eq")], unit="gCO2eq"),
    ]


# Providers


@dataclass(frozen=True)
class ProviderHealth:
    provider: Provider
    health: Health
    answers: str


def _providers() -> dict[str, Any]:
    found = list(Provider.objects.select_related("router").order_by("router__name", "id")[: PROVIDERS_SHOWN + 1])
    shown = found[:PROVIDERS_SHOWN]
    known = routing_health.of_now(shown, with_figures=False)
    is_known = any(one.load is not None for one in known.values())
    try:  # a Redis that is away is not asked twice
        answers = health.last_answers(provider.pk for provider in shown) if is_known else None
    except RedisAway:
        answers = None
    return {
        "is_known": answers is not None or not shown,
        "has_more": len(found) > len(shown),
        "rows": [ProviderHealth(provider, known[provider.pk], _answer(answers, provider.pk)) for provider in shown],
    }


def _answer(answers: Mapping[int, bool] | None, id: int) -> str:
    if answers is None:
        return "unknown"
    if id not in answers:
        return "not asked lately"
    return "answers" if answers[id] else "does not answer"


# Documents


_QUEUE = """
    SELECT status, count(*) FROM (
        SELECT document.status FROM knowledge_document AS document {join}
        WHERE document.status IN ('pending', 'parsing', 'embedding') {mine} LIMIT %(most)s
    ) AS unfinished GROUP BY status
    UNION ALL
    SELECT 'failed', count(*) FROM (
        SELECT document.id, document.status, document.collection_id FROM knowledge_document AS document
        ORDER BY document.id DESC LIMIT %(most)s
    ) AS document {join} WHERE document.status = 'failed' {mine}
"""


def _documents(now: datetime, organization_id: int | None) -> dict[str, Any]:
    """What waits is counted up to a number, what failed among as many documents: no table is read to its end."""
    join = """
        JOIN knowledge_collection AS collection ON collection.id = document.collection_id
        JOIN accounts_user AS owner ON owner.id = collection.owner_id
    """
    is_all = organization_id is None
    query = _QUEUE.format(
        join="" if is_all else join, mine="" if is_all else "AND owner.organization_id = %(organization)s"
    )
    with connection.cursor() as cursor:
        cursor.execute(query, {"most": DOCUMENTS_COUNTED, "organization": organization_id})
        counts = dict(cursor.fetchall())
    waiting = Document.objects.filter(status__in=UNFINISHED)
    moving = Collection.objects.filter(next_space__isnull=False)
    if not is_all:
        waiting = waiting.filter(collection__owner__organization=organization_id)
        moving = moving.filter(owner__organization=organization_id)
    moving = moving.select_related("next_space__router").annotate(
        has_provider=Exists(Provider.objects.filter(router=OuterRef("next_space__router")))
    )
    return {
        "counts": [
            (Status(status).name.lower(), counts.get(status.value, 0)) for status in Status if status != Status.READY
        ],
        "most": DOCUMENTS_COUNTED,
        "oldest": waiting.order_by("due").first(),
        "moving": [(one, _stands(one, now)) for one in moving.order_by("id")[:COLLECTIONS_SHOWN]],
    }


def _stands(collection: Any, now: datetime) -> str:
    """Whether new vectors come, and why not."""
    if collection.next_space.router is None:
        return "stands still: its model was deleted"
    if not collection.has_provider:
        return "stands still: its model has no provider"
    if collection.lease_expires is None or collection.lease_expires < now:
        return "waits for a worker"
    return "a worker has it, or it rests after a failure that the log tells"


# First steps


@dataclass(frozen=True)
class Step:
    text: str
    address: str
    is_done: bool


def _steps() -> dict[str, Any]:
    """What a new gateway needs before the first call."""
    administrators = Role.objects.filter(permissions__contains=[Permission.ADMIN])
    steps = [
        Step(
            "Make a router: the name that callers use for a model",
            reverse("admin:routing_router_add"),
            Router.objects.exists(),
        ),
        Step(
            "Give it a provider: where the model runs", reverse("admin:routing_provider_add"), Provider.objects.exists()
        ),
        Step("Make a role that opens the router", reverse("admin:accounts_role_add"), Limit.objects.exists()),
        Step(
            "Make a user with that role, and a key",
            reverse("admin:accounts_user_add"),
            User.objects.exclude(role__in=administrators).exists(),
        ),
    ]
    return {"rows": steps, "is_done": all(step.is_done for step in steps)}
