"""Roll-ups equal the sums of the records, in whatever order those come, and however often they are made."""

import random
from bisect import bisect_right
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, connections, transaction

from tests.usage.records import record
from usage import auditing, ledger, retention, rollups
from usage.models import DailyUsage, Grain, Rollup, RollupProgress, UsageRecord
from usage.rollups import BOUNDS_MS, PLACES, percentile, roll_up

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")
NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost", "gco2eq")


def call(request_id, user, created, chance=None, **fields):
    chance = chance or random.Random(request_id)
    tokens = chance.randrange(500)
    plain = {
        "created": created.isoformat(),
        "router_id": chance.choice([1, 2, None]),
        "provider_id": chance.choice([1, 2, None]),
        "status": chance.choice([200, 200, 201, 429, 503]),
        "latency_ms": chance.randrange(400_000),
        "ttft_ms": chance.choice([None, chance.randrange(2_000)]),
        "prompt_tokens": tokens,
        "total_tokens": tokens + 1,
        "cost_prompt_tokens": "1000000",
        "cost_completion_tokens": "0",
        "cost": str(tokens),
        "gco2eq": "0.000001",
        "kwh_min": 0.5,
        "kwh_max": 1.5,
    }
    return record(request_id, user=user, **plain | fields)


def expected(grain):
    """What the roll-ups should be, worked out the slow way."""
    sums: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, 0, 0, Decimal(0), Decimal(0)])
    histograms: dict[Any, list[list[int]]] = defaultdict(lambda: [[0] * PLACES, [0] * PLACES])
    for row in UsageRecord.objects.all():
        start = row.created.replace(minute=0, second=0, microsecond=0)
        key = (
            start if grain == Grain.HOUR else start.replace(hour=0),
            *(row.organization_id, row.router_id, row.provider_id),
        )
        is_answered = 200 <= row.status < 300
        added = (1, not is_answered, row.prompt_tokens, row.completion_tokens, row.cost, row.gco2eq)
        sums[key] = [a + b for a, b in zip(sums[key], added, strict=True)]
        for histogram, took in zip(histograms[key], (row.latency_ms, row.ttft_ms), strict=True):
            if is_answered and took is not None:
                histogram[bisect_right(BOUNDS_MS, took)] += 1
    return {key: (*found, *map(tuple, histograms[key])) for key, found in sums.items()}


def rolled(grain):
    return {
        (row.start, row.organization_id, row.router_id, row.provider_id): (
            *(getattr(row, name) for name in SUMS),
            tuple(row.latency),
            tuple(row.ttft),
        )
        for row in Rollup.objects.filter(grain=grain)
    }


def agree():
    assert rolled(Grain.HOUR) == expected(Grain.HOUR)
    assert rolled(Grain.DAY) == expected(Grain.DAY)


@pytest.mark.parametrize("seed", range(2))
def test_rollups_equal_the_records_whatever_comes_in_whatever_order(ada, eve, seed):
    chance = random.Random(seed)
    now, guessed = NOW, {}
    for number in range(60):
        created = now - timedelta(minutes=chance.randrange(3 * 24 * 60))
        request_id = f"{seed}-{number}"
        is_guess = chance.random() < 0.3
        call_ = call(request_id, chance.choice([ada, eve]), created, outcome="recovered" if is_guess else "finished")
        ledger.store([call_])
        if is_guess:
            guessed[request_id] = created
        if guessed and chance.random() < 0.3:
            replaced, created = guessed.popitem()
            truth = call(replaced, ada, created, chance)
            ledger.store([truth])
        if chance.random() < 0.3:
            now += timedelta(seconds=chance.randrange(200))
            assert roll_up(now)
        if chance.random() < 0.1:
            roll_up(now - timedelta(seconds=30))
    assert roll_up(now)
    agree()
    settled = now + timedelta(minutes=2)
    assert roll_up(settled)
    assert roll_up(settled + timedelta(minutes=2))
    assert RollupProgress.objects.get().settled_id == UsageRecord.objects.order_by("-id")[0].id
    agree()
    assert auditing.audit().is_clean


