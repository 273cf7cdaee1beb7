"""Limits hold across processes, whatever the strategy."""

import time
from collections import Counter

import pytest

from tests.flows.load import Callers
from tests.server import Server
from usage.models import Limit

PROCESSES, CALLERS, CALLS, RPM = 4, 16, 1000, 100


@pytest.fixture
def web(redis_client, transactional_db):
    """Web processes: `web(4, OPENGATE_X="1")`."""
    started: list[Server] = []

    def _web(count, **settings):
        started.extend(Server(**settings).start() for _ in range(count))
        return started

    yield _web
    for server in started:
        server.stop()


def test_1000_calls_in_a_minute_through_4_processes_get_exactly_the_limit(web, router, ada, key_of, redis_client):
    Limit.objects.filter(type="rpm").update(value=RPM)
    servers, key = web(PROCESSES), key_of(ada)
    numbers = iter(range(CALLS))
    start = time.monotonic()

    def call(client, number) -> tuple[int, str | None]:
        response = client.post("/v1/chat/completions", json={"model": "model", "messages": []})
        return response.status_code, response.headers.get("retry-after")

    callers = Callers(servers, [key] * CALLERS, call, lambda callers: next(numbers, None) is None)
    answers = callers.join()
    seconds = time.monotonic() - start
    statuses = Counter(status for status, _ in answers)
    print(f"\n{len(answers)} calls through {PROCESSES} processes in {seconds:.1f} s: {dict(statuses)}")
    assert seconds < 60
    assert statuses == {200: RPM, 429: CALLS - RPM}
    assert all(1 <= int(wait) <= 60 for status, wait in answers if status == 429 and wait)
    assert all(wait for status, wait in answers if status == 429)
    assert all(redis_client.pttl(key) > 0 for key in redis_client.keys("opengate:limit:*"))


@pytest.mark.parametrize("strategy", ["moving_window", "sliding_window"])
def test_a_strategy_is_chosen_by_setting(web, router, ada, key_of, chat, upstream, strategy):
    Limit.objects.filter(type="rpm").update(value=3)
    Limit.objects.filter(type="tpm").update(value=25)  # the provider counts 9 tokens a call
    (server,) = web(1, OPENGATE_RATE_LIMITING_STRATEGY=strategy)
    with server.client(key_of(ada)) as client:
        answers = [chat(client) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        refused = answers[-1]
        assert refused.json()["detail"] == "3 requests per minute exceeded (remaining: 0)."
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"  # 27 were taken in the end
        assert 1 <= int(refused.headers["retry-after"]) <= 120
