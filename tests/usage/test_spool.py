"""From the spool to Postgres: each record once, whatever happens between."""

import pytest
from pydantic_core import to_json

from tests.usage.records import fund, left, record
from usage import ledger, spool
from usage.models import UsageRecord


def put(redis_client, *records):
    for each in records:
        redis_client.xadd(spool.STREAM, {"record": to_json(each)})


@pytest.fixture(autouse=True)
def _database(transactional_db):
    pass


def test_a_drain_moves_all_records_and_leaves_the_stream_empty(redis_client, ada):
    put(redis_client, *(record(f"{n}", user=ada) for n in range(2500)))
    assert spool.drain() == 2500
    assert (UsageRecord.objects.count(), redis_client.xlen(spool.STREAM)) == (2500, 0)


def test_a_record_that_comes_twice_counts_once(redis_client, ada):
    fund(ada, 10)
    put(redis_client, record("a", user=ada, cost="1"), record("a", user=ada, cost="1"))
    assert spool.drain() == 1
    put(redis_client, record("a", user=ada, cost="1"))  # as after a drain that died before it deleted its entries
    assert spool.drain() == 0
    assert (UsageRecord.objects.count(), left(ada)) == (1, 9)


def test_a_record_that_does_not_fit_is_put_aside_and_the_rest_goes_on(redis_client, ada, caplog):
    put(redis_client, record("a", user=ada), record("b", user=ada, endpoint="x" * 1000), record("c", user=ada))
    assert spool.drain() == 2
    assert sorted(UsageRecord.objects.values_list("request_id", flat=True)) == ["a", "c"]
    assert (redis_client.xlen(spool.STREAM), redis_client.xlen(spool.REJECTED)) == (0, 1)
    assert "cannot be stored" in caplog.text


def test_garbage_in_the_stream_does_not_stop_the_drain(redis_client, ada, caplog):
    for garbage in (
        b"{",
        b"[]",
        b"null",
        b"1",
        to_json({"request_id": "x"}),
        to_json(record("b", user=ada, cost="dear")),
    ):
        redis_client.xadd(spool.STREAM, {"record": garbage})
    redis_client.xadd(spool.STREAM, {"other": "field"})
    put(redis_client, record("a", user=ada))
    assert spool.drain() == 1
    assert (redis_client.xlen(spool.STREAM), redis_client.xlen(spool.REJECTED)) == (0, 7)


def test_a_record_of_an_earlier_release_is_whole_all_the_same(redis_client, ada):
    old = {name: value for name, value in record("a", user=ada).items() if name not in ("gco2eq", "estimated_cost")}
    put(redis_client, old)
    assert spool.drain() == 1
    assert UsageRecord.objects.get().gco2eq == 0


def test_what_was_deleted_since_the_call_leaves_its_name_and_its_number(redis_client, ada):
    put(redis_client, record("a", user=ada, key_id=12345, router_id=12345))
    gone = ada.id
    ada.delete()
    spool.drain()
    kept = UsageRecord.objects.get()
    assert (kept.user_id, kept.key_id, kept.router_id) == (gone, 12345, 12345)
    assert (kept.user_email, kept.key_name, kept.router_name) == ("ada@example.org", "key", "router")


def test_a_budget_stops_at_zero(ada):
    fund(ada, 1.5)
    ledger.store([record("a", user=ada, cost="1"), record("b", user=ada, cost="1")])
    assert left(ada) == 0


def test_no_budget_stays_no_budget(ada):
    ledger.store([record("a", user=ada, cost="1")])
    assert left(ada) is None


def test_the_last_use_of_a_key_only_moves_forward(ada, key_of):
    key_of(ada)
    key = ada.keys.get()
    ledger.store([record("a", user=ada, key_id=key.id, created="2026-01-02T00:00:00+00:00")])
    ledger.store([record("b", user=ada, key_id=key.id, created="2026-01-01T00:00:00+00:00")])
    key.refresh_from_db()
    assert key.last_used.isoformat() == "2026-01-02T00:00:00+00:00"
