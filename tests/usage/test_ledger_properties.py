"""Whatever is done to an account in whatever order, it is what a few lines of Python say it is."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from accounts.models import Role, User
from routing.models import Router
from routing.snapshot import _router
from tests.usage.records import record
from usage import auditing, budgets, ledger
from usage.budgets import Need
from usage.errors import InsufficientBudget
from usage.models import Account, Reservation, UsageRecord

TOKENS = st.integers(0, 40)
AMOUNTS = st.one_of(st.none(), st.integers(0, 120))
UNKNOWN = 30
LEAST = Decimal("0.000001")


@dataclass
class Held:
    cost: int
    request_id: str


class AccountMachine(RuleBasedStateMachine):
    """An account beside its model: tokens cost 1 each, so that tokens are money."""

    calls = Bundle("calls")
    recovered = Bundle("recovered")
    settled = Bundle("settled")

    @initialize()
    def begin(self) -> None:
        name = secrets.token_hex(8)
        role = Role.objects.create(name=name)
        self.user = User.objects.create_user(f"{name}@example.org", None, role)
        row = Router.objects.create(
            name=name, type="text-generation", cost_prompt_tokens=10**6, cost_completion_tokens=10**6
        )
        self.router = _router(Router.objects.get(id=row.id))
        self.granted: int | None = None
        self.allowance: int | None = None
        self.spent = 0
        self.open: dict[str, Decimal] = {}
        self.records: dict[str, int] = {}
        self.guessed: set[str] = set()

    @property
    def reserved(self) -> Decimal:
        return sum(self.open.values(), Decimal(0))

    def fits(self, cost: Decimal, certain: int) -> bool:
        if self.granted is None:
            return True
        free = self.granted - self.spent - self.reserved
        return free > 0 and (free >= cost or (self.reserved == 0 and free >= certain))

    @property
    def usual(self) -> int:
        """The 95th percentile of what was answered, calls that were recovered aside."""
        answers = sorted(tokens for id, tokens in self.records.items() if id not in self.guessed)
        return answers[-(-95 * len(answers) // 100) - 1] if answers else UNKNOWN

    def call(self, request_id: str, tokens: int = 0):
        prices = {"cost_prompt_tokens": "1000000", "cost_completion_tokens": "1000000"}
        used = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens, "cost": str(tokens)}
        return record(request_id, user=self.user, router_id=self.router.id, **prices, **used)

    def account(self) -> Account:
        return Account.objects.of(self.user)

    @rule(target=calls, prompt=TOKENS, completion=st.one_of(st.none(), TOKENS))
    def reserve(self, prompt: int, completion: int | None) -> Held | None:
        request_id = secrets.token_hex(16)
        certain = prompt + (completion or 0)
        cost = certain if completion is not None else prompt + self.usual
        need = Need(prompt=prompt, completion=completion, unknown_completion=UNKNOWN)
        exists = Account.objects.filter(user=self.user).exists()
        held = max(Decimal(cost), LEAST)
        expected = not exists or self.fits(held, certain)
        try:
            budgets.reserve(self.user.id, self.call(request_id), self.router, need, 0.0)
        except InsufficientBudget:
            assert not expected
            return None
        assert expected
        if exists:
            self.open[request_id] = held
        return Held(cost, request_id)

    @rule(target=settled, held=consumes(calls), tokens=TOKENS)
    def settle(self, held: Held | None, tokens: int) -> tuple[str, int] | None:
        if held is None:
            return None
        assert ledger.store([self.call(held.request_id, tokens)]) == 1
        self.open.pop(held.request_id, None)
        self.records[held.request_id] = tokens
        self.spent += tokens
        return held.request_id, tokens

    @rule(call=settled, tokens=TOKENS)
    def settle_again(self, call: tuple[str, int] | None, tokens: int) -> None:
        if call is not None:
            assert ledger.store([self.call(call[0], tokens)]) == 0

    @rule(held=consumes(calls))
    def release(self, held: Held | None) -> None:
        if held is not None:
            budgets.release(held.request_id)
            self.open.pop(held.request_id, None)

    @rule(target=recovered, held=consumes(calls))
    def expire(self, held: Held | None) -> Held | None:
        if held is None or held.request_id not in self.open:
            return None
        now = timezone.now()
        rows = Reservation.objects.filter(request_id=held.request_id)
        rows.update(created=now - timedelta(seconds=61), expires=now - timedelta(seconds=1))
        assert budgets.recover() == 1
        self.open.pop(held.request_id)
        self.spent += held.cost
        self.records[held.request_id] = held.cost
        self.guessed.add(held.request_id)
        return held

    @rule(target=settled, held=consumes(recovered), tokens=TOKENS)
    def settle_late(self, held: Held | None, tokens: int) -> tuple[str, int] | None:
        if held is None:
            return None
        assert ledger.store([self.call(held.request_id, tokens)]) == 1
        self.spent += tokens - self.records[held.request_id]
        self.records[held.request_id] = tokens
        self.guessed.discard(held.request_id)
        return held.request_id, tokens

    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=5))
    def settle_without_reservation(self, tokens: list[int]) -> None:
        """As the drain does with calls of users that had no budget when they began."""
        batch = [self.call(secrets.token_hex(16), number) for number in tokens]
        assert ledger.store([*batch, batch[0]]) == len(batch)
        self.records |= {record["request_id"]: record["completion_tokens"] for record in batch}
        self.spent += sum(tokens)

    @rule(amount=AMOUNTS)
    def set_budget(self, amount: int | None) -> None:
        with transaction.atomic():
            Account.objects.set_budget(self.user, None if amount is None else Decimal(amount))
        if amount is not None:
            self.granted = self.spent + amount
        elif self.allowance is None:
            self.granted = None

    @rule(amount=AMOUNTS)
    def set_allowance(self, amount: int | None) -> None:
        with transaction.atomic():
            account = self.account()
            account.allowance = None if amount is None else Decimal(amount)
            account.period = "" if amount is None else "day"
            account.set_allowances(timezone.now())
        if amount is not None and amount != self.allowance:
            self.granted = self.spent + amount
        self.allowance = amount

    @rule()
    def refill(self) -> None:
        due = Account.objects.filter(user=self.user, refills__isnull=False)
        due.update(refills=timezone.now() - timedelta(seconds=1))
        assert budgets.refill_due(timezone.now(), user_id=self.user.id) == (self.allowance is not None)
        if self.allowance is not None:
            self.granted = self.spent + self.allowance

    @invariant()
    def is_as_the_model_says(self) -> None:
        account = Account.objects.filter(user=self.user).first() or Account(user=self.user)
        assert (account.spent, account.reserved, account.granted) == (self.spent, self.reserved, self.granted)
        held = Reservation.objects.filter(user=self.user).values_list("request_id", "cost")
        assert dict(held) == self.open

    def teardown(self) -> None:
        if hasattr(self, "user"):
            rows = UsageRecord.objects.filter(user=self.user).values_list("request_id", "cost")
            assert dict(rows) == self.records
            assert auditing.audit().is_clean


@pytest.mark.usefixtures("transactional_db", "redis_client")
def test_any_order_of_doing_things_keeps_the_books():
    run_state_machine_as_test(
        AccountMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
