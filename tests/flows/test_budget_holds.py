"""200 callers and a budget worth 50 calls, through two web processes, also while everything is killed at random."""

import random
import threading
import time
from collections import Counter
from decimal import Decimal

import httpx
import pytest
from django.db.models import Sum

from accounts.models import User
from routing.models import Router
from tests.conftest import CHAT
from tests.flows.load import Callers
from tests.flows.worker import Worker
from tests.server import Server
from tests.upstream import EVENTS, Reply, completion, story
from tests.usage.records import fund, left
from usage import auditing, budgets, spool
from usage.models import Account, Reservation, UsageRecord

CALLERS, WORTH, COST = 200, 50, 21  # the upstream counts 9 and 12 tokens, of price 1
CERTAIN = 15  # what the gateway knows before the call: 3 tokens of prompt, and max_tokens
KILLED_WORTH, KILLS = 2500, 5
LEASE = {"OPENGATE_RESERVATION_LEASE_SECONDS": "2"}


@pytest.fixture
def priced(router):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    return router


@pytest.fixture(scope="module")
def _servers(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        started = [Server(**LEASE).start() for _ in range(2)]
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def servers(_servers, redis_client, priced):
    """Two web processes that the tests here share."""
    return _servers


def slow(upstream, seconds: float) -> None:
    def reply(request):
        if request.json.get("stream"):
            return Reply(story(), content_type=EVENTS, wait=seconds, gap=0.01)
        return completion()

    upstream.route("/v1/chat/completions", reply, wait=seconds)


def spent(user: User) -> Decimal:
    return Account.objects.get(user=user).spent


@pytest.mark.parametrize("fields", [{"max_tokens": 12}, {}], ids=["with max_tokens", "with what was learned"])
def test_200_callers_spend_a_budget_worth_50_calls_and_no_more(
    servers, ada, ben, key_of, chat, upstream, records, inflight, priced, fields
):
    if not fields:
        with servers[0].client(key_of(ben)) as client:  # somebody else was here before
            assert chat(client).status_code == 200
        records(1)
    fund(ada, WORTH * COST)
    slow(upstream, 0.05)
    key, calls = key_of(ada), iter(range(2 * CALLERS))
    ready = threading.Barrier(CALLERS)

    def call(client: httpx.Client, number: int) -> tuple[int, str]:
        if not ready.broken and number >= 0:
            try:
                ready.wait(30)  # all at once, the first time
                ready.abort()
            except threading.BrokenBarrierError:
                pass
        response = client.post("/v1/chat/completions", json=CHAT | fields | {"stream": number % 2 == 0})
        return response.status_code, response.text if response.status_code != 200 else ""

    answers = Callers(servers, [key] * CALLERS, call, lambda callers: next(calls, None) is None).join()
    counts = Counter(status for status, _ in answers)
    refusals = {text.partition('","')[0] for status, text in answers if status != 200}
    total = spent(ada)
    print(f"\n{len(answers)} calls of {CALLERS} callers: {dict(counts)}, spent {total} of {WORTH * COST}")
    assert refusals == {'{"detail":"Insufficient budget.'}
    assert set(counts) == {200, 400}
    assert total == counts[200] * COST
    assert WORTH * COST * 0.9 <= total <= (WORTH + 1) * COST
    assert (Account.objects.get(user=ada).reserved, Reservation.objects.count()) == (0, 0)
    assert inflight(priced) == 0
    assert auditing.audit().is_clean


def test_killing_web_and_worker_at_random_leaves_the_books_in_order(
    servers, redis_client, ada, key_of, upstream, priced, tmp_path
):
    chance = random.Random(5)
    fund(ada, KILLED_WORTH * COST)
    slow(upstream, 0.1)
    worker = Worker(tmp_path, **LEASE).start()
    key = key_of(ada)
    done = threading.Event()

    def call(client: httpx.Client, number: int) -> tuple[int, str]:
        try:
            response = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 12, "stream": number % 2 == 0})
        except httpx.TransportError:
            time.sleep(0.1)
            return 0, ""
        if response.status_code == 400:
            time.sleep(0.1)
        whole = response.status_code == 200 and (number % 2 or response.text.endswith("[DONE]\n\n"))
        return response.status_code if whole or response.status_code != 200 else 0, response.headers["x-request-id"]

    callers = Callers(servers, [key] * CALLERS, call, lambda callers: done.is_set())
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.3, 1.0))
            victim = chance.choice([*servers, worker])
            victim.kill()
            victim.start()
        deadline = time.monotonic() + 60
        while (left(ada) or 0) >= CERTAIN and time.monotonic() < deadline:
            time.sleep(0.1)
        done.set()
        answers = callers.join()
        worker.wait_until(lambda: not Reservation.objects.exists() and redis_client.xlen(spool.STREAM) == 0)
    finally:
        worker.stop()
    answered = {request_id for status, request_id in answers if status == 200}
    counts = Counter(status for status, _ in answers)
    outcomes = Counter(UsageRecord.objects.values_list("outcome", flat=True))
    most = UsageRecord.objects.aggregate(most=Sum("cost"))["most"]
    print(
        f"\nafter {KILLS} kills: {dict(counts)} answers, records {dict(outcomes)}, spent {spent(ada)}, left {left(ada)}"
    )
    assert set(counts) <= {0, 200, 400}
    assert answered <= set(UsageRecord.objects.values_list("request_id", flat=True))
    assert outcomes["recovered"] > 0
    assert spent(ada) == most <= (KILLED_WORTH + 1) * COST
    assert (left(ada) or 0) < CERTAIN
    budgets.recover()
    found = auditing.audit()
    assert found.is_clean, found.findings


def test_a_long_call_keeps_its_reservation_and_is_charged_what_it_was(
    servers, ada, key_of, chat, upstream, priced, records
):
    fund(ada, 1000)
    upstream.reply(chunks=story(), gap=0.6)  # seven events, and a lease of two seconds
    body = CHAT | {"stream": True}
    with servers[0].client(key_of(ada)) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for _ in answer.iter_raw():
            assert budgets.recover() == 0
    (record,) = records()
    assert (record.outcome, record.cost, left(ada)) == ("finished", COST, 1000 - COST)
    assert record.estimated_cost is not None


def test_budgets_may_be_changed_while_calls_go_on(servers, ada, admin, key_of, upstream, priced):
    slow(upstream, 0.01)
    fund(ada, 300)
    key, stop = key_of(ada), time.monotonic() + 3

    def call(client: httpx.Client, number: int) -> int:
        if number < 2:
            client.headers["Authorization"] = f"Bearer {admin_key}"
            amount = random.choice([None, 0, 50, 300])
            return client.patch(f"/v1/admin/users/{ada.id}", json={"budget": amount}).status_code
        return client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 12}).status_code

    admin_key = key_of(admin)
    answers = Callers(servers, [key] * 16, call, lambda callers: time.monotonic() > stop).join()
    counts = Counter(answers)
    print(f"\n{dict(counts)}")
    assert set(counts) == {200, 204, 400}
    spool.drain()  # calls while there was no budget
    account = Account.objects.get(user=ada)
    assert (account.spent, account.reserved) == (COST * counts[200], 0)
    assert auditing.audit().is_clean
