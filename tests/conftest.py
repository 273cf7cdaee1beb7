"""Three people, a scripted upstream and a real gateway.

ada owns things, ben shares her organization, eve is a stranger whose role opens no model.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import httpx
import pytest
import redis
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.contenttypes.management import create_contenttypes
from django.db import connection
from django.db.models.signals import post_migrate

from accounts.models import Key, Organization, Permission, Role, User
from opengate import epoch
from routing.models import Provider, Router
from routing.places import inflight_key
from tests.server import LACKING, USUAL, Server
from tests.upstream import Upstream
from usage import spool
from usage.models import Limit, UsageRecord

PASSWORD = "correct horse battery"


@cache
def _hashed() -> str:
    return make_password(PASSWORD)


def person(email: str, role: Role, **fields: Any) -> User:
    """A user whose password is PASSWORD; hashed once for all of them, since that takes its time on purpose."""
    return User.objects.create(email=email, password=_hashed(), role=role, **fields)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        if (why := LACKING.get(USUAL, {}).get(marker.args[0])) is not None:
            pytest.skip(why)


@pytest.fixture(scope="session", autouse=True)
def _lasting_content_types(django_db_setup: None) -> None:
    """Emptying the tables between tests leaves those of the content types: processes remember their numbers.

    So nobody has to look after each test whether all of them are there.
    """
    post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
    post_migrate.disconnect(create_contenttypes)
    introspection = connection.introspection
    names = introspection.django_table_names

    def lasting(*args: Any, **how: Any) -> list[str]:
        return [name for name in names(*args, **how) if name not in ("django_content_type", "auth_permission")]

    introspection.django_table_names = lasting  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def _quick_emptying() -> None:
    """Tables with a few rows are emptied by DELETE ten times quicker than by TRUNCATE, which makes new files.

    The locks wait, as those of TRUNCATE do, for whoever still writes.
    """

    def emptied(style: Any, tables: list[str], **how: Any) -> list[str]:
        names = [connection.ops.quote_name(table) for table in tables]
        lock = f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"
        deletes = [f"DELETE FROM {name}" for name in names]
        without_triggers = "SET LOCAL session_replication_role = replica"
        return ["; ".join([lock, without_triggers, *deletes])] if names else []

    connection.ops.sql_flush = emptied  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture
def upstream(_upstream: Upstream) -> Upstream:
    _upstream.reset()
    return _upstream


@pytest.fixture
def redis_client() -> Iterator[redis.Redis]:
    """An empty Redis, and so an epoch that no process knows."""
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.flushdb()
        epoch.observe(epoch.UNKNOWN)
        yield client


@pytest.fixture(scope="session")
def _gateway(django_db_setup: None, django_db_blocker: Any) -> Iterator[Server]:
    with django_db_blocker.unblock():
        server = Server().start()
    yield server
    server.stop()


@pytest.fixture
def gateway(_gateway: Server, transactional_db: None, redis_client: redis.Redis) -> Server:
    """A web process that all tests share, with nothing left of the last one."""
    return _gateway


@pytest.fixture
def organization(transactional_db: None) -> Organization:
    return Organization.objects.create(name="Ministry of Tests")


@pytest.fixture
def role(transactional_db: None) -> Role:
    return Role.objects.create(name="developers")


@pytest.fixture
def ada(role: Role, organization: Organization) -> User:
    return person("ada@example.org", role, organization=organization)


@pytest.fixture
def ben(role: Role, organization: Organization) -> User:
    return person("ben@example.org", role, organization=organization)


@pytest.fixture
def eve(transactional_db: None) -> User:
    return person("eve@example.org", Role.objects.create(name="strangers"))


@pytest.fixture
def admin(transactional_db: None) -> User:
    role = Role.objects.create(name="admin", permissions=Permission.values)
    return person("admin@example.org", role)


@pytest.fixture
def key_of() -> Callable[..., str]:
    return lambda user, name="test", expires=None: Key.objects.issue(user, name, expires)[1]


@pytest.fixture
def router(role: Role, upstream: Upstream) -> Router:
    """`model`, served by the scripted upstream, open without limits to ada and ben."""
    router = Router.objects.create(name="model", type="text-generation")
    Provider.objects.create(
        router=router, type="openai", url=upstream.url, key="upstream-secret", model_name="upstream-name", timeout=5
    )
    Limit.objects.open_router(role, router)
    return router


@pytest.fixture
def as_ada(gateway: Server, ada: User, key_of: Callable[..., str]) -> Iterator[httpx.Client]:
    with gateway.client(key_of(ada)) as client:
        yield client


@pytest.fixture
def as_eve(gateway: Server, eve: User, key_of: Callable[..., str]) -> Iterator[httpx.Client]:
    with gateway.client(key_of(eve)) as client:
        yield client


CHAT = {"model": "model", "messages": [{"role": "user", "content": "Say hello."}]}


@pytest.fixture
def chat() -> Callable[..., httpx.Response]:
    """Post a chat with fields of one's own: `chat(client, temperature=1)`."""
    return lambda client, **fields: client.post("/v1/chat/completions", json=CHAT | fields)


@pytest.fixture
def records(redis_client: redis.Redis) -> Callable[..., list[UsageRecord]]:
    """Drain the spool until there are `count` usage records, and answer them, oldest first."""

    def _records(count: int = 1) -> list[UsageRecord]:
        deadline = time.monotonic() + 10
        while True:
            spool.drain()
            found = list(UsageRecord.objects.order_by("id"))
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    return _records


@pytest.fixture
def inflight(redis_client: redis.Redis) -> Callable[[Router], int]:
    """How many calls hold a place at the router's providers, once those that end have left."""

    def _inflight(router: Router) -> int:
        deadline = time.monotonic() + 5
        while True:
            held = sum(redis_client.zcard(inflight_key(provider.id)) for provider in router.providers.all())
            if not held or time.monotonic() > deadline:
                return int(held)
            time.sleep(0.02)

    return _inflight