def test_a_table_from_before_is_summed_up_in_steps(ada, monkeypatch):
    monkeypatch.setattr(rollups, "BACKFILL_DAYS", 2)
    ledger.store([call(f"{n}", ada, NOW - timedelta(days=n)) for n in range(5)])
    assert [roll_up(NOW) for _ in range(3)] == [False, False, True]
    agree()


def test_a_run_that_breaks_off_anywhere_does_no_harm(ada, monkeypatch):
    assert roll_up(NOW)
    ledger.store([call(f"{n}", ada, NOW - timedelta(hours=7 * n)) for n in range(20)])
    write, left = rollups._write, iter(range(100))
    for breaks_at in range(1, 12, 3):
        left = iter(range(breaks_at))

        def breaking(*arguments, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*arguments)

        monkeypatch.setattr(rollups, "_write", breaking)
        with pytest.raises(KeyboardInterrupt):
            roll_up(NOW)
    monkeypatch.undo()
    assert roll_up(NOW)
    agree()


def test_runs_at_once_do_no_harm(ada):
    ledger.store([call(f"{n}", ada, NOW - timedelta(hours=n)) for n in range(30)])

    def run(number):
        try:
            ledger.store([call(f"more-{number}", ada, NOW - timedelta(hours=number))])
            return roll_up(NOW + timedelta(seconds=number))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(12)))
    assert roll_up(NOW)
    agree()


def test_what_is_committed_long_after_its_id_was_given_out_is_not_missed(ada):
    ledger.store([call("first", ada, NOW)])
    assert roll_up(NOW)

    def late(step):
        try:
            with transaction.atomic():
                ledger.store([call("late", ada, NOW - timedelta(hours=5))])
                step()
        finally:
            connections.close_all()

    def others_go_on():
        for minutes in range(2, 12, 2):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(one_more, minutes).result()

    def one_more(minutes):
        try:
            ledger.store([call(f"on-{minutes}", eve_like, NOW)])
            assert roll_up(NOW + timedelta(minutes=minutes))
        finally:
            connections.close_all()

    # Somebody else, whose account the late one does not lock.
    eve_like = type(ada).objects.create(email="other@example.org", role=ada.role)
    late(others_go_on)
    assert roll_up(NOW + timedelta(minutes=20))
    agree()


def test_a_transaction_that_stays_open_stops_nothing_and_is_told_of(ada, caplog):
    ledger.store([call("first", ada, NOW)])
    assert roll_up(NOW)

    def goes_on(minutes):
        try:
            ledger.store([call(f"on-{minutes}", ada, NOW)])
            assert roll_up(NOW + timedelta(minutes=minutes))
            agree()
        finally:
            connections.close_all()

    with transaction.atomic(), connection.cursor() as cursor, ThreadPoolExecutor(1) as thread:
        cursor.execute("SELECT pg_current_xact_id()")
        for minutes, told in ((2, 0), (5, 0), (15, 1)):
            thread.submit(goes_on, minutes).result()
            assert caplog.text.count("A transaction is open") == told


def test_hours_are_deleted_and_days_stay_and_still_grow(ada):
    ledger.store([call("old", ada, NOW - timedelta(days=30)), call("new", ada, NOW)])
    assert roll_up(NOW)
    later = NOW + timedelta(days=20)
    assert roll_up(later)
    assert not rolled(Grain.HOUR)
    assert rolled(Grain.DAY) == expected(Grain.DAY)
    ledger.store([call("late", ada, NOW - timedelta(days=30)), call("later", ada, NOW)])
    assert roll_up(later)
    assert not rolled(Grain.HOUR)
    assert rolled(Grain.DAY) == expected(Grain.DAY)


