"""docs/faults.md, row by row: the fault is brought about at a running gateway, the answer held against the table."""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import connection

from knowledge.models import Collection, Space
from routing.models import Provider
from tests.conftest import CHAT, PASSWORD
from tests.flows.test_outages import over_postgres, over_redis
from tests.knowledge.conftest import EMBEDDINGS, add_to, embedding, embeddings_router, upload
from tests.playground.conftest import session_of
from tests.proxy import Proxy
from tests.server import ROOT, Server, free_port
from tests.upstream import EVENTS, Reply, Upstream, story
from tests.usage.records import fund
from usage.models import Limit

TABLE = ROOT / "docs" / "faults.md"
LONGEST_SECONDS = 10
KNOWN = "a chat by a key that was used lately"


@dataclass(frozen=True)
class Row:
    dependency: str
    fault: str
    request: str
    status: int


def rows() -> list[Row]:
    lines = [re.split(r"\s*\|\s*", line.strip().strip("|").strip()) for line in TABLE.read_text().splitlines()]
    return [
        Row(cells[0], cells[1], cells[2], int(cells[3])) for cells in lines if len(cells) >= 4 and cells[3].isdigit()
    ]


def by_fault() -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows():
        found[row.dependency, row.fault].append(row)
    return found


@dataclass
class Cables:
    """What runs between the gateway and all it needs, for a test to break."""

    postgres: Proxy
    redis: Proxy
    servers: dict[bool, Server] = field(default_factory=dict)  # by whether limits open when Redis is away


@pytest.fixture(scope="module")
def cables(django_db_setup, django_db_blocker, _upstream) -> Iterator[Cables]:
    with tempfile.TemporaryDirectory(prefix="og-") as name, django_db_blocker.unblock():
        folder = Path(name)
        postgres = Proxy(folder / ".s.PGSQL.5432", f"{connection.settings_dict['HOST']}/.s.PGSQL.5432")
        redis = Proxy(folder / "redis", settings.REDIS_URL.removeprefix("unix://").partition("?")[0])
        made = Cables(postgres, redis)
        for is_open in (True, False):
            made.servers[is_open] = Server(
                "uvicorn",
                **over_postgres(folder),
                **over_redis(folder),
                OPENGATE_DATABASE_TIMEOUT_SECONDS="0.5",
                OPENGATE_DATABASE_PATIENCE_SECONDS="2",
                OPENGATE_LIMITS_FAIL_OPEN=str(is_open),
                OPENGATE_OIDC_ISSUER=f"{_upstream.url}issuer",
                OPENGATE_OIDC_CLIENT_ID="opengate",
                OPENGATE_OIDC_TIMEOUT_SECONDS="1",
                OPENGATE_TRACES="true",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"{_upstream.url}collector",
                OTEL_BSP_SCHEDULE_DELAY="100",
            ).start()
        yield made
        for server in made.servers.values():
            server.stop()
        postgres.close()
        redis.close()


