"""The flight record says how a call went, step by step, and nothing of what was asked or answered."""

import json
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from pydantic_core import to_json

from opengate import epoch
from opengate import redis as opengate_redis
from opengate.loops import in_loop
from routing import circuit, snapshot
from routing.models import Provider, Router
from routing.places import inflight_key
from tests.conftest import CHAT
from tests.inference.documents import text_pdf
from tests.server import free_port
from tests.upstream import chunk, completion, event, story
from tests.usage.records import fund, record
from tests.usage.test_settlement import UNLIMITED, new_call
from usage import budgets, ledger, spool
from usage.budgets import Need
from usage.models import Limit, Reservation, UsageRecord

CANARY = "yellow-feathers-93517"


@pytest.fixture
def first(router):
    """The provider that takes calls as long as it can: the cheapest one."""
    router.load_balancing_strategy = "cheapest"
    router.save()
    provider = router.providers.get()
    provider.cost_prompt_tokens = 1
    provider.save()
    return provider


@pytest.fixture
def other(router, first, upstream):
    """A second provider, which the same upstream serves."""
    return Provider.objects.create(
        router=router, type="openai", url=f"{upstream.url}other/", model_name="other-name", cost_prompt_tokens=2
    )


def as_calls_see(router: Router) -> snapshot.Router:
    return snapshot._router(Router.objects.prefetch_related("providers").get(id=router.id))


def whys(flight) -> dict[str, str]:
    return {provider["model"]: provider["why"] for provider in flight["providers"]}


def test_an_ordinary_call_says_what_was_checked_who_was_chosen_and_when(as_ada, router, first, chat, records):
    Limit.objects.filter(type="rpm").update(value=10)
    Limit.objects.filter(type="tpd").update(value=1000)
    assert chat(as_ada).status_code == 200
    flight = records()[0].flight
    assert (flight["limits"]["rpd"], flight["limits"]["tpm"]) == (None, None)
    rpm, tpd = flight["limits"]["rpm"], flight["limits"]["tpd"]
    assert (rpm["limit"], rpm["used"]) == (10, 1)
    assert 0 < rpm["resets_ms"] <= 120_000
    assert tpd["limit"] == 1000
    assert tpd["used"] > 0
    assert flight["strategy"] == "cheapest"
    assert flight["providers"] == [{"id": first.id, "model": "upstream-name", "why": "chosen"}]
    (tried,) = flight["tries"]
    assert (tried["provider"], tried["came"]) == (first.id, "answered")
    times = flight["times_ms"]
    assert 0 < times["admitted"] <= times["placed"] <= times["last_byte"] <= times["recorded"]
    assert times["placed"] == tried["began_ms"]
    assert "first_token" not in times
    assert "budget" not in flight


def test_a_stream_says_when_its_first_token_came(as_ada, router, chat, records):
    chat(as_ada, stream=True)
    row = records()[0]
    times = row.flight["times_ms"]
    assert times["first_token"] == row.ttft_ms
    assert times["placed"] <= times["first_token"] + 1 <= times["last_byte"] + 1


def test_who_failed_is_told_with_our_words_and_the_next_one_is_chosen(as_ada, router, first, other, chat, records):
    first.url = f"http://127.0.0.1:{free_port()}/"
    first.save()
    assert chat(as_ada).status_code == 200
    flight = records()[0].flight
    assert whys(flight) == {"upstream-name": "tried", "other-name": "chosen"}
    failed, answered = flight["tries"]
    assert (failed["provider"], failed["came"], failed["status"]) == (first.id, "failed", 503)
    assert failed["error"] == "Model is temporarily unavailable, please try again later."
    assert (answered["provider"], answered["came"]) == (other.id, "answered")
    assert failed["began_ms"] + failed["took_ms"] <= answered["began_ms"] + 0.2


def test_an_open_circuit_and_a_full_provider_are_told(as_ada, router, first, other, redis_client, chat, records):
    Provider.objects.create(
        router=router, type="openai", url=f"{other.url}more/", model_name="third-name", cost_prompt_tokens=3
    )
    first.qos_metric, first.qos_limit = "inflight", 2
    first.save()
    now = timezone.now()
    redis_client.zadd(inflight_key(first.id), {"one": now.timestamp() + 30, "two": now.timestamp() + 30})
    redis_client.hset(circuit.key(other.id), mapping={"failures": 5, "until": now.timestamp() + 30, "pause": 5})
    assert chat(as_ada).status_code == 200
    flight = records()[0].flight
    assert flight["strategy"] == "cheapest"
    assert whys(flight) == {"upstream-name": "full", "other-name": "open", "third-name": "chosen"}
    assert flight["providers"][0]["takes"] == 2
    redis_client.delete(inflight_key(first.id))
    assert chat(as_ada).status_code == 200
    assert whys(records(2)[1].flight) == {
        "upstream-name": "chosen",
        "other-name": "not_needed",
        "third-name": "not_needed",
    }


def test_a_call_that_found_no_place_says_why(as_ada, router, first, redis_client, chat, records):
    until = timezone.now().timestamp() + 30
    redis_client.hset(circuit.key(first.id), mapping={"failures": 5, "until": until, "pause": 5})
    assert chat(as_ada).status_code == 503
    row = records()[0]
    assert (row.status, row.outcome) == (503, "upstream_failed")
    assert whys(row.flight) == {"upstream-name": "open"}
    assert "tries" not in row.flight
    assert "placed" not in row.flight["times_ms"]
    assert row.flight["times_ms"]["waited"] >= 0


