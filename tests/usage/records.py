"""Usage records to store, with the fields a test does not care about filled in."""

from decimal import Decimal
from typing import Any

from django.db import transaction

from accounts.models import User
from usage.ledger import Record
from usage.models import Account


def record(request_id: str, *, user: User, **fields: Any) -> Record:
    plain = Record(
        request_id=request_id,
        created="2026-01-01T00:00:00+00:00",
        user_id=user.id,
        user_email=user.email,
        organization_id=user.organization_id,
        organization_name=user.organization.name if user.organization else None,
        key_id=None,
        key_name="key",
        router_id=None,
        router_name="router",
        provider_id=None,
        provider_model_name=None,
        endpoint="/v1/chat/completions",
        method="POST",
        status=200,
        outcome="finished",
        latency_ms=1,
        ttft_ms=None,
        prompt_tokens=1,
        completion_tokens=1,
        total_tokens=2,
        tokens_estimated=False,
        cost_prompt_tokens="0",
        cost_completion_tokens="0",
        cost="0",
        estimated_cost=None,
        kwh_min=0.0,
        kwh_max=0.0,
        kgco2eq_min=0.0,
        kgco2eq_max=0.0,
        gco2eq="0",
    )
    return plain | fields  # type: ignore[return-value]


def fund(user: User, amount: Decimal | float | None) -> None:
    """Leave the user this much to spend; null is unlimited."""
    with transaction.atomic():
        Account.objects.of(user).set_budget(None if amount is None else Decimal(str(amount)))


def left(user: User) -> Decimal | None:
    """What is left to spend now."""
    account = Account.objects.filter(user=user).first()
    return account.budget if account else None
