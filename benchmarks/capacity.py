#!/usr/bin/env python
"""What a call costs each part of an installation, and what follows: calls a second per core, memory, bytes.

    python benchmarks/capacity.py [--rounds N] [--json FILE]

Starts PostgreSQL, Valkey, a cheap scripted provider, the web server and a worker. Three hundred people with a key,
four limits that count and a price call in turn, and as many who have a budget besides. For each kind of call it reads,
before and after, the CPU (user and system, of /proc) of the web process, Postgres, Redis and the worker, and what Redis
and Postgres count: commands, reads, bytes, transactions, WAL. What the parts use with nobody calling is taken off.
Wall time appears nowhere but in the documents an hour: a machine that does other things besides spoils little. See
docs/scaling.md.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import aiohttp
import psycopg
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.client import Options, Run, Target  # noqa: E402
from benchmarks.processes import (  # noqa: E402
    CORES,
    Processes,
    process,
    stat_fields,
    wait_for,
    with_descendants,
)
from benchmarks.services import servers  # noqa: E402
from tests.server import free_port  # noqa: E402

PEOPLE = 300  # with a budget, and as many without
GENEROUS = 10**12  # a limit that is counted and never reached
SECONDS = 2.0  # of a round of one kind of call
IDLE_SECONDS = 10.0
DOCUMENTS = 60
DOCUMENT_WORDS = 2_000
OPEN_STREAMS = (200, 600, 1_000, 1_400)
COUNTED_USERS = 500  # whose counters are weighed
COUNTED_CALLS = 20  # of each: what a moving window keeps grows with calls
PARTS = ("web", "postgres", "redis", "worker")


@dataclass
class Reading:
    """What was used up to a moment: seconds of CPU by part, and what Redis and Postgres have counted."""

    at: float
    web: float
    postgres: float
    redis: float
    worker: float
    redis_commands: float
    redis_reads: float
    redis_bytes: float
    transactions: float
    wal_bytes: float

    def since(self, before: "Reading") -> "Reading":
        return Reading(*(getattr(self, name) - getattr(before, name) for name in NAMES))

    def less(self, idle: "Reading") -> "Reading":
        """Without what would have been used in that time with nobody calling."""
        share = self.at / idle.at
        rest = {name: getattr(self, name) - share * getattr(idle, name) for name in NAMES if name != "at"}
        return Reading(self.at, **rest)

    def a_call(self, calls: int) -> dict[str, float]:
        milliseconds = {f"{part}_cpu_ms": 1000 * getattr(self, part) / calls for part in PARTS}
        return milliseconds | {name: getattr(self, name) / calls for name in NAMES if name not in (*PARTS, "at")}


NAMES = [field.name for field in fields(Reading)]


def cpu(pid: int) -> float:
    """Seconds of a process and its descendants, those that have ended among them."""
    tree = Processes("")
    tree.pids = with_descendants([pid])
    return float(tree.cpu())


def child_named(command: str) -> int:
    """The process of that name which this one has started."""
    for path in Path("/proc").glob("[0-9]*"):
        stat = stat_fields(int(path.name))
        if stat and int(stat[1]) == os.getpid() and (path / "comm").read_text().strip() == command:
            return int(path.name)
    raise SystemExit(f"There is no {command}.")


class Callers(Target):
    """A target of the load generator, called with many keys in turn."""

    def __init__(self, port: int, path: str, body: dict[str, Any], keys: list[str]) -> None:
        self.name, self.host, self.port = path, "127.0.0.1", port
        self.processes = self.aux = Processes("")
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        requests = [
            f"{head}Authorization: Bearer {key}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw for key in keys
        ]
        self._next = cycle(requests)

    @property
    def request(self) -> bytes:
        return next(self._next)


TEXT = ("All work and no play makes a dull gateway. " * 10)[:400]


def chat(directive: str = "", *, stream: bool = False) -> dict[str, Any]:
    said = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": f"{directive} {TEXT}"}]
    return {"model": "chat", "messages": said} | ({"stream": True} if stream else {})


class Installation:
    def __init__(self, stack: ExitStack, rounds: int) -> None:
        self.rounds = rounds
        self.postgres, self.valkey = child_named("postgres"), child_named("valkey-server")
        self.memory = redis.Redis.from_url(os.environ["REDIS_URL"])
        self.database = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
        stack.callback(self.memory.close)
        stack.callback(self.database.close)
        provider = free_port()
        upstream = [sys.executable, "benchmarks/upstream.py", "--port", str(provider)]
        stack.enter_context(process(upstream, dict(os.environ), CORES))
        self.keys, self.budget_keys, self.collection = furnish(f"http://127.0.0.1:{provider}/")
        beat = ["-s", str(Path(os.environ["OPENGATE_VAR"]) / "beat"), "--loglevel", "error"]
        celery = [sys.executable, "-m", "celery", "-A", "opengate", "worker", "-B", "-c", "1", *beat]
        self.worker = stack.enter_context(process(celery, dict(os.environ), CORES)).pid
        self.port, self.web = free_port(), 0
        self.web = self.serve(stack, self.port, 1)
        self.idle: Reading | None = None

    def serve(self, stack: ExitStack, port: int, workers: int) -> int:
        command = [sys.executable, "manage.py", "serve", "--workers", str(workers), "--port", str(port)]
        pid = stack.enter_context(process(command, dict(os.environ), CORES)).pid
        wait_for(f"http://127.0.0.1:{port}/health/ready", 120)
        return pid

    def query(self, text: str) -> Any:
        row = self.database.execute(text.encode()).fetchone()
        assert row is not None
        return row[0]

    def read(self, web: int = 0) -> Reading:
        counted: Any = self.memory.info("stats")
        return Reading(
            at=time.monotonic(),
            web=cpu(web or self.web),
            postgres=cpu(self.postgres),
            redis=cpu(self.valkey),
            worker=cpu(self.worker),
            redis_commands=counted["total_commands_processed"],
            redis_reads=counted["total_reads_processed"],
            redis_bytes=counted["total_net_input_bytes"] + counted["total_net_output_bytes"],
            transactions=float(self.query("SELECT sum(xact_commit) FROM pg_stat_database")),
            wal_bytes=float(self.query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")),
        )

    async def quiet(self) -> None:
        """Until all calls are in the ledger, and Postgres' processes have told what they counted."""
        while self.memory.xlen("opengate:usage"):
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)

    async def rest(self) -> None:
        await self.quiet()
        await asyncio.sleep(3)
        before = self.read()
        await asyncio.sleep(IDLE_SECONDS)
        self.idle = self.read().since(before)

    async def cost(
        self, path: str, body: dict[str, Any], callers: int, *, keys: list[str] | None = None, **how: Any
    ) -> dict[str, float]:
        """Of one call, medians of the rounds."""
        found: list[dict[str, float]] = []
        stream = bool(body.get("stream"))
        proof = b'"data"' if path.endswith(("search", "embeddings")) else b'"choices"'
        target = Callers(how.get("port") or self.port, path, body, keys or self.keys)
        for number in range(self.rounds + 1):
            run = Run(target, Options(callers), stream, proof)
            if not number:  # every process learns every key
                await run.once(SECONDS, False)
                await self.quiet()
            before = self.read(how.get("web", 0))
            slice_ = await run.once(SECONDS, False)
            await self.quiet()
            assert self.idle is not None
            used = self.read(how.get("web", 0)).since(before).less(self.idle)
            run.close()
            if slice_.errors:
                raise SystemExit(f"{path}: {slice_.errors}")
            if number:
                found.append(used.a_call(slice_.ok) | {"calls": slice_.ok})
        costs = {name: round(median(one[name] for one in found), 4) for name in found[0]}
        spread = [round(one["web_cpu_ms"], 3) for one in found]
        print(f"{path} {callers} {how or ''}: {costs}, web {min(spread)} to {max(spread)}", flush=True)
        return costs

    # the parts of the run

    async def calls(self, stack: ExitStack) -> dict[str, Any]:
        completions = "/v1/chat/completions"
        costs = {
            "chat, 1 caller": await self.cost(completions, chat(), 1),
            "chat": await self.cost(completions, chat(), 32),
            "chat with a budget": await self.cost(completions, chat(), 32, keys=self.budget_keys),
            "stream of 20 chunks": await self.cost(completions, chat("[[bench chunks=20 delay=10]]", stream=True), 64),
            "stream of 200 chunks": await self.cost(completions, chat("[[bench chunks=200 delay=5]]", stream=True), 64),
            "embeddings": await self.cost("/v1/embeddings", {"model": "embeddings", "input": TEXT}, 32),
        }
        port = free_port()
        web = self.serve(stack, port, 2)
        # As many callers a process: fewer would share fewer trips to Redis.
        costs["chat, 2 web processes"] = await self.cost(completions, chat(), 64, port=port, web=web)
        return costs

    async def searches(self) -> dict[str, Any]:
        found = {}
        for method in ("semantic", "lexical", "hybrid"):
            body = {"query": "canteen garden window", "method": method, "collection_ids": [self.collection]}
            found[f"search, {method}"] = await self.cost("/v1/search", body, 8)
        return found

    async def documents(self) -> dict[str, Any]:
        """Text files, from the upload to what can be searched; the model's own time is next to nothing."""
        await self.quiet()
        size = self.table_bytes()
        before = self.read()
        chance = random.Random(5)
        words = [f"{chance.choice('bdfgklm')}{chance.choice('aiou')}{number}" for number in range(5_000)]
        words += ["canteen", "garden", "window"]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as session:
            for number in range(DOCUMENTS):
                form = aiohttp.FormData({"collection_id": str(self.collection)})
                text = " ".join(chance.choices(words, k=DOCUMENT_WORDS))
                form.add_field("file", text.encode(), filename=f"{number}.txt", content_type="text/plain")
                headers = {"Authorization": f"Bearer {self.keys[0]}", "Prefer": "respond-async"}
                async with session.post("/v1/documents", data=form, headers=headers) as answer:
                    if answer.status != 202:
                        raise SystemExit(await answer.text())
            while self.query("SELECT count(*) FROM knowledge_document WHERE status <> 'ready'"):
                await asyncio.sleep(0.2)
        took = time.monotonic() - before.at
        await self.quiet()
        assert self.idle is not None
        used = self.read().since(before).less(self.idle)
        chunks = self.query("SELECT count(*) FROM knowledge_chunk")
        self.database.execute("VACUUM ANALYZE")
        return {
            "words_a_document": DOCUMENT_WORDS,
            "chunks_a_document": chunks / DOCUMENTS,
            "cpu_ms_a_document": {part: round(1000 * getattr(used, part) / DOCUMENTS, 1) for part in PARTS},
            "an_hour_by_one_worker_process": round(3600 * DOCUMENTS / took),
            "bytes_a_chunk": round((self.table_bytes() - size) / chunks),
            "wal_bytes_a_chunk": round(used.wal_bytes / chunks),
        }

    def table_bytes(self) -> int:
        return int(
            self.query(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
                " AND relname ~ '^knowledge_(chunk|embedding|lexemes|word)'"
            )
        )

    def record_bytes(self) -> dict[str, Any]:
        """Of a usage record, with its indexes; daily sums apart, of which there is one a day, key, model and kind."""
        self.database.execute("VACUUM ANALYZE usage_usagerecord, usage_dailyusage")
        rows = int(self.query("SELECT count(*) FROM usage_usagerecord"))
        days = int(self.query("SELECT count(*) FROM usage_dailyusage"))
        return {
            "records": rows,
            "bytes_a_record": round(self.query("SELECT pg_table_size('usage_usagerecord')") / rows),
            "index_bytes_a_record": round(self.query("SELECT pg_indexes_size('usage_usagerecord')") / rows),
            "bytes_a_daily_sum": round(self.query("SELECT pg_total_relation_size('usage_dailyusage')") / days),
        }

    async def open_streams(self, stack: ExitStack) -> dict[str, Any]:
        """Streams that have begun and say nothing: memory, descriptors and CPU of one."""
        port = free_port()
        parent = self.serve(stack, port, 1)
        (web,) = [pid for pid in with_descendants([parent]) if pid != parent and is_web(pid)]
        target = Callers(port, "/v1/chat/completions", chat("[[bench chunks=3 delay=90000]]", stream=True), self.keys)
        run = Run(target, Options(1), True, b"")
        run.open = True
        seen: list[tuple[int, float, int]] = []
        for count in OPEN_STREAMS:
            await run.connect(count - len(run.all))
            connections, run.idle = run.idle, []
            for connection in connections:
                run.dispatch(connection)
            while sum(getattr(connection, "head_done", False) for connection in run.all) < count:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            seen.append((count, resident(web), len(os.listdir(f"/proc/{web}/fd"))))
        before, began = cpu(web), time.monotonic()
        await asyncio.sleep(20)  # two beats of the heart that keeps places
        spent = (cpu(web) - before) / (time.monotonic() - began)
        run.open = False
        for connection in run.all:
            connection.busy = False
        run.close()
        await asyncio.sleep(1)
        print(f"open streams: {seen}, {spent} cores", flush=True)
        counts = [float(count) for count, _, _ in seen]
        return {
            "mib_by_open_streams": {count: round(mib, 1) for count, mib, _ in seen},
            "kib_a_stream": round(1024 * linear_regression(counts, [mib for _, mib, _ in seen]).slope, 1),
            "descriptors_a_stream": round(linear_regression(counts, [float(files) for _, _, files in seen]).slope, 2),
            "cores_by_thousand_silent_streams": round(1000 * spent / OPEN_STREAMS[-1], 4),
        }

    async def relearning(self) -> dict[str, float]:
        """What a process does anew after a change of any user, key, role, limit, router or provider: CPU, in ms."""
        body = json.dumps(chat()).encode()
        headers = {"Authorization": f"Bearer {self.keys[0]}", "Content-Type": "application/json"}
        assert self.idle is not None
        found: dict[bool, list[Reading]] = {False: [], True: []}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as session:
            for _ in range(self.rounds):
                for is_changed in (False, True):
                    before = self.read()
                    for _ in range(100):
                        if is_changed:
                            self.memory.incr("opengate:epoch")
                        async with session.post("/v1/chat/completions", data=body, headers=headers) as answer:
                            await answer.read()
                            assert answer.status == 200
                    await self.quiet()
                    found[is_changed].append(self.read().since(before).less(self.idle))
        costs = {
            f"{part}_cpu_ms": round(
                median(
                    10 * (getattr(after, part) - getattr(usual, part))
                    for usual, after in zip(found[False], found[True], strict=True)
                ),
                2,
            )
            for part in ("web", "postgres", "redis")
        }
        print(f"relearning: {costs}", flush=True)
        return costs

    async def strangers(self, usual: dict[str, float]) -> dict[str, float]:
        """What a call costs more whose key the process does not remember, or not any more: CPU, in ms."""
        found = []
        for _ in range(self.rounds):
            self.memory.incr("opengate:epoch")
            target = Callers(self.port, "/v1/chat/completions", chat(), self.keys)
            given = Options(32)
            given.requests = len(self.keys)
            run = Run(target, given, False, b'"choices"')
            before = self.read()
            slice_ = await run.once(60, False)
            await self.quiet()
            assert self.idle is not None
            found.append(self.read().since(before).less(self.idle).a_call(slice_.ok))
            run.close()
        names = ("web_cpu_ms", "postgres_cpu_ms")
        costs = {name: round(median(one[name] for one in found) - usual[name], 2) for name in names}
        print(f"strangers: {costs}", flush=True)
        return costs

    def counters(self) -> dict[str, int]:
        """Bytes in Redis of one user with four limits at one model, by strategy, after COUNTED_CALLS calls."""
        from usage import windows

        found = {}
        for name, strategy in windows.STRATEGIES.items():
            epoch: Any = self.memory.get("opengate:epoch")
            pipeline = self.memory.pipeline(transaction=False)
            for user in range(COUNTED_USERS):
                kinds = (("rpm", 60_000), ("rpd", 86_400_000), ("tpm", 60_000), ("tpd", 86_400_000))
                keys = [f"opengate:limit:{kind}:{user}:1:{GENEROUS}:{name}-weighed" for kind, _ in kinds]
                arguments = [number for _, window in kinds for number in (GENEROUS, 100, window)]
                for call in range(COUNTED_CALLS):
                    command = strategy.admit.command(
                        ["opengate:epoch", *keys], [epoch.decode(), f"{user}-{call}".ljust(32, "0"), *arguments]
                    )
                    if not user and not call:
                        pipeline.execute_command(*command)  # Redis learns it
                    pipeline.evalsha(strategy.admit._sha, 5, *command[3:])
                if user % 100 == 99:
                    pipeline.execute()
            weights: list[Any] = []
            for key in list(self.memory.scan_iter("*-weighed*", count=1000)):
                weights.append(self.memory.memory_usage(key, samples=0))
                self.memory.delete(key)
            found[name] = round(sum(weights) / COUNTED_USERS)
        print(f"counters: {found}", flush=True)
        return found


