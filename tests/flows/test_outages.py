"""Redis or Postgres away: what goes on, what says 503, and what is made good afterwards."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from django.conf import settings
from django.db import connection

from accounts.models import Key
from routing.models import Router
from tests.conftest import CHAT, PASSWORD
from tests.proxy import Proxy
from tests.server import Server
from tests.upstream import completion
from tests.usage.records import fund, left
from usage import auditing
from usage.models import Limit, Reservation


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="og-") as name:  # socket paths must be short
        yield Path(name)


@pytest.fixture
def redis_cable(folder, redis_client) -> Iterator[Proxy]:
    proxy = Proxy(folder / "redis", settings.REDIS_URL.removeprefix("unix://").partition("?")[0])
    yield proxy
    proxy.close()


@pytest.fixture
def postgres_cable(folder, transactional_db) -> Iterator[Proxy]:
    proxy = Proxy(folder / ".s.PGSQL.5432", f"{connection.settings_dict['HOST']}/.s.PGSQL.5432")
    yield proxy
    proxy.close()


@pytest.fixture
def serve(folder) -> Iterator:
    """Start a web process on the cables, with variables of one's own."""
    servers: list[Server] = []

    def _serve(**variables: str) -> Server:
        servers.append(Server("uvicorn", **variables).start())
        return servers[-1]

    yield _serve
    for server in servers:
        server.stop()


def over_redis(folder: Path) -> dict[str, str]:
    return {"REDIS_URL": f"unix://{folder}/redis?db=0", "OPENGATE_REDIS_TIMEOUT_SECONDS": "0.1"}


def over_postgres(folder: Path) -> dict[str, str]:
    name, user = connection.settings_dict["NAME"], connection.settings_dict["USER"]
    return {"DATABASE_URL": f"postgresql://{user}@{quote(str(folder), safe='')}/{name}"}


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_without_redis_calls_go_on_unlimited_and_are_counted_later(
    serve, folder, redis_cable, router, ada, key_of, chat, records, inflight, how
):
    Limit.objects.filter(type="rpm").update(value=1)
    server = serve(**over_redis(folder))
    with server.client(key_of(ada)) as client:
        assert [chat(client).status_code for _ in range(2)] == [200, 429]
        getattr(redis_cable, how)()
        started = time.monotonic()
        assert [chat(client, stream=bool(n % 2)).status_code for n in range(6)] == [200] * 6
        assert time.monotonic() - started < 5
        redis_cable.mend()
        assert len(records(7)) == 7
        deadline = time.monotonic() + 5
        while chat(client).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert chat(client).status_code == 429  # limits are back
    assert inflight(router) == 0


def test_without_redis_limits_may_close_by_setting(serve, folder, redis_cable, router, ada, key_of, chat):
    server = serve(**over_redis(folder), OPENGATE_LIMITS_FAIL_OPEN="false")
    with server.client(key_of(ada)) as client:
        assert chat(client).status_code == 200
        redis_cable.cut()
        refused = chat(client)
        assert refused.status_code == 503
        assert refused.json()["detail"] == "Rate limits cannot be checked, please try again later."
        assert client.get("/health/ready").json()["checks"]["redis"] == "away"
        assert client.get("/health").status_code == 200


def test_a_change_made_while_redis_is_away_is_in_force_within_seconds(
    serve, folder, redis_cable, router, ada, key_of, chat
):
    server = serve(**over_redis(folder))
    with server.client(key_of(ada)) as client:
        assert chat(client).status_code == 200
        redis_cable.cut()
        Key.objects.all()._raw_delete("default")  # nobody is told
        deadline = time.monotonic() + 5
        while chat(client).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert chat(client).status_code == 401


def test_without_postgres_known_keys_go_on_and_nobody_hears_401(
    serve, folder, postgres_cable, router, ada, ben, key_of, chat, records
):
    server = serve(**over_postgres(folder))
    ada_key, ben_key = key_of(ada), key_of(ben)
    with server.client(ada_key) as known, server.client(ben_key) as unknown:
        assert chat(known).status_code == 200
        postgres_cable.cut()
        assert [chat(known).status_code for _ in range(3)] == [200] * 3
        refused = chat(unknown)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert refused.json()["detail"] == "The database is away, please try again later."
        assert unknown.get("/v1/models").status_code == 503
        assert known.get("/health/ready").json()["checks"]["postgres"] == "away"
        postgres_cable.mend()
        assert chat(unknown).status_code == 200
    assert len(records(5)) == 5


