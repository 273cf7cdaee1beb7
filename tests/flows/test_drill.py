"""A whole installation of its own under load, while its Redis and its Postgres are stopped, emptied and restarted.

`OPENGATE_DRILL_SECONDS` is how long each stays away (`make drill` says 10).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from opengate.embedded import Postgres, Valkey
from tests.conftest import CHAT, PASSWORD
from tests.flows.dependency import Dependency
from tests.flows.worker import Worker
from tests.management.conftest import MODEL, model_list
from tests.server import ROOT, Server, environment
from tests.upstream import Upstream

pytestmark = pytest.mark.timeout(300)

SECONDS = float(os.environ.get("OPENGATE_DRILL_SECONDS", "2"))
CALLERS = 4  # with a budget, and as many without
BUDGET = 1_000_000
LOST_SECONDS = 3.0  # the drain's pause, twice, and what it takes to begin


@dataclass
class Call:
    status: int
    request_id: str
    has_budget: bool
    ended: float
    server: Server


@dataclass
class Installation:
    """Two web processes and a worker on a Postgres and a Valkey of their own; calls by two users under load."""

    postgres: Dependency
    valkey: Dependency
    web: list[Server]
    worker: Worker
    variables: dict[str, str]
    keys: dict[bool, str]  # by whether its user has a budget
    calls: list[Call] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self.calls, self.stopped = [], threading.Event()
        self.threads = [
            threading.Thread(target=self._call, args=(self.web[number % 2], number % 4 < 2), daemon=True)
            for number in range(2 * CALLERS)
        ]
        for thread in self.threads:
            thread.start()

    def _call(self, server: Server, has_budget: bool) -> None:
        stream = False
        with httpx.Client(base_url=server.url, timeout=30) as client:
            client.headers["Authorization"] = f"Bearer {self.keys[has_budget]}"
            while not self.stopped.is_set():
                stream = not stream
                answer = client.post("/v1/chat/completions", json=CHAT | {"stream": stream, "max_tokens": 12})
                whole = not stream or answer.text.endswith("[DONE]\n\n") or answer.status_code != 200
                status = answer.status_code if whole else 0
                self.calls.append(Call(status, answer.headers["x-request-id"], has_budget, time.time(), server))
                time.sleep(0.01)

    def end(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def goes_on(self) -> None:
        """Wait until the next calls of both users are answered by both processes, which then know them."""
        since, deadline = time.time() + 0.2, time.monotonic() + 30
        wanted = {(server.url, has_budget) for server in self.web for has_budget in (True, False)}
        while wanted - {
            (call.server.url, call.has_budget) for call in self.calls if call.status == 200 and call.ended > since
        }:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def statuses(self, has_budget: bool) -> Counter[int]:
        return Counter(call.status for call in self.calls if call.has_budget == has_budget)

    def answered(self, has_budget: bool) -> set[str]:
        return {call.request_id for call in self.calls if call.status == 200 and call.has_budget == has_budget}

    def query(self, text: str) -> list[Any]:
        with psycopg.connect(self.variables["DATABASE_URL"]) as connection:
            return connection.execute(text.encode()).fetchall()

    def recorded(self) -> set[str]:
        return {request_id for (request_id,) in self.query("SELECT request_id FROM usage_usagerecord")}

    def settles(self, wanted: set[str], allowed_to_miss: int = 0) -> set[str]:
        """Wait for the worker; answers which of the wanted records are missing."""
        deadline = time.monotonic() + 30
        while len(missing := wanted - self.recorded()) > allowed_to_miss and time.monotonic() < deadline:
            self.worker.revive()
            time.sleep(0.1)
        return missing

    def audit(self) -> dict[str, Any]:
        done = self.manage("audit_ledger", "--json", check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def manage(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT,
            env=environment(**self.variables),
            check=check,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def installation(_upstream: Upstream) -> Iterator[Installation]:
    with tempfile.TemporaryDirectory(prefix="og-") as name:
        folder = Path(name)
        postgres, valkey = Postgres(folder / "p", durable=False), Valkey(folder / "v")
        first, second = Dependency(postgres), Dependency(valkey)
        postgres.create_database("drill")
        variables = {
            "DATABASE_URL": postgres.url("drill"),
            "REDIS_URL": valkey.url,
            "OPENGATE_REDIS_TIMEOUT_SECONDS": "0.1",
            "OPENGATE_RESERVATION_LEASE_SECONDS": "5",
        }
        worker = Worker(folder, **variables)
        web = [Server("uvicorn", **variables) for _ in range(2)]
        made = Installation(first, second, web, worker, variables, keys={})
        try:
            made.manage("migrate", "--verbosity", "0")
            for server in made.web:
                server.start()
            worker.start()
            _furnish(made, _upstream)
            yield made
        finally:
            for server in web:
                server.stop()
            if worker.process is not None:
                worker.stop()
            for dependency in (first, second):
                dependency.stop()
                dependency.server.remove()


def _furnish(made: Installation, upstream: Upstream) -> None:
    """A priced model and two users, by the commands and the API."""
    admin = json.loads(made.manage("createadmin", "admin@example.org", "--json").stdout)
    with made.web[0].client(admin["key"]) as client:

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = client.post(f"/v1/admin/{path}", json=body)
            assert answer.status_code == 201, answer.text
            found: dict[str, Any] = answer.json()
            return found

        prices = {"cost_prompt_tokens": 1_000_000, "cost_completion_tokens": 1_000_000}
        router = post("routers", {"name": "model", "type": "text-generation"} | prices)["id"]
        upstream.reset()
        upstream.reply(model_list())
        post("providers", {"router": router, "type": "vllm", "url": upstream.url, "model_name": MODEL})
        limits = [{"router": router, "type": type, "value": None} for type in ("rpm", "rpd", "tpm", "tpd")]
        role = post("roles", {"name": "callers", "limits": limits})["id"]
        for has_budget in (True, False):
            user = {"email": f"{has_budget}@example.org", "password": PASSWORD, "role": role}
            id = post("users", user | {"budget": BUDGET if has_budget else None})["id"]
            made.keys[has_budget] = post("tokens", {"name": "drill", "user": id})["token"]


def drill(installation: Installation, name: str, happens: Callable[[], None]) -> tuple[Counter[int], Counter[int]]:
    """Calls before, during and after; answers the statuses of those with a budget, and without."""
    installation.begin()
    try:
        installation.goes_on()
        happens()
        installation.goes_on()
    finally:
        installation.end()
    found = installation.statuses(True), installation.statuses(False)
    print(f"\n{name}: with a budget {dict(found[0])}, without {dict(found[1])}")
    return found


def test_redis_stands_still(installation):
    def happens() -> None:
        installation.valkey.pause()
        time.sleep(SECONDS)
        installation.valkey.go_on()

    for statuses in drill(installation, f"Redis paused for {SECONDS} s", happens):
        assert set(statuses) == {200}  # limits open, by default; nobody hears 401
    missing = installation.settles(installation.answered(True) | installation.answered(False))
    audit = installation.audit()
    assert (missing, audit["clean"]) == (set(), True), audit


def test_redis_is_killed_and_comes_back_empty(installation):
    died = 0.0

    def happens() -> None:
        nonlocal died
        installation.valkey.kill()
        died = time.time()
        shutil.rmtree(installation.valkey.server.home / "valkey")
        time.sleep(SECONDS)
        installation.valkey.start()

    for statuses in drill(installation, f"Redis killed, and back empty after {SECONDS} s", happens):
        assert set(statuses) == {200}
    assert installation.settles(installation.answered(True)) == set()  # money is in Postgres
    late = {call.request_id: call.ended for call in installation.calls if not call.has_budget and call.status == 200}
    missing = installation.settles(set(late), allowed_to_miss=len(late))
    deadline = time.monotonic() + 20
    while any(not died - LOST_SECONDS < late[id] < died + 1 for id in missing) and time.monotonic() < deadline:
        installation.worker.revive()
        time.sleep(0.2)
        missing -= installation.recorded()
    print(f"{len(missing)} of {len(late)} records without a budget were in the Redis that was lost")
    assert all(died - LOST_SECONDS < late[id] < died + 1 for id in missing)
    audit = installation.audit()
    assert audit["clean"], audit


def test_postgres_is_restarted(installation):
    def happens() -> None:
        installation.postgres.stop()
        time.sleep(SECONDS)
        installation.postgres.start()

    with_budget, without = drill(installation, f"Postgres away for {SECONDS} s", happens)
    assert set(without) == {200}
    assert set(with_budget) <= {200, 503}
    assert with_budget[503] > 0
    missing = installation.settles(installation.answered(True) | installation.answered(False))
    deadline = time.monotonic() + 20
    while installation.query("SELECT 1 FROM usage_reservation") and time.monotonic() < deadline:
        time.sleep(0.2)
    audit = installation.audit()
    assert (missing, audit["clean"]) == (set(), True), audit
    cost, reserved = installation.query("SELECT sum(spent), sum(reserved) FROM usage_account")[0]
    assert reserved == 0
    assert cost == installation.query("SELECT sum(cost) FROM usage_usagerecord")[0][0]
