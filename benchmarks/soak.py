#!/usr/bin/env python
"""Mixed calls for minutes while dependencies fail: what grows, what is left behind, and how many calls failed.

    python benchmarks/soak.py [--seconds N] [--callers N] [--json FILE]

Starts PostgreSQL, Valkey, a provider, the web server with two processes and a worker, on loopback. Callers chat,
stream, embed, search, upload and hang up. One of two providers of their model refuses each fifth call; those of
another model refuse, cut off, stall and send garbage as they are told. Meanwhile, a fifth of the time apart, the
worker is killed, Redis stands still, Postgres stands still, Postgres is restarted. Prints each process's memory over
time with its slope (least squares, after its first two minutes), what is still held once nobody calls any more
(descriptors, places at providers, reservations, usage on its way, connections), and the share of ordinary calls that
failed, during faults and besides. Ends with 1 when something is left behind, a process grows by more than a MiB a
minute, the books do not agree, or an ordinary call failed while everything was well.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.processes import wait_for  # noqa: E402
from opengate.embedded import Postgres, Valkey  # noqa: E402
from tests.flows.dependency import Dependency  # noqa: E402
from tests.flows.worker import Worker  # noqa: E402
from tests.server import free_port  # noqa: E402
from tests.services import SECRETS  # noqa: E402

SAMPLE_SECONDS = 2.0
FAULT_SECONDS = 3.0
FELT_SECONDS = 6.0  # after a fault has ended: circuits, pools and breakers look again
SETTLE_SECONDS = 90.0
PROVIDER_TIMEOUT = 2
DIMENSIONS = 64
THINK_SECONDS = 0.05
GROWTH_MIB_A_MINUTE = 1.0
WARM_SECONDS = 120.0  # a process's first ones, in which it reads what it needs
MEASURED_SECONDS = 60.0  # at least, after those

# What callers do, and how often; those in ORDINARY must be answered 200.
MIX = {
    "chat": 24,
    "stream": 24,
    "chat with a budget": 8,
    "embeddings": 14,
    "search": 10,
    "list": 4,
    "upload": 1,
    "hang up": 6,
    "provider refuses": 3,
    "provider cuts off": 3,
    "provider sends garbage": 2,
    "provider stalls": 1,
}
ORDINARY = ("chat", "stream", "chat with a budget", "embeddings", "search", "list", "upload")


@dataclass
class Installation:
    """All processes, and who may call."""

    folder: Path
    postgres: Dependency
    valkey: Dependency
    web: subprocess.Popen[bytes]
    worker: Worker
    url: str
    keys: dict[str, str]
    collection: int

    def processes(self) -> dict[str, int]:
        """Web processes and the worker's, by name; a process that was replaced has another number."""
        found = {}
        for name, parent in (("web", self.web.pid), ("worker", self.worker.process.pid if self.worker.process else 0)):
            found[f"{name} ({parent})"] = parent
            for number, child in enumerate(sorted(children(parent))):
                found[f"{name} {number} ({child})"] = child
        return found


