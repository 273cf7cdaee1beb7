"""Calls beyond what a provider may have: another one, then the line, in order of priority; never more at once."""

import time
from collections import defaultdict

import pytest

from accounts.models import User
from routing import figures
from routing.models import Provider, Router
from tests.conftest import PASSWORD
from tests.flows.load import Callers
from tests.server import Server
from tests.upstream import completion

LIMIT, CALLERS, SECONDS = 4, 64, 12
PRIORITIES = (0, 1, 2, 3, 4)


@pytest.fixture
def web(redis_client, transactional_db):
    """Two web processes: `web(OPENGATE_X="1")`."""
    started: list[Server] = []

    def _web(count=2, **settings):
        started.extend(Server(**settings).start() for _ in range(count))
        return started

    yield _web
    for server in started:
        server.stop()


def limited(router: Router, metric: str, limit: float) -> None:
    for provider in router.providers.all():
        provider.qos_metric, provider.qos_limit = metric, limit
        provider.save()


def test_64_callers_at_4_places_in_two_processes(web, role, router, upstream, key_of, redis_client, inflight):
    limited(router, "inflight", LIMIT)
    upstream.route("/v1/chat/completions", completion(), wait=0.06)
    users = [
        User.objects.create_user(f"p{priority}@example.org", PASSWORD, role, priority=priority)
        for priority in PRIORITIES
    ]
    keys = [key_of(user) for user in users]
    servers = web()
    start = time.monotonic()

    def call(client, number) -> tuple[int, int, float, float]:
        begun = time.monotonic()
        response = client.post("/v1/chat/completions", json={"model": "model", "messages": []})
        assert response.status_code == 200, response.text
        return number, PRIORITIES[number % len(PRIORITIES)], begun - start, time.monotonic() - begun

    callers = Callers(
        servers,
        [keys[n % len(keys)] for n in range(CALLERS)],
        call,
        lambda callers: time.monotonic() > start + SECONDS,
    )
    answers = callers.join()

    waits = defaultdict(list)
    calls: dict[int, int] = defaultdict(int)
    for number, priority, begun, seconds in answers:
        calls[number] += 1
        if begun > 1:  # when all of them are there
            waits[priority].append(seconds)
    print(f"\n{len(answers)} calls in {SECONDS} s, at most {upstream.most_at_once} at once")
    print("priority  calls  median s  longest s  fewest calls of a caller")
    medians = []
    for priority in PRIORITIES:
        found = sorted(waits[priority])
        fewest = min(count for number, count in calls.items() if PRIORITIES[number % len(PRIORITIES)] == priority)
        medians.append(found[len(found) // 2])
        print(f"{priority:8}  {len(found):5}  {medians[-1]:8.2f}  {found[-1]:9.2f}  {fewest}")

    assert upstream.most_at_once == LIMIT
    assert len(calls) == CALLERS  # nobody starves
    assert medians == sorted(medians, reverse=True)
    assert medians[0] > 2 * medians[-1]
    assert len(answers) > 0.5 * SECONDS / 0.06 * LIMIT  # places are not left empty for long
    assert inflight(router) == 0
    assert redis_client.keys("opengate:line:*") == []


def test_a_full_provider_sends_calls_to_the_other(as_ada, router, upstream, chat, redis_client, records):
    other = Provider.objects.create(router=router, type="openai", url=upstream.url, model_name="other", timeout=5)
    full = router.providers.first()
    full.qos_metric, full.qos_limit = "inflight", 1
    full.save()
    redis_client.zadd(f"opengate:inflight:{full.id}", {"somebody": time.time() + 30})
    for _ in range(10):
        assert chat(as_ada).status_code == 200
    assert {record.provider_id for record in records(10)} == {other.id}


def test_who_waits_in_vain_gets_503_and_pays_nothing(web, router, upstream, ada, key_of, chat, redis_client, records):
    (server,) = web(1, OPENGATE_ROUTING_MAX_WAIT_SECONDS="0.5")
    limited(router, "inflight", 1)
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000)
    redis_client.zadd(f"opengate:inflight:{router.providers.get().id}", {"somebody": time.time() + 30})
    with server.client(key_of(ada)) as client:
        response = chat(client)
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert response.json()["detail"] == "Model is too busy after 0.5 seconds"
    assert upstream.received == []
    (record,) = records()
    assert (record.status, record.outcome, record.cost, record.total_tokens) == (503, "refused_midway", 0, 0)


@pytest.mark.parametrize(("metric", "limit"), [("ttft", 20), ("latency", 20), ("performance", 10_000)])
def test_a_provider_beyond_its_figure_has_one_call_at_a_time(
    router, upstream, ada, key_of, gateway, redis_client, metric, limit
):
    limited(router, metric, limit)
    for command in figures.recorded(router.providers.get().id, "earlier", figures.Sample(100, 100, 5.0)):
        redis_client.execute_command(*command)
    upstream.route("/v1/chat/completions", completion(), wait=0.03)

    def call(client, number) -> int:
        response = client.post("/v1/chat/completions", json={"model": "model", "messages": []})
        assert response.status_code == 200, response.text
        return number

    Callers([gateway], [key_of(ada)] * 8, call, lambda callers: len(callers.answers) >= 16).join()
    assert upstream.most_at_once == 1


def test_a_provider_within_its_figure_has_any_number(router, upstream, ada, key_of, gateway):
    limited(router, "latency", 10_000)
    upstream.route("/v1/chat/completions", completion(), wait=0.2)

    def call(client, number) -> int:
        assert client.post("/v1/chat/completions", json={"model": "model", "messages": []}).status_code == 200
        return number

    Callers([gateway], [key_of(ada)] * 8, call, lambda callers: len(callers.answers) >= 16).join()
    assert upstream.most_at_once == 8
