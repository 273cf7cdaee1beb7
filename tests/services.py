"""A pytest plugin: real Postgres and Valkey for the whole run, started before Django reads its settings."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from opengate.embedded import running

SECRETS = {
    "OPENGATE_SECRET_KEY": "tests-only-secret-key-0123456789-0123456789",
    "OPENGATE_KEY_SECRETS": "tests-only-key-secret-0123456789-0123456789",
    "OPENGATE_ENCRYPTION_SECRETS": "tests-only-encryption-secret-0123456789-0123456789",
}
# A busy machine is no sick Redis; tests of an outage say otherwise.
DEFAULTS = {"OPENGATE_REDIS_TIMEOUT_SECONDS": "5", "OPENGATE_DATABASE_POOL": "0"}

_servers = ExitStack()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests() -> Iterator[None]:
    os.environ.update(SECRETS)
    os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
    os.environ["OPENGATE_VAR"] = _servers.enter_context(tempfile.TemporaryDirectory(prefix="opengate-tests-"))
    if "DATABASE_URL" not in os.environ or "REDIS_URL" not in os.environ:
        home = Path(os.environ["OPENGATE_VAR"]) / "embedded"
        services = _servers.enter_context(running(home, database="opengate", durable=False, keep=False))
        os.environ["DATABASE_URL"], os.environ["REDIS_URL"] = services.database_url, services.redis_url
    return (yield)


def pytest_unconfigure() -> None:
    _servers.close()