@dataclass
class Soak:
    installation: Installation
    seconds: float
    callers: int
    started: float = 0.0
    faults: list[tuple[float, float, str]] = field(default_factory=list)  # from, until felt, what
    outcomes: dict[bool, dict[str, Counter[str]]] = field(
        default_factory=lambda: {True: defaultdict(Counter), False: defaultdict(Counter)}
    )  # by whether a fault was felt, and what was done
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # MiB by seconds
    descriptors: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    # calls

    async def run(self) -> None:
        self.started = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(self.installation.url, connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(self.callers):
                tasks.create_task(self._call(session, random.Random(number)))
            tasks.create_task(self._sample())
            tasks.create_task(self._break())

    async def _call(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        kinds, weights = list(MIX), list(MIX.values())
        while self.now < self.seconds:
            (kind,) = chance.choices(kinds, weights)
            began = self.now
            try:
                outcome = str(await self._one(session, kind, chance))
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome = type(error).__name__
            self.outcomes[self._felt(began, self.now)][kind][outcome] += 1
            await asyncio.sleep(THINK_SECONDS)

    def _felt(self, began: float, ended: float) -> bool:
        return any(began < until and ended > since for since, until, _ in self.faults)

    async def _one(self, session: aiohttp.ClientSession, kind: str, chance: random.Random) -> int | str:
        match kind:
            case "chat":
                return await self._chat(session, "size=400")
            case "chat with a budget":
                return await self._chat(session, "size=400", who="budget")
            case "stream":
                return await self._stream(session, "chunks=20 delay=20")
            case "hang up":
                return await self._stream(session, "chunks=200 delay=20", leave_after=chance.randrange(1, 2000))
            case "provider refuses":
                return await self._chat(session, f"status={chance.choice([429, 500, 503])}", "flaky")
            case "provider cuts off":
                return await self._stream(session, "chunks=20 delay=5 cut=7", "flaky")
            case "provider sends garbage":
                return await self._chat(session, "bad=1", "flaky")
            case "provider stalls":
                return await self._stream(session, "chunks=20 delay=5 stall=7", "flaky")
            case "embeddings":
                body = {"model": "embeddings", "input": [f"[[bench dim={DIMENSIONS}]] {n}" for n in range(4)]}
                return await self._post(session, "/v1/embeddings", body)
            case "search":
                query = f"[[bench dim={DIMENSIONS}]] canteen {chance.randrange(50)}"
                body = {"query": query, "method": chance.choice(["semantic", "lexical", "hybrid"])}
                return await self._post(
                    session, "/v1/search", body | {"collection_ids": [self.installation.collection]}
                )
            case "list":
                async with session.get("/v1/models", headers=self._headers()) as answer:
                    await answer.read()
                    return answer.status
        form = aiohttp.FormData({"collection_id": str(self.installation.collection)})
        text = f"[[bench dim={DIMENSIONS}]] The canteen opens at {chance.randrange(10**9)}."
        form.add_field("file", text.encode(), filename="notes.txt", content_type="text/plain")
        headers = self._headers() | {"Prefer": "respond-async"}
        async with session.post("/v1/documents", data=form, headers=headers) as answer:
            await answer.read()
            return 200 if answer.status == 202 else answer.status

    def _headers(self, who: str = "plain") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.installation.keys[who]}"}

    async def _post(self, session: aiohttp.ClientSession, path: str, body: Any, who: str = "plain") -> int:
        async with session.post(path, json=body, headers=self._headers(who)) as answer:
            await answer.read()
            return answer.status

    async def _chat(
        self, session: aiohttp.ClientSession, directive: str, model: str = "model", who: str = "plain"
    ) -> int:
        return await self._post(session, "/v1/chat/completions", _body(directive, model), who)

    async def _stream(
        self, session: aiohttp.ClientSession, directive: str, model: str = "model", leave_after: int = 0
    ) -> int | str:
        body = _body(directive, model) | {"stream": True}
        async with session.post("/v1/chat/completions", json=body, headers=self._headers()) as answer:
            length, last = 0, b""
            async for data in answer.content.iter_any():
                length, last = length + len(data), (last + data)[-64:]
                if leave_after and length > leave_after:
                    answer.close()
                    return "left"
            whole = answer.status != 200 or last.endswith(b"data: [DONE]\n\n")
            return answer.status if whole else "cut"

    # faults

    async def _break(self) -> None:
        here = self.installation
        for share, what, happens in (
            (0.2, "the worker is killed", self._worker_killed),
            (0.4, "Redis stands still", self._paused(here.valkey)),
            (0.6, "Postgres stands still", self._paused(here.postgres)),
            (0.8, "Postgres is restarted", self._restarted(here.postgres)),
        ):
            await asyncio.sleep(max(share * self.seconds - self.now, 0))
            since = self.now
            self.faults.append((since, float("inf"), what))
            await happens()
            self.faults[-1] = (since, self.now + FELT_SECONDS, what)

    def _paused(self, dependency: Dependency) -> Callable[[], Awaitable[None]]:
        async def happens() -> None:
            dependency.pause()
            await asyncio.sleep(FAULT_SECONDS)
            dependency.go_on()

        return happens

    def _restarted(self, dependency: Dependency) -> Callable[[], Awaitable[None]]:
        async def happens() -> None:
            await asyncio.to_thread(dependency.stop)
            # A process may be started from the main thread alone: the kernel takes its death for ours.
            dependency.start()

        return happens

    async def _worker_killed(self) -> None:
        self.installation.worker.kill()
        await asyncio.sleep(FAULT_SECONDS)
        self.installation.worker.start()

    # figures

    async def _sample(self) -> None:
        while self.now < self.seconds:
            for name, pid in self.installation.processes().items():
                with_figures = figures(pid)
                if with_figures is not None:
                    self.memory[name].append((self.now, with_figures[0]))
                    self.descriptors[name].append(with_figures[1])
            await asyncio.sleep(SAMPLE_SECONDS)


def _body(directive: str, model: str = "model") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"[[bench {directive}]] Say hello."}]}


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def figures(pid: int) -> tuple[float, int] | None:
    """MiB of memory and open descriptors of a process; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def slope(points: list[tuple[float, float]]) -> float | None:
    """MiB a minute, by least squares, once the process is warm; None for one that has not lived long enough."""
    warm = [(at, value) for at, value in points if at > points[0][0] + WARM_SECONDS]
    if not warm or warm[-1][0] - warm[0][0] < MEASURED_SECONDS:
        return None
    return 60 * statistics.linear_regression([at for at, _ in warm], [value for _, value in warm]).slope


@contextmanager
def installation() -> Iterator[Installation]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="og-soak-")))
        postgres, valkey = Postgres(folder / "p", durable=False), Valkey(folder / "v")
        first, second = Dependency(postgres), Dependency(valkey)
        stack.callback(postgres.remove)
        stack.callback(first.stop)
        stack.callback(second.stop)
        postgres.create_database("soak")
        os.environ |= SECRETS | {
            "DATABASE_URL": postgres.url("soak"),
            "REDIS_URL": valkey.url,
            "OPENGATE_VAR": str(folder),
            "OPENGATE_LOG_LEVEL": "ERROR",
            "OPENGATE_RESERVATION_LEASE_SECONDS": "10",
            "OPENGATE_DATABASE_POOL": "10",
            "DJANGO_SETTINGS_MODULE": "opengate.settings",
        }
        port, provider_port = free_port(), free_port()
        upstream = [sys.executable, "benchmarks/upstream.py", "--port", str(provider_port)]
        stack.callback(_end, subprocess.Popen(upstream, cwd=ROOT, stdout=subprocess.DEVNULL))
        keys, collection = _furnish(f"http://127.0.0.1:{provider_port}/")
        serve = [sys.executable, "manage.py", "serve", "--workers", "2", "--port", str(port)]
        log = stack.enter_context(open(folder / "web.log", "wb"))
        web = subprocess.Popen(serve, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_end, web)
        worker = Worker(folder, DATABASE_URL=os.environ["DATABASE_URL"]).start()
        stack.callback(worker.stop)
        wait_for(f"http://127.0.0.1:{port}/health/ready", 60)
        yield Installation(folder, first, second, web, worker, f"http://127.0.0.1:{port}", keys, collection)


def _furnish(provider_url: str) -> tuple[dict[str, str], int]:
    """Tables, models, two people and a collection; their keys by whether they have a budget."""
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections, transaction

    call_command("migrate", verbosity=0)
    from accounts.models import Key, Role, User
    from knowledge.models import Collection, Space
    from routing.models import Provider, Router
    from usage.models import Account, Limit

    role = Role.objects.create(name="callers")
    made: dict[str, Router] = {}
    # Which models there are, and by what names their providers know them.
    models: dict[str, tuple[str, list[str]]] = {
        "model": ("text-generation", ["one", "fake:status=503,every=5"]),
        "flaky": ("text-generation", ["one"]),
        "embeddings": ("text-embeddings-inference", ["one", "two"]),
    }
    for name, (type, upstream_names) in models.items():
        prices = {"cost_prompt_tokens": 1, "cost_completion_tokens": 1}
        made[name] = Router.objects.create(name=name, type=type, **prices)
        for model in upstream_names:
            Provider.objects.create(
                router=made[name], type="openai", url=provider_url, model_name=model, timeout=PROVIDER_TIMEOUT
            )
        Limit.objects.open_router(role, made[name])
    plain, budgeted = (User.objects.create(email=f"{name}@example.org", role=role) for name in ("plain", "budget"))
    with transaction.atomic():
        Account.objects.of(budgeted).set_budget(Decimal(1_000_000))
    space = Space.objects.of(made["embeddings"])
    Space.objects.filter(pk=space.pk).update(dimensions=DIMENSIONS)
    collection = Collection.objects.create(name="soak", owner=plain, space=space, language="english")
    keys = {"plain": Key.objects.issue(plain, "soak", None)[1], "budget": Key.objects.issue(budgeted, "soak", None)[1]}
    connections.close_all()
    return keys, collection.pk


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()


def left_behind() -> dict[str, int]:
    """What is held though nobody calls."""
    with (
        psycopg.connect(os.environ["DATABASE_URL"]) as database,
        redis.Redis.from_url(os.environ["REDIS_URL"]) as memory,
    ):

        def count(query: str) -> int:
            row = database.execute(query.encode()).fetchone()
            assert row is not None
            return int(row[0])

        places = sum(int(memory.zcount(key, time.time(), "inf")) for key in memory.scan_iter("*inflight*"))
        return {
            "places at providers": places,
            "reservations": count("SELECT count(*) FROM usage_reservation"),
            "documents unfinished": count("SELECT count(*) FROM knowledge_document WHERE status <> 'ready'"),
            "transactions open": count("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"),
        }


def connections() -> dict[str, int]:
    with (
        psycopg.connect(os.environ["DATABASE_URL"]) as database,
        redis.Redis.from_url(os.environ["REDIS_URL"]) as memory,
    ):
        (number,) = database.execute(b"SELECT count(*) FROM pg_stat_activity WHERE datname = 'soak'").fetchone() or (0,)
        return {"Postgres": int(number), "Redis": len(memory.client_list())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with installation() as made:
        soak = Soak(made, options.seconds, options.callers)
        before = {name: found for name, pid in made.processes().items() if (found := figures(pid))}
        asyncio.run(soak.run())
        deadline = time.monotonic() + SETTLE_SECONDS
        while any((left := left_behind()).values()) and time.monotonic() < deadline:
            time.sleep(1)
        time.sleep(35)  # idle connections to providers and callers are closed
        after = {name: found for name, pid in made.processes().items() if (found := figures(pid))}
        audit = subprocess.run(
            [sys.executable, "manage.py", "audit_ledger", "--json"], cwd=ROOT, capture_output=True, text=True
        )
        result = report(soak, before, after, left, connections(), json.loads(audit.stdout)["clean"])
        problems = (made.folder / "web.log").read_text()
    if problems:
        result["log"] = problems.splitlines()[:20]
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    failed = result["ordinary calls"]["while all was well"]["failed"]
    grows = any((one["MiB a minute"] or 0) > GROWTH_MIB_A_MINUTE for one in result["processes"].values())
    return int(bool(failed or grows or any(left.values()) or not result["books agree"]))


def report(
    soak: Soak,
    before: dict[str, tuple[float, int]],
    after: dict[str, tuple[float, int]],
    left: dict[str, int],
    connected: dict[str, int],
    is_clean: bool,
) -> dict[str, Any]:
    memory = {}
    for name, points in soak.memory.items():
        a_minute = slope(points)
        memory[name] = {
            "MiB, each half minute": [round(value, 1) for _, value in points[:: round(30 / SAMPLE_SECONDS)]],
            "MiB a minute": None if a_minute is None else round(a_minute, 2),
            "descriptors": [soak.descriptors[name][0], max(soak.descriptors[name]), soak.descriptors[name][-1]],
            "descriptors, before and after": [found[name][1] if name in found else None for found in (before, after)],
        }
    ordinary: dict[str, Any] = {}
    for felt, name in ((False, "while all was well"), (True, "while a fault was felt")):
        counts: Counter[str] = Counter()
        for kind in ORDINARY:
            counts += soak.outcomes[felt][kind]
        total, failed = counts.total(), counts.total() - counts["200"]
        ordinary[name] = {"calls": total, "failed": failed, "outcomes": dict(counts)}
    calls = sum(counts.total() for kinds in soak.outcomes.values() for counts in kinds.values())
    total = sum(part["calls"] for part in ordinary.values())
    failed = sum(part["failed"] for part in ordinary.values())
    return {
        "seconds": soak.seconds,
        "calls a second": round(calls / soak.seconds),
        "ordinary calls": ordinary | {"answered, of a hundred": round(100 * (1 - failed / max(total, 1)), 3)},
        "others": {
            kind: dict(soak.outcomes[False][kind] + soak.outcomes[True][kind]) for kind in MIX if kind not in ORDINARY
        },
        "faults": [[round(since), round(until), what] for since, until, what in soak.faults],
        "processes": memory,
        "left behind": left,
        "connections, with nobody calling": connected,
        "books agree": is_clean,
    }


if __name__ == "__main__":
    sys.exit(main())