def is_web(pid: int) -> bool:
    return b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes() and bool(os.listdir(f"/proc/{pid}/task")[1:])


def resident(pid: int) -> float:
    """MiB of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def furnish(provider_url: str) -> tuple[list[str], list[str], int]:
    """Two models, people without and with a budget, and a collection; their keys."""
    from decimal import Decimal

    from django.db import connections, transaction

    from accounts.models import Key, Role, User
    from knowledge.models import Collection, Space
    from routing.models import Provider, Router
    from usage.models import Account, Limit

    role = Role.objects.create(name="people")
    routers = {}
    for name, type in (("chat", "text-generation"), ("embeddings", "text-embeddings-inference")):
        prices = {"cost_prompt_tokens": 1, "cost_completion_tokens": 1}
        routers[name] = Router.objects.create(name=name, type=type, **prices)
        Provider.objects.create(router=routers[name], type="openai", url=provider_url, model_name="fake")
        Limit.objects.open_router(role, routers[name], GENEROUS)
    keys: list[str] = []
    with transaction.atomic():
        for number in range(2 * PEOPLE):
            user = User.objects.create(email=f"{number}@example.org", role=role)
            keys.append(Key.objects.issue(user, "capacity")[1])
            if number >= PEOPLE:
                Account.objects.of(user).set_budget(Decimal(10**9))
    space = Space.objects.of(routers["embeddings"])
    owner = User.objects.get(email="0@example.org")
    collection = Collection.objects.create(
        name="papers", owner=owner, space=space, language="english", visibility="public"
    )
    connections.close_all()
    return keys[:PEOPLE], keys[PEOPLE:], collection.pk


def core_capacity(calls: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """How many calls a second one core carries, of each part alone; and web cores for each of the others' cores."""
    found = {}
    parts = ("web", "postgres", "redis")  # what the worker needs for a call is less than can be told
    for kind, costs in calls.items():
        a_second = {part: round(1000 / max(costs[f"{part}_cpu_ms"], 0.001)) for part in parts}
        web = costs["web_cpu_ms"]
        ratios = {f"web_cores_a_{part}_core": web / max(costs[f"{part}_cpu_ms"], 0.001) for part in parts[1:]}
        found[kind] = a_second | {name: round(ratio, 1) for name, ratio in ratios.items()}
    return found


