"""Money under parallel calls: what is reserved, refused, settled, recovered and refilled."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import DataError, IntegrityError, connection, transaction
from django.utils import timezone

from accounts.models import User
from opengate.errors import APIError
from opengate.loops import in_loop
from routing.models import Router
from routing.snapshot import _router
from tests.usage.records import fund, left, record
from usage import auditing, budgets, ledger
from usage.budgets import Need
from usage.errors import InsufficientBudget, InsufficientCarbonBudget
from usage.models import Account, DailyUsage, Estimate, Reservation, UsageRecord

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")
TEN = Need(prompt=4, completion=6)  # what costs 10 of a router whose tokens cost 1 each


@pytest.fixture
def priced(transactional_db) -> Router:
    return Router.objects.create(
        name="priced", type="text-generation", cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000
    )


@pytest.fixture
def reserve(ada, priced):
    """Reserve for ada: `reserve("a")` takes 10."""

    def _reserve(request_id, need=TEN, grams_a_token=0.0, user=ada, router=priced):
        budgets.reserve(user.id, call(request_id, user), _router(router), need, grams_a_token)

    return _reserve


def call(request_id, user, **fields):
    return record(request_id, user=user, cost_prompt_tokens="1000000", cost_completion_tokens="1000000", **fields)


def settled(request_id, user, tokens=10, **fields):
    return call(
        request_id, user, prompt_tokens=0, completion_tokens=tokens, total_tokens=tokens, cost=str(tokens), **fields
    )


def carbon(user, grams):
    with transaction.atomic():
        Account.objects.of(user).set_carbon_budget(None if grams is None else Decimal(grams))


def expire_all():
    now = timezone.now()
    Reservation.objects.update(created=now - timedelta(seconds=61), expires=now - timedelta(seconds=1))


def test_what_a_call_may_cost_is_reserved_and_then_spent(ada, reserve):
    fund(ada, 25)
    reserve("a")
    account = Account.objects.get(user=ada)
    assert (account.reserved, account.spent, account.budget) == (10, 0, 25)
    ledger.store([settled("a", ada, 7)])
    account.refresh_from_db()
    assert (account.reserved, account.spent, account.budget) == (0, 7, 18)
    assert not Reservation.objects.exists()


def test_calls_at_once_get_no_more_than_there_is(ada, reserve):
    fund(ada, 25)
    reserve("a")
    reserve("b")
    with pytest.raises(InsufficientBudget):
        reserve("c")
    assert set(Reservation.objects.values_list("request_id", flat=True)) == {"a", "b"}
    ledger.store([settled("a", ada, 1)])
    reserve("c")


def test_the_last_of_a_budget_can_be_spent_exactly(ada, reserve):
    fund(ada, 10)
    reserve("a")
    ledger.store([settled("a", ada)])
    assert left(ada) == 0
    with pytest.raises(InsufficientBudget):
        reserve("b")


def test_who_says_more_than_is_left_is_refused_even_alone(ada, reserve):
    fund(ada, 9)
    with pytest.raises(InsufficientBudget):
        reserve("a")


def test_a_guess_refuses_nobody_who_is_alone(ada, reserve):
    fund(ada, 9)
    guess = Need(prompt=4, unknown_completion=1000)
    reserve("a", guess)
    with pytest.raises(InsufficientBudget):
        reserve("b", guess)
    ledger.store([settled("a", ada, 4)])
    reserve("b", guess)
    ledger.store([settled("b", ada, 2)])
    with pytest.raises(InsufficientBudget):  # the prompt is no guess
        reserve("c", guess)


def test_what_has_a_price_holds_something_though_it_is_expected_to_cost_nothing(ada, priced, reserve):
    fund(ada, 10)
    Router.objects.filter(id=priced.id).update(cost_prompt_tokens=0)
    priced.refresh_from_db()
    reserve("a", Need(prompt=4, completion=0))
    with pytest.raises(InsufficientBudget):
        reserve("b", Need(prompt=4, completion=10))
    assert Account.objects.get(user=ada).reserved == Decimal("0.000001")


def test_an_empty_budget_refuses_a_call_that_costs_nothing(ada, reserve):
    fund(ada, 0)
    with pytest.raises(InsufficientBudget):
        reserve("a", Need(prompt=0, completion=0))


def test_100_at_once_reserve_what_there_is(ada, reserve):
    fund(ada, 105)

    def take(number: int) -> bool:
        try:
            reserve(f"{number}")
        except APIError:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(take, range(100)))
    assert taken.count(True) == 10
    assert Account.objects.get(user=ada).reserved == 100


def test_settling_twice_charges_once(ada, reserve):
    fund(ada, 100)
    reserve("a")
    assert [ledger.store([settled("a", ada)]) for _ in range(3)] == [1, 0, 0]
    assert left(ada) == 90
    assert auditing.audit().is_clean


def test_constraints_stand_behind_it(ada, reserve):
    fund(ada, 100)
    for wrong in ({"reserved": -1}, {"spent": -1}, {"granted": -1}, {"carbon_reserved": -1}, {"allowance": 1}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Account.objects.filter(user=ada).update(**wrong)
    ledger.store([settled("a", ada)])
    with pytest.raises(IntegrityError), transaction.atomic():
        UsageRecord.objects.create(**settled("a", ada))


# Leases


def test_what_a_dead_process_reserved_is_charged_and_marked(ada, reserve):
    fund(ada, 100)
    reserve("a")
    assert budgets.recover() == 0
    expire_all()
    assert (budgets.recover(), budgets.recover()) == (1, 0)
    usage = UsageRecord.objects.get()
    assert (usage.outcome, usage.status, usage.cost, usage.tokens_estimated) == ("recovered", 500, 10, True)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 6, 10)
    account = Account.objects.get(user=ada)
    assert (account.reserved, account.spent) == (0, 10)


@pytest.mark.parametrize("tokens", [3, 30])
def test_who_was_thought_dead_and_settles_late_is_charged_what_it_was(ada, reserve, tokens):
    fund(ada, 100)
    reserve("a")
    expire_all()
    budgets.recover()
    late = settled("a", ada, tokens)
    assert [ledger.store([late]) for _ in range(2)] == [1, 0]
    assert (left(ada), UsageRecord.objects.get().outcome) == (100 - tokens, "finished")
    assert auditing.audit().is_clean


def test_a_recovery_never_replaces_what_was_settled(ada, reserve):
    fund(ada, 100)
    reserve("a")
    held = Reservation.objects.get()
    ledger.store([settled("a", ada, 3)])
    held.save(force_insert=True)  # as one that the sweep had read before
    Account.objects.filter(user=ada).update(reserved=10)
    expire_all()
    assert budgets.recover() == 0
    assert (left(ada), Reservation.objects.exists()) == (97, False)
    assert auditing.audit().is_clean


def test_a_reservation_that_is_not_used_is_given_back(ada, reserve):
    fund(ada, 10)
    reserve("a")
    budgets.release("a")
    budgets.release("a")
    assert Account.objects.get(user=ada).reserved == 0
    reserve("b")


@pytest.mark.parametrize("ends", ["settled", "recovered", "given back"])
def test_a_call_outlives_its_user_and_moves_no_account(ada, reserve, ends):
    fund(ada, 100)
    reserve("a")
    late = settled("a", ada)
    ada.delete()
    if ends == "settled":
        assert ledger.store([late]) == 1
    elif ends == "recovered":
        expire_all()
        assert budgets.recover() == 1
    else:
        budgets.release("a")
    assert UsageRecord.objects.count() == (ends != "given back")
    assert (Account.objects.count(), Reservation.objects.count()) == (0, 0)
    assert auditing.audit().is_clean


def test_one_that_cannot_be_settled_does_not_hold_up_the_others(ada, reserve, caplog):
    fund(ada, 100)
    reserve("a")
    reserve("b")
    Reservation.objects.filter(request_id="a").update(record={"request_id": "a"})
    expire_all()
    assert budgets.recover() == 1
    assert UsageRecord.objects.get().request_id == "b"
    assert Account.objects.get(user=ada).reserved == 0
    assert "Reservation a cannot be settled" in caplog.text


def test_what_a_dead_process_held_of_a_user_who_goes_is_recorded(ada, reserve):
    fund(ada, 100)
    reserve("a")
    expire_all()
    going = threading.Event()

    def delete() -> None:
        try:
            with transaction.atomic():
                User.objects.get(id=ada.id).delete()
                going.set()
                assert waits_for_a_lock()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(delete)
        assert going.wait(10)
        assert budgets.recover() == 1
        gone.result()
    assert UsageRecord.objects.get().outcome == "recovered"
    assert (Account.objects.count(), Reservation.objects.count()) == (0, 0)


def waits_for_a_lock() -> bool:
    """Whether somebody comes to wait for a lock within some seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return True
        time.sleep(0.01)
    return False