def test_without_postgres_a_budget_cannot_be_known(serve, folder, postgres_cable, router, ada, key_of, chat):
    router.cost_prompt_tokens = 1
    router.save()
    fund(ada, 10)
    server = serve(**over_postgres(folder))
    with server.client(key_of(ada)) as client:
        assert chat(client).status_code == 200
        postgres_cable.cut()
        assert chat(client).status_code == 503
        postgres_cable.mend()
        assert chat(client).status_code == 200


def test_a_postgres_that_does_not_answer_holds_up_nobody_for_long(
    serve, folder, postgres_cable, router, ada, ben, key_of, chat, records, upstream
):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    fund(ada, 1000)
    server = serve(**over_postgres(folder), OPENGATE_DATABASE_TIMEOUT_SECONDS="0.5")
    with server.client(key_of(ada)) as client, server.client(key_of(ben)) as other:
        assert [chat(client).status_code, chat(other).status_code] == [200, 200]
        upstream.reply(completion(), wait=1)
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(chat, client)
            while len(upstream.received) < 3:  # so the call knows that its money is reserved
                time.sleep(0.01)
            postgres_cable.freeze()
            assert under_way.result(10).status_code == 200  # settled by the spool
        started = time.monotonic()
        assert chat(client).status_code == 503
        assert chat(other).status_code == 200
        assert time.monotonic() - started < 3
        postgres_cable.mend()
        assert len(records(4)) == 4
        deadline = time.monotonic() + 10
        while Reservation.objects.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert left(ada) == 1000 - 2 * 21
    assert auditing.audit().is_clean


def test_a_caller_who_leaves_while_postgres_stands_still_is_charged_nothing(
    serve, folder, postgres_cable, router, ada, key_of, chat, records
):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    fund(ada, 1000)
    server = serve(**over_postgres(folder))
    with server.client(key_of(ada)) as client:
        assert chat(client).status_code == 200
        postgres_cable.freeze()
        with pytest.raises(httpx.TimeoutException):
            client.post("/v1/chat/completions", json=CHAT, timeout=0.3)
        postgres_cable.mend()
        assert chat(client).status_code == 200
        deadline = time.monotonic() + 10
        while Reservation.objects.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(records(2)) == 2
    assert left(ada) == 1000 - 2 * 21
    assert auditing.audit().is_clean


def test_a_process_starts_without_postgres_and_serves_once_it_is_there(
    serve, folder, postgres_cable, router, ada, key_of, chat
):
    key = key_of(ada)
    postgres_cable.cut()
    server = serve(**over_postgres(folder))
    with server.client(key) as client:
        assert chat(client).status_code == 503
        postgres_cable.mend()
        assert chat(client).status_code == 200


def test_without_postgres_rows_say_503_to_whoever_asks(serve, folder, postgres_cable, admin, eve, key_of):
    server = serve(**over_postgres(folder))
    admin_key, unknown_key = key_of(admin), key_of(eve)
    with server.client(admin_key) as known, server.client(unknown_key) as unknown:
        assert known.get("/v1/admin/roles").status_code == 200
        postgres_cable.cut()
        answers = [
            known.get("/v1/admin/roles"),
            known.post("/v1/admin/roles", json={"name": "new"}),
            known.patch("/v1/me/info", json={"name": "new"}),
            unknown.get("/v1/me/info"),
            unknown.post("/v1/auth/login", json={"email": admin.email, "password": PASSWORD}),
        ]
        detail = "The database is away, please try again later."
        assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(503, detail)] * 5
        assert {answer.headers["retry-after"] for answer in answers} == {"10"}
        postgres_cable.mend()
        assert known.post("/v1/admin/roles", json={"name": "new"}).status_code == 201


def test_without_redis_rows_are_read_and_changed(serve, folder, redis_cable, admin, key_of):
    server = serve(**over_redis(folder))
    with server.client(key_of(admin)) as client:
        assert client.get("/v1/admin/roles").status_code == 200
        redis_cable.cut()
        made = client.post("/v1/me/keys", json={"name": "new"})
        assert made.status_code == 201
        with server.client(made.json()["key"]) as newcomer:
            assert newcomer.get("/v1/me/info").status_code == 200
            assert client.delete(f"/v1/me/keys/{made.json()['id']}").status_code == 204
            deadline = time.monotonic() + 5
            while newcomer.get("/v1/me/info").status_code == 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert newcomer.get("/v1/me/info").status_code == 401
