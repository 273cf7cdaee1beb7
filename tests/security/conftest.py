"""A web process to attack, and a look at it after each attack: it answers, and nothing broke or grew in it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.security.wire import MAX_BODY, Target
from usage import spool
from usage.models import UsageRecord

GROWTH = 96 * 1024 * 1024  # a few passwords that are hashed at a time take half of it; a bomb takes far more


@pytest.fixture(scope="session")
def _target(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    target = Target(
        OPENGATE_MAX_BODY_BYTES=str(MAX_BODY),
        OPENGATE_MAX_HELD_BODY_BYTES=str(3 * MAX_BODY),
        OPENGATE_REQUEST_PATIENCE_SECONDS="2",
        OPENGATE_LOGIN_FAILURES="4",
    )
    with open(tmp_path_factory.mktemp("security") / "log", "wb") as target.log, django_db_blocker.unblock():
        target.start()
        yield target
        target.stop()


@pytest.fixture
def target(_target: Target, transactional_db: None, redis_client: Any) -> Iterator[Target]:
    """The process, which is seen to be well when the test is over."""
    before, said = _target.memory(), len(_target.said())
    yield _target
    with _target.client() as client:
        assert client.get("/health").status_code == 200
    log = _target.said()[said:]
    assert "Traceback" not in log, log[-3000:]
    assert "Exception in ASGI" not in log, log[-3000:]
    grown = _target.memory() - before
    assert grown < GROWTH, f"{grown // 1024 // 1024} MiB more than before"


@pytest.fixture
def unused(redis_client: Any) -> Iterator[None]:
    """Nothing that the test sends is a call: none is recorded."""
    yield
    spool.drain()
    assert not UsageRecord.objects.exists()