@pytest.fixture
def ask(cables, redis_client, router, role, ada, ben, admin, key_of, upstream) -> Iterator[Callable[[Row], Any]]:
    """Ask as a row says: `ask(row)`. Everybody but the newcomer has asked before."""
    upstream.route(EMBEDDINGS, embedding)
    space = Space.objects.of(embeddings_router(upstream, role))
    collection = Collection.objects.create(name="adas", owner=ada, space=space, language="english")
    router.cost_prompt_tokens = router.cost_completion_tokens = 1
    router.save()
    Limit.objects.filter(type="rpm").update(value=1000)
    fund(ben, 1000)
    keys = {"ada": key_of(ada), "ben": key_of(ben), "admin": key_of(admin), "newcomer": key_of(ada, "new")}
    login = {"email": admin.email, "password": PASSWORD}
    names = iter(range(1000))
    with ExitStack() as clients:

        def of(row: Row, person: str) -> httpx.Client:
            server = cables.servers["closed by setting" not in row.dependency]
            client = clients.enter_context(server.client(keys.get(person)))
            client.timeout = LONGEST_SECONDS
            if not person:
                client.cookies.set(settings.SESSION_COOKIE_NAME, session)
            return client

        def chat(row: Row, person: str, **fields: Any) -> httpx.Response:
            return of(row, person).post("/v1/chat/completions", json=CHAT | fields)

        def _ask(row: Row) -> httpx.Response:
            match row.request:
                case "a chat by a key that was used lately":
                    return chat(row, "ada")
                case "a streamed chat":
                    return chat(row, "ada", stream=True)
                case "a chat by a user with a budget":
                    return chat(row, "ben")
                case "a chat by a new key":
                    return chat(row, "newcomer")
                case "a search":
                    return of(row, "ada").post("/v1/search", json={"query": "canteen"})
                case "an upload":
                    return upload(of(row, "ada"), collection, f"Number {next(names)}.")
                case "a list of rows":
                    return of(row, "admin").get("/v1/admin/roles")
                case "a change of a row":
                    return of(row, "admin").post("/v1/admin/roles", json={"name": f"role {next(names)}"})
                case "a login":
                    return of(row, "").post("/v1/auth/login", json=login)
                case "a page of the console":
                    return of(row, "").get("/admin/routing/router/")
                case "a sign-in by it":
                    return of(row, "").get("/auth/oidc/login")
                case "the liveness probe":
                    return of(row, "").get("/health")
                case "the readiness probe":
                    return of(row, "").get("/health/ready")
            raise AssertionError(f"Nobody knows how to ask {row.request}.")

        session = session_of(admin)
        for dependency in ("", "closed by setting"):
            for request in (KNOWN, "a chat by a user with a budget", "a list of rows", "a page of the console"):
                deadline = time.monotonic() + 10  # the last fault may still be felt
                while (answer := _ask(Row(dependency, "", request, 200))).status_code != 200:
                    assert time.monotonic() < deadline, answer.text
                    time.sleep(0.05)
        add_to(of(Row("", "", "", 0), "ada"), collection, "The canteen opens at noon.")
        yield _ask


@contextmanager
def broken(cable: Proxy, fault: str) -> Iterator[None]:
    {"dead": cable.cut, "slow": cable.freeze}[fault]()
    try:
        yield
    finally:
        cable.mend()