# Budgets that change under way


def test_a_budget_that_is_set_forgets_an_overrun(ada):
    fund(ada, 5)
    ledger.store([settled("a", ada, 8)])
    assert left(ada) == 0
    fund(ada, 5)
    assert left(ada) == 5


def test_without_a_budget_spending_is_counted_all_the_same(ada):
    ledger.store([settled("a", ada, 8)])
    fund(ada, 5)
    account = Account.objects.get(user=ada)
    assert (account.spent, account.budget) == (8, 5)


def test_a_budget_set_while_a_call_runs_is_charged_by_it(ada, reserve):
    fund(ada, 100)
    reserve("a")
    fund(ada, 20)
    with pytest.raises(InsufficientBudget):
        reserve("b", Need(prompt=11, completion=0))
    ledger.store([settled("a", ada)])
    assert left(ada) == 10


# Estimates


def test_an_estimate_is_learned_from_the_last_answers(ada, priced, reserve):
    fund(ada, 100_000)
    guess = Need(prompt=1, unknown_completion=1024)
    reserve("before", guess)
    budgets.learn()
    assert not Estimate.objects.exists()
    ledger.store([settled(f"{n}", ada, n, router_id=priced.id) for n in range(1, 101)])
    ledger.store([settled("cut", ada, 9999, router_id=priced.id, outcome="client_left")])
    budgets.learn()
    estimate = Estimate.objects.get()
    assert (estimate.completion_tokens, estimate.calls) == (95, 100)
    reserve("after", guess)
    assert list(Reservation.objects.order_by("created").values_list("cost", flat=True)) == [1025, 96]
    reserve("three", Need(prompt=1, answers=3, unknown_completion=1024))
    assert Reservation.objects.get(request_id="three").cost == 1 + 3 * 95