async def measured(installation: Installation, stack: ExitStack) -> dict[str, Any]:
    await installation.rest()
    idle = installation.idle
    assert idle is not None
    figures: dict[str, Any] = {
        "load_average_of_the_machine_at_the_start": round(os.getloadavg()[0], 1),
        "idle_cores": {part: round(getattr(idle, part) / idle.at, 4) for part in PARTS},
        "documents": await installation.documents(),
    }
    print(figures, flush=True)
    calls = await installation.calls(stack) | await installation.searches()
    figures |= {
        "a_call": calls,
        "calls_a_second_and_core": core_capacity(calls),
        "more_after_a_change": await installation.relearning(),
        "more_for_a_key_not_remembered": await installation.strangers(calls["chat"]),
        "open_streams": await installation.open_streams(stack),
        "usage": installation.record_bytes(),
        "redis_bytes_a_user": installation.counters(),
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "capacity.json")
    given = parser.parse_args()
    environment: dict[str, Any] = {"OPENGATE_LOG_LEVEL": "ERROR", "OPENGATE_UPSTREAM_MAX_CALLS": "4000"}
    environment["OPENGATE_REDIS_TIMEOUT_SECONDS"] = "2"  # a busy machine is no sick Redis
    with servers(**environment), ExitStack() as stack:
        figures = asyncio.run(measured(Installation(stack, given.rounds), stack))
    print(json.dumps(figures, indent=1))
    given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
