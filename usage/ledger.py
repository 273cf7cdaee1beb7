"""Usage records and budgets in Postgres: what is written here is the truth about money."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TypedDict

from django.contrib.auth import get_user_model
from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Greatest

from accounts.models import Key, Organization
from opengate.database import in_thread
from routing.models import Provider, Router
from usage.errors import InsufficientBudget
from usage.models import UsageRecord


class Record(TypedDict):
    """A usage record on its way to Postgres, as JSON types; the fields of UsageRecord."""

    request_id: str
    created: str
    user_id: int | None
    user_email: str
    organization_id: int | None
    key_id: int | None
    key_name: str
    router_id: int | None
    router_name: str
    provider_id: int | None
    provider_model_name: str | None
    endpoint: str
    method: str
    status: int
    outcome: str
    latency_ms: int
    ttft_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    tokens_estimated: bool
    cost_prompt_tokens: str
    cost_completion_tokens: str
    cost: str
    kwh_min: float
    kwh_max: float
    kgco2eq_min: float
    kgco2eq_max: float


REFERENCES: dict[str, type[models.Model]] = {
    "user_id": get_user_model(),
    "organization_id": Organization,
    "key_id": Key,
    "router_id": Router,
    "provider_id": Provider,
}


def store(records: Sequence[Record]) -> int:
    """Write records and lower budgets by their cost, in one transaction; answers how many were new.

    A record whose request id is known is left out, and charges nothing: storing twice does no harm. A budget stops
    at zero. Raises DataError, IntegrityError, KeyError, TypeError or ValueError, with nothing written, for what is no
    record or does not fit the table.
    """
    with transaction.atomic():
        unknown = _without_known(records)
        gone = {name: _gone(model, unknown, name) for name, model in REFERENCES.items()}
        UsageRecord.objects.bulk_create([_row(record, gone) for record in unknown])
        _charge(unknown)
        _touch_keys(unknown)
    return len(unknown)


def require_budget(user_id: int) -> None:
    """Raises InsufficientBudget when the user's budget is used up. Null is unlimited."""
    if get_user_model().objects.filter(id=user_id, budget=0).exists():
        raise InsufficientBudget


arequire_budget = in_thread(require_budget)
astore = in_thread(store)


def _without_known(records: Sequence[Record]) -> list[Record]:
    """New records, each request id once. The unique constraint still stands behind it, for two stores at a time."""
    by_id = {record["request_id"]: record for record in records}
    known = UsageRecord.objects.filter(request_id__in=by_id).values_list("request_id", flat=True)
    for request_id in known:
        del by_id[request_id]
    return list(by_id.values())


def _gone(model: type[models.Model], records: Sequence[Record], name: str) -> set[int]:
    """Ids that were deleted since the call."""
    ids = {record[name] for record in records} - {None}  # type: ignore[literal-required]
    return ids - set(model._default_manager.filter(pk__in=ids).values_list("pk", flat=True)) if ids else set()


def _row(record: Record, gone: dict[str, set[int]]) -> UsageRecord:
    fields = dict(record)
    for name, ids in gone.items():
        if fields[name] in ids:
            fields[name] = None
    fields["created"] = datetime.fromisoformat(record["created"])
    for name in ("cost", "cost_prompt_tokens", "cost_completion_tokens"):
        fields[name] = Decimal(str(fields[name]))
    return UsageRecord(**fields)


def _charge(records: Sequence[Record]) -> None:
    spent: dict[int, Decimal] = defaultdict(Decimal)
    for record in records:
        if record["user_id"] is not None and (cost := Decimal(record["cost"])):
            spent[record["user_id"]] += cost
    users = get_user_model().objects.filter(budget__gt=0)
    for user_id in sorted(spent):  # one order for all, so that two transactions never wait for each other in a ring
        users.filter(id=user_id).update(budget=Greatest(F("budget") - spent[user_id], Decimal(0)))


def _touch_keys(records: Sequence[Record]) -> None:
    used: dict[int, str] = {}
    for record in records:
        if record["key_id"] is not None:
            used[record["key_id"]] = max(used.get(record["key_id"], ""), record["created"])
    for key_id in sorted(used):
        moment = datetime.fromisoformat(used[key_id])
        Key.objects.filter(id=key_id).exclude(last_used__gte=moment).update(last_used=moment)