def test_an_answer_is_known_to_the_next_call_at_once(ada, priced, reserve):
    fund(ada, 100_000)
    ledger.store([settled("a", ada, 12, router_id=priced.id)])
    reserve("b", Need(prompt=1, unknown_completion=1024))
    assert Reservation.objects.get().cost == 13


def test_what_calls_cost_more_than_expected_is_held_of_the_next(ada, priced, reserve):
    fund(ada, 100_000)
    ledger.store(
        [settled("a", ada, 30, router_id=priced.id, estimated_cost="20"), settled("b", ada, 1, router_id=priced.id)]
    )
    reserve("c", Need(prompt=4, overhead=lambda: 10, completion=6))
    assert Reservation.objects.get().cost == 30
    fund(ada, 11)
    budgets.release("c")
    reserve("d", Need(prompt=4, overhead=lambda: 10, completion=6))  # alone, and 10 are certain
    with pytest.raises(InsufficientBudget):
        reserve("e", Need(prompt=1, completion=0))
    expire_all()
    budgets.recover()
    recovered = UsageRecord.objects.get(request_id="d")
    assert (recovered.cost, recovered.total_tokens) == (20, 20)


def test_a_file_is_estimated_by_the_last_files(ada, priced, reserve):
    fund(ada, 10_000)
    ledger.store([settled("a", ada, 5, router_id=priced.id) | {"prompt_tokens": 50, "total_tokens": 55, "cost": "55"}])
    budgets.learn()
    reserve("b", Need(unknown_prompt=1024, unknown_completion=1024))
    assert Reservation.objects.get().cost == 55


def test_absurd_wishes_are_refused_and_break_nothing(ada, reserve):
    fund(ada, 10)
    carbon(ada, 10)
    Router.objects.update(cost_prompt_tokens="999999999999", cost_completion_tokens="999999999999")
    dear = Router.objects.get()
    Estimate.objects.create(router=dear, prompt_tokens=2**31 - 1, completion_tokens=2**31 - 1, overrun=1000, calls=1)
    for need in (
        Need(prompt=2**31 - 1, overhead=lambda: 2**32, completion=2**31 - 1),
        Need(answers=2**31 - 1, unknown_completion=1024),
    ):
        try:
            reserve(f"{need.answers}", need, grams_a_token=1e6, router=dear)
        except APIError:
            pass
    fund(ada, None)
    carbon(ada, 10**17)
    reserve("carbon alone", Need(answers=2**31 - 1), router=dear, grams_a_token=1.0)
    assert auditing.audit().is_clean


# Carbon


def test_carbon_has_a_budget_of_its_own(ada, reserve):
    carbon(ada, 1)
    reserve("a", Need(completion=600), grams_a_token=0.001)
    with pytest.raises(InsufficientCarbonBudget):
        reserve("b", Need(completion=600), grams_a_token=0.001)
    ledger.store([settled("a", ada, 600, gco2eq="0.9")])
    account = Account.objects.get(user=ada)
    assert (account.carbon_budget, account.carbon_reserved, account.budget) == (Decimal("0.1"), 0, None)