@contextmanager
def read_only() -> Iterator[None]:
    """Postgres takes no writes but ours, as a replica after a failover."""

    def say(*statements: str) -> None:
        with connection.cursor() as cursor:
            for statement in (*statements, "SELECT pg_reload_conf()"):
                cursor.execute(statement)

    say("SET default_transaction_read_only = off", "ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        yield
    finally:
        say("ALTER SYSTEM RESET default_transaction_read_only")


@contextmanager
def replica(redis_client: Any) -> Iterator[None]:
    redis_client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        yield
    finally:
        redis_client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def full(redis_client: Any) -> Iterator[None]:
    redis_client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        redis_client.config_set("maxmemory", "0")


@contextmanager
def without_disk(redis_client: Any) -> Iterator[None]:
    """A folder stands where it saves its data."""
    where = redis_client.config_get("dir")["dir"], redis_client.config_get("dbfilename")["dbfilename"]
    place = Path(*where)
    place.unlink(missing_ok=True)
    (place / "full").mkdir(parents=True)
    redis_client.config_set("save", "3600 1")
    save(redis_client, "err")
    try:
        yield
    finally:
        rmtree(place)
        save(redis_client, "ok")
        redis_client.config_set("save", "")


def save(redis_client: Any, outcome: str) -> None:
    redis_client.bgsave()
    deadline = time.monotonic() + 10
    while (found := redis_client.info("persistence"))["rdb_bgsave_in_progress"] or (
        found["rdb_last_bgsave_status"] != outcome
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


NOTHING = Reply([], then="cut")
LIE = Reply([b"<html>Welcome!</html>"])
ELSEWHERE = Reply([b""], status=302, headers={"Location": "http://127.0.0.1:9/"})
SILENT = Reply([], wait=60)
CUT = Reply(story()[:2], content_type=EVENTS, then="cut")
STALLED = Reply(story()[:2], content_type=EVENTS, then="stall")
TRICKLE = Reply(story(), content_type=EVENTS, head_gap=0.5)
PROVIDER_FAULTS = {
    "trickles": TRICKLE,
    "lying": LIE,
    "sends elsewhere": ELSEWHERE,
    "slow": SILENT,
    "falls silent": STALLED,
    "cuts off": CUT,
}


@contextmanager
def spoiled(upstream: Upstream, fault: str, *, has_another: bool) -> Iterator[None]:
    """All providers do wrong, or each has a second one that does."""
    for provider in list(Provider.objects.all()):
        url = f"http://127.0.0.1:{free_port()}/" if fault == "dead" else f"{upstream.url}bad/"
        if has_another:
            provider.pk = None
        provider.url, provider.timeout = url, 1
        provider.save()
    if fault != "dead":
        for path in ("/bad/v1/chat/completions", "/bad/v1/embeddings"):
            upstream.route(path, lambda request: PROVIDER_FAULTS[fault])
    yield


@contextmanager
def away(upstream: Upstream, path: str, fault: str) -> Iterator[None]:
    """What we ask at that path does wrong."""
    upstream.route(path, lambda request: {"dead": NOTHING, "slow": SILENT, "lying": LIE}[fault])
    yield


@contextmanager
def without_storage() -> Iterator[None]:
    """A file stands where the folder was."""
    folder = Path(settings.STORAGES["documents"]["OPTIONS"]["location"])
    kept = folder.rename(folder.with_name("kept"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        kept.rename(folder)


@pytest.fixture
def happens(cables, redis_client, upstream) -> Callable[[str, str], AbstractContextManager[None]]:
    """What brings a fault about, and mends it in the end."""

    def _happens(dependency: str, fault: str) -> AbstractContextManager[None]:
        match dependency, fault:
            case "Postgres", "lying":
                return read_only()
            case "Postgres", _:
                return broken(cables.postgres, fault)
            case _, "lying" if dependency.startswith("Redis"):
                return replica(redis_client)
            case "Redis", "full":
                return full(redis_client)
            case "Redis", "has no disk":
                return without_disk(redis_client)
            case _, _ if dependency.startswith("Redis"):
                return broken(cables.redis, fault)
            case (("the only provider" | "one provider of two"), _):
                return spoiled(upstream, fault, has_another=dependency == "one provider of two")
            case "the identity provider", _:
                return away(upstream, "/issuer/.well-known/openid-configuration", fault)
            case "the collector of traces", _:
                return away(upstream, "/collector/v1/traces", fault)
            case "the documents' storage", "dead":
                return without_storage()
            case "the worker", "dead":
                return nullcontext()  # there is none here
        raise AssertionError(f"Nobody knows how {dependency} could be {fault}.")

    return _happens


@pytest.mark.parametrize(("dependency", "fault"), by_fault(), ids=str)
def test_the_answer_is_the_one_in_the_table(ask, happens, dependency, fault):
    wrong: list[tuple[Any, ...]] = []

    def hold(row: Row) -> None:
        try:
            answer = ask(row)
        except httpx.TimeoutException:
            wrong.append((row.request, "no answer"))
            return
        if answer.status_code != row.status:
            wrong.append((row.request, answer.status_code, answer.text[-300:]))

    wanted = by_fault()[dependency, fault]
    times = 6 if dependency == "one provider of two" else 1  # the other one may be asked first
    with happens(dependency, fault), ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(hold, wanted * times))
    assert wrong == []
