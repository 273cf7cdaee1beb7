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
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    has_workers = not is_worker and bool(getattr(early_config.known_args_namespace, "numprocesses", None))
    os.environ.update(SECRETS)
    os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
    os.environ["OPENGATE_VAR"] = _servers.enter_context(tempfile.TemporaryDirectory(prefix="opengate-tests-"))
    if "DATABASE_URL" in os.environ and "REDIS_URL" in os.environ:
        if is_worker or has_workers:
            raise pytest.UsageError("Tests side by side would empty each other's Redis: run them with -n 0.")
    elif not has_workers:  # each worker has its own
        home = Path(os.environ["OPENGATE_VAR"]) / "embedded"
        services = _servers.enter_context(running(home, database="opengate", durable=False, keep=False))
        os.environ["DATABASE_URL"], os.environ["REDIS_URL"] = services.database_url, services.redis_url
    return (yield)


def pytest_unconfigure() -> None:
    _servers.close()
