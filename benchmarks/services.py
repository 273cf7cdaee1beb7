"""PostgreSQL and Valkey for a benchmark, and this process on them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opengate.embedded import running
from tests.services import SECRETS


@contextmanager
def servers(*, durable: bool = True, **environment: str) -> Iterator[None]:
    """Both servers, fresh; Django set up on them, with all its tables. `environment` is OpenGate's besides."""
    with (
        tempfile.TemporaryDirectory(prefix="opengate-bench-") as home,
        running(Path(home) / "embedded", database="opengate", durable=durable, keep=False) as services,
    ):
        os.environ |= SECRETS | {"DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url}
        os.environ |= {"OPENGATE_VAR": home, "DJANGO_SETTINGS_MODULE": "opengate.settings", **environment}
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield
