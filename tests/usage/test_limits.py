"""Rate limits: all or nothing, per user, router and type, and told in headers."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from opengate import epoch
from tests.upstream import completion
from tests.usage.records import fund
from usage.models import Limit


def limit(router, **values):
    for type, value in values.items():
        row = Limit.objects.get(router=router, type=type)
        row.value = value
        row.save()


def counters(redis_client) -> dict[str, int]:
    keys = redis_client.keys("opengate:limit:*")
    return {key.decode().split(":")[2]: int(redis_client.get(key)) for key in keys}


@pytest.mark.parametrize(("type", "words"), [("rpm", "requests per minute"), ("rpd", "requests per day")])
def test_requests_over_the_limit_get_429(as_ada, router, chat, type, words, records):
    limit(router, **{type: 2})
    assert [chat(as_ada).status_code for _ in range(2)] == [200, 200]
    refused = chat(as_ada)
    assert refused.status_code == 429
    assert refused.json()["detail"] == f"2 {words} exceeded (remaining: 0)."
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= (60 if type == "rpm" else 86400)
    assert len(records(2)) == 2  # refusals leave no record


@pytest.mark.parametrize(("type", "words"), [("tpm", "input tokens per minute"), ("tpd", "input tokens per day")])
def test_prompt_tokens_over_the_limit_get_429(as_ada, router, chat, type, words):
    limit(router, **{type: 10})
    assert chat(as_ada).status_code == 200  # the provider counts 9
    refused = chat(as_ada)
    assert (refused.status_code, refused.json()["detail"]) == (429, f"10 {words} exceeded (remaining: 1).")


def test_the_real_number_of_tokens_takes_the_place_of_the_estimate(as_ada, router, chat, upstream, redis_client):
    limit(router, tpm=1000)
    upstream.reply(completion(usage={"prompt_tokens": 500, "completion_tokens": 1}))
    chat(as_ada)
    assert counters(redis_client) == {"tpm": 500}


def test_a_failed_call_gives_its_tokens_back_but_stays_a_request(as_ada, router, chat, upstream, redis_client):
    limit(router, tpm=1000, rpm=1000)
    upstream.reply({"message": "down"}, status=500)
    chat(as_ada)
    assert counters(redis_client) == {"tpm": 0, "rpm": 1}


def test_a_refused_call_consumes_nothing(as_ada, router, chat, redis_client):
    limit(router, rpm=100, rpd=100, tpm=2, tpd=100)  # the prompt has 3 tokens
    for _ in range(3):
        assert chat(as_ada).status_code == 429
    assert counters(redis_client) == {}


def test_a_call_without_budget_gives_its_place_back(as_ada, router, ada, chat, redis_client):
    limit(router, rpm=100, tpm=100)
    router.cost_prompt_tokens = 1
    router.save()
    fund(ada, 0)
    assert chat(as_ada).status_code == 400
    assert counters(redis_client) == {"rpm": 0, "tpm": 0}


def test_a_changed_limit_starts_from_an_empty_counter(as_ada, router, chat):
    limit(router, rpm=1)
    assert [chat(as_ada).status_code for _ in range(2)] == [200, 429]
    limit(router, rpm=2)
    assert [chat(as_ada).status_code for _ in range(3)] == [200, 200, 429]


def test_limits_are_each_users_own_and_not_each_keys(gateway, router, ada, ben, key_of, chat):
    limit(router, rpm=1)
    with gateway.client(key_of(ada)) as first, gateway.client(key_of(ada)) as second, gateway.client(key_of(ben)) as b:
        assert [chat(client).status_code for client in (first, second, b)] == [200, 429, 200]


def test_counters_expire(as_ada, router, chat, redis_client):
    limit(router, rpm=5, rpd=5)
    chat(as_ada)
    lives = {key.decode().split(":")[2]: redis_client.ttl(key) for key in redis_client.keys("opengate:limit:*")}
    assert 0 < lives["rpm"] <= 60 < lives["rpd"] <= 86400


def test_a_counter_without_expiry_blocks_nobody(as_ada, router, ada, chat, redis_client):
    limit(router, rpm=5)
    redis_client.set(f"opengate:limit:rpm:{ada.id}:{router.id}:5", 1000)
    assert chat(as_ada).status_code == 200
    assert counters(redis_client) == {"rpm": 1}


def test_headers_tell_the_tightest_limit_of_each_kind(as_ada, router, chat):
    limit(router, rpm=5, rpd=3, tpm=100)
    headers = chat(as_ada).headers
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "2"
    assert headers["x-ratelimit-reset-requests"] == "24h0m0s"
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert headers["x-ratelimit-remaining-tokens"] == "97"
    assert headers["x-ratelimit-reset-tokens"] == "1m0s"


def test_unlimited_calls_have_no_limit_headers(as_ada, router, chat):
    assert not [name for name in chat(as_ada).headers if name.startswith("x-ratelimit")]


def test_a_stream_has_the_headers_too(as_ada, router, chat):
    limit(router, rpm=5)
    assert chat(as_ada, stream=True).headers["x-ratelimit-remaining-requests"] == "4"


def test_parallel_callers_get_exactly_the_limit(gateway, router, ada, key_of, chat):
    limit(router, rpm=20)
    key = key_of(ada)

    def call(_: int) -> int:
        with gateway.client(key) as client:
            return chat(client).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(60)))
    assert (answers.count(200), answers.count(429)) == (20, 40)


def test_an_emptied_redis_starts_a_new_epoch_and_empty_counters(as_ada, router, chat, redis_client):
    limit(router, rpm=1)
    assert [chat(as_ada).status_code for _ in range(2)] == [200, 429]
    before = int(redis_client.get(epoch.KEY))
    redis_client.flushdb()
    assert chat(as_ada).status_code == 200
    assert int(redis_client.get(epoch.KEY)) > before