def test_what_retention_deletes_stays_in_the_rollups_and_late_records_join_it(ada, settings, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST", 4)
    now = datetime.now(UTC)
    old = now - timedelta(days=3)
    ledger.store([call(f"{n}", ada, old, router_id=n % 2) for n in range(6)])
    assert roll_up()
    hours, days = rolled(Grain.HOUR), rolled(Grain.DAY)
    settings.USAGE_RETENTION_DAYS = 1
    assert retention.delete_old() == 4  # half of an hour
    ledger.store([call("now", ada, now)])
    assert roll_up()
    assert {key: rolled(Grain.HOUR)[key] for key in hours} == hours
    assert {key: rolled(Grain.DAY)[key] for key in days} == days
    ledger.store([call("late", ada, old), call("never seen by a run", ada, old)])
    assert roll_up()
    ledger.store([call("deleted before a run", ada, old)])
    assert retention.delete_old() == 4
    assert retention.delete_old() == 1
    assert not UsageRecord.objects.exclude(request_id="now").exists()
    of_old = Rollup.objects.filter(grain=Grain.DAY, start__date=old.date())
    assert sum(row.requests for row in of_old) == 9
    assert sum(row.cost for row in of_old) == sum(day.cost for day in DailyUsage.objects.filter(day=old.date()))
    assert sum(sum(row.latency) for row in of_old) == sum(sum(row[-2]) for row in days.values())
    assert auditing.audit().is_clean


def test_nothing_is_written_while_another_writes(ada):
    ledger.store([call("a", ada, NOW)])

    def run():
        try:
            return roll_up(NOW)
        finally:
            connections.close_all()

    with transaction.atomic():
        rollups.lock()
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(run).result() is False
    assert not Rollup.objects.exists()
    assert roll_up(NOW)
    agree()


def test_a_database_from_another_server_goes_on(ada):
    ledger.store([call("a", ada, NOW)])
    assert roll_up(NOW)
    RollupProgress.objects.update(mark_xid=2**40)
    for minutes in (2, 4):
        assert roll_up(NOW + timedelta(minutes=minutes))
    assert RollupProgress.objects.get().settled_id == UsageRecord.objects.get().id


def test_percentiles_are_read_out_of_histograms():
    assert percentile(None, 0.5) is None
    assert percentile([0] * PLACES, 0.5) is None
    chance = random.Random(1)
    took = sorted(chance.lognormvariate(6.5, 1) for _ in range(10_000))
    histogram = [0] * PLACES
    for one in took:
        histogram[bisect_right(BOUNDS_MS, one)] += 1
    for share in (0.5, 0.95, 0.99):
        told = percentile(histogram, share)
        assert told == pytest.approx(took[int(share * len(took))], rel=0.1)
    assert percentile([*[0] * (PLACES - 1), 1], 0.5) == BOUNDS_MS[-1]


def test_histograms_add_up_place_by_place(ada):
    ledger.store([call(f"{n}", ada, NOW - timedelta(hours=n), status=200) for n in range(8)])
    assert roll_up(NOW)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {rollups.sum_of_histograms('latency')} FROM usage_rollup WHERE grain = 'hour'")
        (summed,) = cursor.fetchone()
    assert sum(summed) == 8
    assert len(summed) == PLACES


def test_the_audit_finds_a_rollup_that_lies(ada):
    ledger.store([call("a", ada, NOW), call("b", ada, NOW - timedelta(days=2))])
    for minutes in (0, 2, 4):
        assert roll_up(NOW + timedelta(minutes=minutes))
    assert auditing.audit().is_clean
    Rollup.objects.filter(start__date=NOW.date()).update(cost=1_000)
    assert [rule for rule, found in auditing.audit().found.items() if found] == ["a day's roll-ups are its sums"]
    ledger.store([call("c", ada, NOW)])
    assert auditing.audit().is_clean  # whoever looks at a day that still moves sees nothing wrong
