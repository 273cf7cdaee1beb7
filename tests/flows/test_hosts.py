"""Two web hosts and two workers, each in a network of its own, on one Postgres and Redis: what holds, holds across."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest
from django.conf import settings
from django.db import connection

from accounts.models import User
from knowledge.models import Collection, Document, Space
from routing.models import Provider
from tests.conftest import CHAT
from tests.flows import hosts
from tests.flows.hosts import Host, HostedServer, HostedWorker, Relay
from tests.flows.load import Callers
from tests.knowledge.conftest import EMBEDDINGS, embedding, embeddings_router, upload
from tests.upstream import completion
from tests.usage.records import fund, left
from usage import auditing
from usage.models import Limit, UsageRecord

pytestmark = pytest.mark.skipif(not hosts.may_be_made(), reason="networks are made by root, with iproute2, on Linux")

CALLERS, PLACES, LEASE_SECONDS = 16, 3, 3


@dataclass
class Installation:
    web: list[HostedServer]
    upstream_url: str  # as the hosts know it


@pytest.fixture(scope="module")
def installation(django_db_setup, django_db_blocker, tmp_path_factory, _upstream) -> Iterator[Installation]:
    database = connection.settings_dict
    with ExitStack() as stack, django_db_blocker.unblock():
        name = f"og{os.getpid()}"
        switch = Host(f"{name}s")
        stack.callback(switch.remove)
        data, callers, *places = [
            Host(f"{name}{letter}", f"10.77.0.{number}", switch) for number, letter in enumerate("dcab", 1)
        ]
        for host in (data, callers, *places):
            stack.callback(host.remove)
        postgres = Relay((data.address, 5432), f"{database['HOST']}/.s.PGSQL.5432", at=data)
        redis = Relay((data.address, 6379), settings.REDIS_URL.removeprefix("unix://").partition("?")[0], at=data)
        provider = Relay((data.address, 8080), ("127.0.0.1", _upstream.port), at=data)
        for relay in (postgres, redis, provider):
            stack.callback(relay.close)
        variables = {
            "DATABASE_URL": f"postgresql://{database['USER']}@{data.address}/{database['NAME']}",
            "REDIS_URL": f"redis://{data.address}/0",
            "OPENGATE_RESERVATION_LEASE_SECONDS": str(LEASE_SECONDS),
            "OPENGATE_UPLOAD_WAIT_SECONDS": "30",
            "OPENGATE_ALLOWED_HOSTS": "*",
        }
        web = [HostedServer(host, callers, **variables) for host in places]
        for host in places:
            worker = HostedWorker(host, tmp_path_factory.mktemp("worker"), **variables)
            stack.callback(worker.stop)
            worker.start()
        for server in web:
            stack.callback(server.stop)
            server.start()
        yield Installation(web, f"http://{data.address}:8080/")


@pytest.fixture
def web(installation, router, redis_client) -> list[HostedServer]:
    """Both hosts' servers, and a model whose provider they reach."""
    for provider in Provider.objects.all():
        provider.url = installation.upstream_url
        provider.save()
    return installation.web


def statuses(web: list[HostedServer], key: str, calls: int) -> Counter[int]:
    """So many calls at once, through both hosts in turn."""
    numbers = iter(range(calls))

    def call(client: httpx.Client, number: int) -> int:
        return client.post("/v1/chat/completions", json=CHAT).status_code

    callers = Callers(web, [key] * CALLERS, call, lambda callers: next(numbers, None) is None)
    return Counter(callers.join())


def recorded(user: User, count: int) -> list[UsageRecord]:
    """The user's records, which the workers write, once there are so many."""
    deadline = time.monotonic() + 10 * LEASE_SECONDS
    while (found := UsageRecord.objects.filter(user_id=user.pk)).count() < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(found)


def test_a_limit_is_one_for_all_hosts(web, ada, key_of):
    Limit.objects.filter(type="rpm").update(value=30)
    assert statuses(web, key_of(ada), 90) == {200: 30, 429: 60}


def test_a_budget_is_one_for_all_hosts(web, router, ada, key_of):
    router.cost_prompt_tokens = router.cost_completion_tokens = 1_000_000
    router.save()
    fund(ada, 21 * 20)  # worth twenty calls, or what they may need at most
    answered = statuses(web, key_of(ada), 60)
    assert set(answered) == {200, 400}
    assert len(recorded(ada, answered[200])) == answered[200] <= 20
    assert left(ada) == 21 * (20 - answered[200])
    assert auditing.audit().is_clean


def test_a_place_at_a_provider_is_one_for_all_hosts(web, router, ada, key_of, upstream, inflight):
    for provider in router.providers.all():
        provider.qos_metric, provider.qos_limit = "inflight", PLACES
        provider.save()
    upstream.route("/v1/chat/completions", completion(), wait=0.03)
    assert statuses(web, key_of(ada), 60) == {200: 60}
    assert upstream.most_at_once == PLACES
    assert inflight(router) == 0


def test_a_change_at_one_host_is_in_force_at_the_next_request_of_the_other(web, admin, ada, key_of, chat):
    here, there = web
    made = key_of(ada)
    with here.client(key_of(admin)) as console, there.client(made) as caller:
        assert chat(caller).status_code == 200
        (key,) = (row["id"] for row in console.get("/v1/admin/tokens").json()["data"] if row["user"] == ada.id)
        assert console.delete(f"/v1/admin/tokens/{key}").status_code == 204
        assert chat(caller).status_code == 401


def test_documents_sent_to_both_hosts_are_read_by_the_workers_and_found_at_both(
    web, installation, role, ada, key_of, upstream
):
    upstream.route(EMBEDDINGS, embedding)
    space = Space.objects.of(embeddings_router(upstream, role))
    Provider.objects.update(url=installation.upstream_url)
    collection = Collection.objects.create(name="adas", owner=ada, space=space, language="english")
    key = key_of(ada)
    for number in range(6):
        with web[number % 2].client(key) as client:
            assert upload(client, collection, f"Number {number} of the canteen.").status_code == 202
    deadline = time.monotonic() + 30
    while Document.objects.exclude(status="ready").exists():
        assert time.monotonic() < deadline, list(Document.objects.values("status", "error"))
        time.sleep(0.05)
    for server in web:
        with server.client(key) as client:
            found = client.post("/v1/search", json={"query": "canteen", "method": "lexical"}).json()["data"]
            assert len(found) == 6


def test_a_host_that_is_cut_off_leaves_neither_places_nor_reservations(web, router, ada, key_of, upstream):
    router.cost_prompt_tokens = router.cost_completion_tokens = 1_000_000
    router.save()
    fund(ada, 10_000)
    here, there = web
    with ThreadPoolExecutor(1) as pool, there.client(key_of(ada)) as caller:
        assert caller.post("/v1/chat/completions", json=CHAT).status_code == 200
        upstream.reply(completion(), wait=60)
        pool.submit(statuses, [here], key_of(ada), 1)  # nobody hears of it again
        while len(upstream.received) < 2:
            time.sleep(0.01)
        here.host.unplug()
        try:
            assert caller.post("/v1/chat/completions", json=CHAT).status_code == 200
            outcomes = Counter(record.outcome for record in recorded(ada, 3))
        finally:
            here.host.plug()
        assert outcomes == {"finished": 2, "recovered": 1}
        assert auditing.audit().is_clean