def test_a_carbon_budget_that_is_used_up_lets_pass_what_has_no_carbon(ada, reserve):
    carbon(ada, 0)
    reserve("a")
    with pytest.raises(InsufficientCarbonBudget):
        reserve("b", grams_a_token=0.001)


def test_a_money_budget_that_is_used_up_lets_free_models_pass(ada, reserve):
    fund(ada, 0)
    carbon(ada, 10)
    free = Router.objects.create(name="free", type="text-generation")
    reserve("a", router=free, grams_a_token=0.001)
    with pytest.raises(InsufficientBudget):
        reserve("b", grams_a_token=0.001)


# Allowances


def allow(user, now, **fields):
    with transaction.atomic():
        account = Account.objects.of(user)
        for name, value in fields.items():
            setattr(account, name, value)
        account.set_allowances(now)


def test_an_allowance_is_there_at_once_and_again_in_each_period(ada, reserve):
    now = timezone.now()
    allow(ada, now - timedelta(days=40), allowance=Decimal(10), carbon_allowance=Decimal(2), period="month")
    assert left(ada) == 10
    ledger.store([settled("a", ada, 10, gco2eq="2")])
    reserve("b")  # the first call of the new period begins it
    account = Account.objects.get(user=ada)
    assert (account.budget, account.reserved, account.carbon_budget) == (10, 10, 2)
    assert account.refills is not None
    assert account.refills > now
    with pytest.raises(InsufficientBudget):
        reserve("c")
    assert budgets.refill_due(timezone.now()) == 0
    assert auditing.audit().is_clean


def test_refilling_forgets_what_was_left_and_what_was_overrun(ada, ben):
    past = timezone.now() - timedelta(days=2)
    for user, spent in ((ada, 3), (ben, 30)):
        allow(user, past, allowance=Decimal(10), period="day")
        ledger.store([settled(user.email[:20], user, spent)])
    assert budgets.refill_due(timezone.now()) == 2
    assert (left(ada), left(ben)) == (10, 10)


def test_an_account_that_cannot_be_refilled_holds_up_no_other(ada, ben, caplog):
    past = timezone.now() - timedelta(days=2)
    for user in (ada, ben):
        allow(user, past, allowance=Decimal(10), period="day")
        ledger.store([settled(f"{user.id}", user, 3)])
    Account.objects.filter(user=ada).update(allowance=Decimal(10) ** 18 - 1)
    assert budgets.refill_due(timezone.now()) == 1
    assert (left(ada), left(ben)) == (7, 10)
    assert f"The account of user {ada.id} cannot be refilled" in caplog.text


def test_null_does_not_lift_what_an_allowance_limits(ada):
    allow(ada, timezone.now(), allowance=Decimal(10), period="day")
    fund(ada, 4)
    fund(ada, None)
    assert left(ada) == 4


def test_lifting_an_allowance_leaves_what_is_left(ada):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    allow(ada, now, allowance=Decimal(10), period="day")
    allow(ada, now, allowance=None, period="")
    account = Account.objects.get(user=ada)
    assert (account.budget, account.refills) == (10, None)


def test_the_sums_of_a_day_are_by_utc_and_by_everything_that_differs(ada, ben):
    ledger.store(
        [
            settled("a", ada, created="2026-01-01T23:30:00+00:00"),
            settled("b", ada, created="2026-01-02T00:30:00+01:00", status=503, outcome="upstream_failed"),
            settled("c", ada, created="2026-01-02T00:00:00+00:00"),
            settled("d", ben, created="2026-01-02T00:00:00+00:00", organization_id=None),
        ]
    )
    sums = DailyUsage.objects.order_by("day", "user_email").values_list(
        "day__day", "user_email", "requests", "errors", "cost", "organization_name"
    )
    assert list(sums) == [
        (1, "ada@example.org", 2, 1, 20, "Ministry of Tests"),
        (2, "ada@example.org", 1, 0, 10, "Ministry of Tests"),
        (2, "ben@example.org", 1, 0, 10, "Ministry of Tests"),
    ]


def test_calls_that_end_together_are_settled_together_and_one_that_does_not_fit_alone(ada, reserve):
    fund(ada, 100)
    for name in "abc":
        reserve(name)
    calls = [settled("a", ada, 1), settled("b", ada, 1, endpoint="x" * 1000), settled("c", ada, 1)]

    async def settle_all() -> list[BaseException | None]:
        return await asyncio.gather(*(ledger.settle(call) for call in calls), return_exceptions=True)

    answers = in_loop(settle_all())
    assert [type(answer) for answer in answers] == [type(None), DataError, type(None)]
    assert (left(ada), Account.objects.get(user=ada).reserved) == (98, 10)
    assert auditing.audit().is_clean
