"""The audit finds whatever was changed past the ledger, and says what it is; and old records go without a trace."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from routing.models import Router
from routing.snapshot import _router
from tests.usage.records import fund, record
from usage import auditing, budgets, ledger, retention, spool
from usage.budgets import Need
from usage.models import Account, DailyUsage, Reservation, UsageRecord

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")
PRICED = {"cost_prompt_tokens": "1000000", "cost_completion_tokens": "1000000", "cost": "2", "gco2eq": "0.5"}


@pytest.fixture
def books(ada, ben):
    """Two days of two users, and a call of ada's under way."""
    fund(ada, 100)
    router = Router.objects.create(
        name="priced", type="text-generation", cost_prompt_tokens=10**6, cost_completion_tokens=10**6
    )
    now = timezone.now()
    for number in range(6):
        created = (now - timedelta(days=number % 2)).isoformat()
        ledger.store([record(f"{number}", user=(ada, ben)[number % 3 == 0], created=created, **PRICED)])
    under_way = record("open", user=ada, **PRICED)
    budgets.reserve(ada.id, under_way, _router(Router.objects.get(id=router.id)), Need(5, completion=5), 0.0)


def broken() -> list[str]:
    return [rule for rule, found in auditing.audit().found.items() if found]


def test_books_in_order_are_clean(books):
    audit = auditing.audit()
    assert audit.is_clean, audit.findings
    assert audit.checked == {"accounts": 2, "reservations": 1, "records": 6, "daily sums": 4}


RESERVED = "an account's reservations are those there are"
SPENT = "an account's spending is the sum of its days"
SUMS = "a day's sums are those of its records"
COST = "a record's cost is that of its tokens"
TAMPERING = {
    "a reservation vanishes": (lambda: Reservation.objects.all()._raw_delete("default"), [RESERVED]),
    "a reservation grows": (lambda: Reservation.objects.update(cost=11), [RESERVED]),
    "an account says more is reserved": (lambda: Account.objects.update(reserved=99), [RESERVED]),
    "carbon is reserved for nothing": (lambda: Account.objects.update(carbon_reserved=1), [RESERVED]),
    "an account says less was spent": (lambda: Account.objects.update(spent=1), [SPENT]),
    "an account says less carbon was spent": (lambda: Account.objects.update(carbon_spent=0), [SPENT]),
    "an account vanishes": (lambda: Account.objects.filter(reserved=0)._raw_delete("default"), [SPENT]),
    "a record vanishes": (lambda: UsageRecord.objects.filter(request_id="3")._raw_delete("default"), [SUMS]),
    "a record moves to another day": (
        lambda: UsageRecord.objects.filter(request_id="0").update(created=datetime(2020, 1, 1, tzinfo=UTC)),
        [SUMS],
    ),
    "a record moves to another user": (lambda: UsageRecord.objects.filter(request_id="0").update(user=None), [SUMS]),
    "a record becomes cheaper": (lambda: UsageRecord.objects.filter(request_id="0").update(cost=1), [SUMS, COST]),
    "a record has more tokens": (
        lambda: UsageRecord.objects.filter(request_id="0").update(prompt_tokens=9),
        [SUMS, COST],
    ),
    "a record loses its carbon": (lambda: UsageRecord.objects.filter(request_id="0").update(gco2eq=0), [SUMS]),
    "a record loses its energy": (lambda: UsageRecord.objects.filter(request_id="0").update(kwh_min=1), [SUMS]),
    "a day vanishes": (lambda: DailyUsage.objects.all()._raw_delete("default"), [SPENT, SUMS]),
    "a day costs more": (lambda: DailyUsage.objects.filter(requests=1).update(cost=3), [SPENT, SUMS]),
    "a call is settled and still reserved": (
        lambda: Reservation.objects.update(request_id="1"),
        ["a settled call holds no reservation"],
    ),
    "nobody recovers": (
        lambda: Reservation.objects.update(expires=timezone.now() - timedelta(minutes=2)),
        ["no reservation outlives its lease"],
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_what_is_done_past_the_ledger_is_found(books, what):
    tamper, rules = TAMPERING[what]
    tamper()
    assert broken() == rules


def test_what_waits_in_redis_for_long_is_found(books, redis_client):
    long_ago = int((timezone.now() - timedelta(minutes=2)).timestamp() * 1000)
    redis_client.xadd(spool.STREAM, {"record": b"{}"}, id=f"{long_ago}-0")
    redis_client.xadd(spool.REJECTED, {"record": b"{}"})
    assert broken() == ["no settled call waits for the worker", "no settled call was refused by Postgres"]


def test_the_command_says_what_is_wrong_and_fails(books):
    out = io.StringIO()
    call_command("audit_ledger", stdout=out)
    assert "NOT" not in out.getvalue()
    assert "Checked 2 accounts, 1 reservations, 6 records, 4 daily sums." in out.getvalue()
    Account.objects.update(spent=1)
    with pytest.raises(CommandError):
        call_command("audit_ledger", stdout=out)
    assert f"NOT {SPENT}: 2 break it" in out.getvalue()
    with pytest.raises(CommandError):
        call_command("audit_ledger", "--json", stdout=(told := io.StringIO()))
    found = json.loads(told.getvalue())
    assert (found["clean"], len(found["findings"])) == (False, 2)


def test_an_audit_may_begin_at_a_day(books):
    yesterday = (timezone.now() - timedelta(days=1)).date()
    DailyUsage.objects.filter(day=yesterday).update(errors=7)
    assert broken() == [SUMS]
    assert auditing.audit(timezone.now().date()).is_clean


# Retention


def test_old_records_go_in_batches_and_their_sums_stay(books, ada, settings, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST", 4)
    long_ago = timezone.now() - timedelta(days=40)
    ledger.store([record(f"old-{n}", user=ada, created=long_ago.isoformat(), **PRICED) for n in range(5)])
    assert retention.delete_old() == 0  # kept for ever, by default
    settings.USAGE_RETENTION_DAYS = 30
    assert [retention.delete_old() for _ in range(3)] == [4, 1, 0]
    assert UsageRecord.objects.count() == 6
    assert DailyUsage.objects.get(records_deleted=True).requests == 5
    assert auditing.audit().is_clean
    settings.USAGE_RETENTION_DAYS = None
    ledger.store([record("late", user=ada, created=long_ago.isoformat(), **PRICED)])
    assert auditing.audit().is_clean


def test_the_day_at_the_edge_is_kept_whole(ada, settings):
    settings.USAGE_RETENTION_DAYS = 1
    now = timezone.now().astimezone(UTC)
    edge = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    for name, moment in (("gone", edge - timedelta(microseconds=1)), ("kept", edge)):
        ledger.store([record(name, user=ada, created=moment.isoformat())])
    assert retention.delete_old() == 1
    assert UsageRecord.objects.get().request_id == "kept"
