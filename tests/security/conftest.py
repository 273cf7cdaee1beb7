"""A web process to attack, and a look at it after each attack: it answers, and nothing broke or grew in it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from tests.security.wire import MAX_BODY, Target
from tests.server import USUAL
from usage import spool
from usage.models import UsageRecord

GROWTH = 96 * 1024 * 1024  # a few passwords that are hashed at a time take half of it; a bomb takes far more


@pytest.fixture(scope="session")
def _targets(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Target]]:
    """The process to attack, of the server of that kind; each is started once."""
    with ExitStack() as stack:

        @cache
        def started(kind: str) -> Target:
            target = Target(
                kind,
                OPENGATE_MAX_BODY_BYTES=str(MAX_BODY),
                OPENGATE_MAX_HELD_BODY_BYTES=str(3 * MAX_BODY + 65_536),  # three of the longest, and small ones
                OPENGATE_REQUEST_PATIENCE_SECONDS="2",
                OPENGATE_LOGIN_FAILURES="4",
            )
            target.log = stack.enter_context(open(tmp_path_factory.mktemp("security") / "log", "wb"))
            with django_db_blocker.unblock():
                target.start()
            stack.callback(target.stop)
            return target

        yield started


@pytest.fixture
def target(_targets: Callable[[str], Target], transactional_db: None, redis_client: Any) -> Iterator[Target]:
    """The process, which is seen to be well when the test is over."""
    yield from _seen_to_be_well(_targets(USUAL))


@pytest.fixture
def serve(_targets: Callable[[str], Target], transactional_db: None, redis_client: Any) -> Iterator[Target]:
    """The same of `manage.py serve`, whose bounds and strictness on the wire no other server has."""
    yield from _seen_to_be_well(_targets("uvicorn"))


def _seen_to_be_well(target: Target) -> Iterator[Target]:
    before, said = target.memory(), len(target.said())
    yield target
    with target.client() as client:
        assert client.get("/health").status_code == 200
    log = target.said()[said:]
    assert "Traceback" not in log, log[-3000:]
    assert "Exception in ASGI" not in log, log[-3000:]
    grown = target.memory() - before
    assert grown < GROWTH, f"{grown // 1024 // 1024} MiB more than before"


@pytest.fixture
def unused(redis_client: Any) -> Iterator[None]:
    """Nothing that the test sends is a call: none is recorded."""
    yield
    spool.drain()
    assert not UsageRecord.objects.exists()