def test_a_reservation_is_told(as_ada, ada, router, chat, records):
    router.cost_prompt_tokens = router.cost_completion_tokens = 10**6
    router.save()
    fund(ada, 1000)
    assert chat(as_ada, max_tokens=20).status_code == 200
    row = records()[0]
    assert float(row.flight["budget"]["cost"]) >= 20
    assert row.flight["budget"]["gco2eq"] == "0.000000"
    times = row.flight["times_ms"]
    assert times["admitted"] <= times["reserved"] <= times["placed"]


def test_a_call_of_a_process_that_died_keeps_what_was_known(ada, router, redis_client):
    router.cost_prompt_tokens = 10**6
    router.save()
    fund(ada, 1000)

    made = as_calls_see(router)

    async def dies() -> None:
        await epoch.refresh()
        assert await new_call(ada).admit(made, UNLIMITED, Need(prompt=3, completion=5))

    in_loop(dies())
    now = timezone.now()
    Reservation.objects.update(created=now - timedelta(seconds=2), expires=now - timedelta(seconds=1))
    assert budgets.recover() == 1
    flight = UsageRecord.objects.get().flight
    assert flight is not None
    assert flight["limits"] == {"rpm": None, "rpd": None, "tpm": None, "tpd": None}
    assert "providers" not in flight


def test_a_document_that_the_gateway_reads_itself_has_times_and_no_more(as_ada, records):
    assert as_ada.post("/v1/parse-beta", files={"file": ("a.pdf", text_pdf("Page."))}).status_code == 200
    assert list(records()[0].flight) == ["times_ms"]


def test_with_redis_away_it_says_that_nothing_was_checked(ada, router, settings):
    made = as_calls_see(router)
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"

    async def story() -> dict[str, object]:
        call = new_call(ada)
        assert await call.admit(made, UNLIMITED, Need(prompt=3, completion=5))
        await call.next_provider(3)
        return call.flight.as_json(None)

    try:
        flight = in_loop(story())
    finally:
        opengate_redis.breaker.failures = 0
    assert flight["limits"] == "unchecked"
    assert flight["uncounted"] is True
    assert whys(flight) == {"upstream-name": "chosen"}


def said(row: UsageRecord) -> str:
    """The whole record, as it is kept."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_jsonb(usage_usagerecord)::text FROM usage_usagerecord WHERE id = %s", [row.id])
        return str(cursor.fetchone()[0])


ANSWERS = [
    {"body": completion(f"answer {CANARY}")},
    {"body": {"error": {"message": f"bad {CANARY}", "code": CANARY}}, "status": 400},
    {"body": {"error": {"message": f"bad {CANARY}"}}, "status": 500},
    {"body": {"detail": [{"loc": ["body", CANARY], "msg": CANARY}]}, "status": 422},
    {"body": f"<html>{CANARY}".encode(), "status": 502, "content_type": "text/html"},
    {"body": f"no json {CANARY}".encode()},
    {"body": {"choices": CANARY}},
    {"chunks": [event(chunk(CANARY)), *story()]},
    {"chunks": [event(chunk(CANARY)), event(chunk(CANARY))], "then": "cut"},
    {"chunks": [event({"error": {"message": CANARY, "code": 400, "type": CANARY}})]},
    {"chunks": [event(chunk("a")), event({"error": {"message": CANARY}})]},
    {"chunks": [event(chunk("a")), event(f"{{no json {CANARY}")], "then": "cut"},
]


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_nothing_of_a_prompt_or_an_answer_is_kept(gateway, as_ada, router, upstream, records, answer, redis_client):
    upstream.reply(**answer)
    upstream.reply(**answer)
    message = {"role": "user", "content": f"Say {CANARY}."}
    fields = {"messages": [message], "stream": "chunks" in answer, "user": CANARY, CANARY: CANARY}
    as_ada.post("/v1/chat/completions", json=CHAT | fields)
    (row,) = records()
    assert row.flight["tries"]
    assert CANARY not in said(row)


def test_a_broken_stream_is_told_in_our_words(as_ada, router, chat, upstream, records):
    upstream.reply(chunks=[event(chunk("Hello"))], then="cut")
    chat(as_ada, stream=True)
    (tried,) = records()[0].flight["tries"]
    assert (tried["came"], tried["status"]) == ("broke", 503)
    assert tried["error"].startswith("Model is too busy (")


def test_records_of_an_earlier_release_have_none_and_still_come_through(ada, redis_client):
    old = record("old", user=ada)
    redis_client.xadd(spool.STREAM, {"record": to_json(old)})
    redis_client.xadd(
        spool.STREAM, {"record": to_json(record("new", user=ada, flight={"times_ms": {"recorded": 1.5}}))}
    )
    assert spool.drain() == 2
    assert dict(UsageRecord.objects.values_list("request_id", "flight")) == {
        "old": None,
        "new": {"times_ms": {"recorded": 1.5}},
    }
    assert UsageRecord.objects.filter(flight__isnull=True).count() == 1


def test_it_is_small(as_ada, router, other, chat, records):
    assert chat(as_ada).status_code == 200
    assert len(json.dumps(records()[0].flight)) < 800
    assert ledger.store([]) == 0
