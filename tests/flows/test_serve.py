"""`manage.py serve`: several processes, one of which may die, hang or be replaced, and an end that loses nothing."""

import asyncio
import http.client
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from auditlog.models import LogEntry
from django.conf import settings
from django.db import connection

from opengate.environment import read as environment_of
from routing.models import Provider
from tests.conftest import CHAT
from tests.knowledge.conftest import embeddings_router
from tests.proxy import Proxy
from tests.server import NO_CERTIFICATES, ROOT, Server, environment
from tests.upstream import EVENTS, Reply, story

pytestmark = pytest.mark.timeout(240)  # six processes start one after another

STREAMS = 100
COUNT = 2


class Service(Server):
    """The parent with its web processes, and what they say."""

    def __init__(self, folder: Path, *options: str, **extra: str) -> None:
        super().__init__("serve", **extra)
        self.options = options
        self.words = folder / "serve.log"

    def start(self) -> "Service":
        command = [sys.executable, "manage.py", "serve", "--port", str(self.port), *self.options]
        with open(self.words, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(**self.extra | {"OPENGATE_LOG_LEVEL": "INFO"}),
                stdout=log,
                stderr=log,
            )
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def said(self) -> str:
        return self.words.read_text()

    @property
    def ready(self) -> list[int]:
        """Ids of the processes that said they were ready, in order."""
        return [int(pid) for pid in re.findall(r"Web process (\d+) is ready", self.said)]

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)


@pytest.fixture
def service(gateway, router, tmp_path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(count: int, *options: str, **extra: str) -> Service:
        service = Service(tmp_path, "--workers", str(count), *options, **extra).start()
        started.append(service)
        service.wait_until(lambda: len(service.ready) == count)
        return service

    yield start
    for one in started:
        one.stop()


def keep_calling(service: Service, key: str, done: threading.Event, statuses: list[int]) -> None:
    """Over one connection, for as long as the server says: nothing is tried twice, and no closed one found out."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    while not done.is_set():
        stream = random.random() < 0.3
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": stream}), headers)
        response = connection.getresponse()
        assert b"[DONE]" in response.read() or not stream
        statuses.append(response.status)
        time.sleep(random.random() / 10)
    connection.close()


def test_processes_are_replaced_when_they_die_or_hang_and_one_after_another_under_load(service, ada, key_of, records):
    web = service(COUNT, "--hang-seconds", "5", "--keep-alive", "5", "--grace", "5")
    first, second = web.ready
    os.kill(first, signal.SIGKILL)
    web.wait_until(lambda: len(web.ready) == 3)
    os.kill(second, signal.SIGSTOP)
    web.wait_until(lambda: len(web.ready) == 4)
    assert f"Web process {first} ended with SIGKILL; another starts in 0.0 s." in web.said
    assert f"Web process {second} has hung for 5 s and is killed." in web.said

    key, done = key_of(ada), threading.Event()
    statuses: list[list[int]] = [[] for _ in range(8)]
    callers = [threading.Thread(target=keep_calling, args=(web, key, done, mine)) for mine in statuses]
    for caller in callers:
        caller.start()
    web.signal(signal.SIGHUP)
    web.wait_until(lambda: all(f"Web process {pid} has ended (exit code 0)" in web.said for pid in web.ready[2:4]))
    counted = [len(mine) for mine in statuses]
    web.wait_until(lambda: all(len(mine) > count for mine, count in zip(statuses, counted, strict=True)))
    done.set()
    for caller in callers:
        caller.join()
    answered = list(chain(*statuses))
    assert set(answered) == {200}
    assert len(set(web.ready)) == len(web.ready) == 6
    assert len(records(len(answered))) == len(answered)
    web.stop()
    assert "Traceback" not in web.said


def test_a_hundred_streams_finish_while_new_calls_are_refused(
    service, router, ada, key_of, upstream, records, inflight
):
    web = service(COUNT, "--grace", "60", "--drain-delay", "3")
    go = threading.Event()
    upstream.route("/v1/chat/completions", lambda request: Reply(held(go), content_type=EVENTS, gap=0.2))
    key = key_of(ada)

    async def flow() -> list[bool]:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=web.url, headers=headers, timeout=60, verify=NO_CERTIFICATES, limits=limits
        ) as client:
            opened = asyncio.Semaphore(0)
            streams = [asyncio.create_task(read(client, opened)) for _ in range(STREAMS)]
            for _ in range(STREAMS):
                await opened.acquire()
            assert (await client.get("/health/ready")).status_code == 200
            await asyncio.to_thread(end, web)
            go.set()
            return await asyncio.gather(*streams)

    assert all(asyncio.run(flow()))
    assert web.process.wait(30) == 0
    assert [record.outcome for record in records(STREAMS)] == ["finished"] * STREAMS
    assert inflight(router) == 0
    assert "Traceback" not in web.said


def held(go: threading.Event) -> Iterator[bytes]:
    first, *rest = story()
    yield first
    while not go.is_set():
        yield b": patience\n\n"
    yield from rest


async def read(client: httpx.AsyncClient, opened: asyncio.Semaphore) -> bool:
    async with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        lines = response.aiter_lines()
        assert "Hello" in await anext(lines)
        opened.release()
        return "data: [DONE]" in [line async for line in lines]


def end(web: Service) -> None:
    """Told to stop, it is not ready at once, takes calls for a while, and then none."""
    with web.client() as client:
        web.signal(signal.SIGTERM)
        web.wait_until(lambda: client.get("/health/ready").json() == {"status": "draining", "checks": {}})
        assert client.post("/v1/chat/completions").status_code == 401
        web.wait_until(lambda: client.get("/health").headers.get("connection") == "close")
        while (refused := client.post("/v1/chat/completions")).status_code != 503:
            time.sleep(0.05)
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["detail"] == "The server is stopping, please try again."
        assert client.get("/health").status_code == 200


def test_a_process_starts_without_postgres_and_redis_and_is_ready_later(transactional_db, redis_client):
    with tempfile.TemporaryDirectory(prefix="og-") as folder:  # socket paths must be short
        settings_of = connection.settings_dict
        host, name, user = settings_of["HOST"], settings_of["NAME"], settings_of["USER"]
        server = Server(
            "uvicorn",
            DATABASE_URL=f"postgresql://{user}@{quote(folder, safe='')}/{name}",
            REDIS_URL=f"unix://{folder}/redis?db=0",
        ).start()
        cables = []
        try:
            with server.client() as client:
                away = {"postgres": "away", "redis": "away", "migrations": "unknown"}
                assert client.get("/health/ready").json()["checks"] == away
                cables.append(
                    Proxy(Path(folder, "redis"), settings.REDIS_URL.removeprefix("unix://").partition("?")[0])
                )
                cables.append(Proxy(Path(folder, ".s.PGSQL.5432"), f"{host}/.s.PGSQL.5432"))
                deadline = time.monotonic() + 30
                while client.get("/health/ready").status_code != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            server.stop()
            for cable in cables:
                cable.close()


def test_the_address_that_a_trusted_proxy_tells_is_the_callers(gateway, admin, key_of):
    with gateway.client(key_of(admin)) as client:
        headers = {"X-Forwarded-For": "10.9.9.9, 203.0.113.7"}  # the first is the caller's own word
        assert client.post("/v1/admin/organizations", json={"name": "x"}, headers=headers).status_code == 201
    assert LogEntry.objects.get(actor=admin).remote_addr == "203.0.113.7"


def test_a_proxy_is_an_address_or_a_network():
    understood, problems = environment_of({"OPENGATE_TRUSTED_PROXIES": "10.0.0.0/8, fd00::/8, 192.0.2.1"})
    assert problems == []
    assert understood.trusted_proxies == ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]
    understood, problems = environment_of({"OPENGATE_TRUSTED_PROXIES": "*"})
    assert [problem.variable for problem in problems] == ["OPENGATE_TRUSTED_PROXIES"]
    assert understood.trusted_proxies == ["127.0.0.1", "::1"]


def test_a_second_signal_cuts_and_settles(service, router, role, ada, admin, key_of, upstream, records, inflight):
    web = service(1, OPENGATE_TRUSTED_PROXIES="10.0.0.0/8")
    with web.client(key_of(admin)) as client:
        headers = {"X-Forwarded-For": "203.0.113.7"}
        assert client.post("/v1/admin/organizations", json={"name": "x"}, headers=headers).status_code == 201
    assert LogEntry.objects.get(actor=admin).remote_addr == "127.0.0.1"
    embeddings = embeddings_router(upstream, role)
    Provider.objects.update(timeout=60)
    upstream.route("/v1/embeddings", lambda request: Reply([b"{}"], wait=60))
    upstream.reply(chunks=story()[:2], then="stall")
    with (
        ThreadPoolExecutor() as pool,
        web.client(key_of(ada)) as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        silent = pool.submit(client.post, "/v1/embeddings", json={"model": "embeddings", "input": "x"})
        web.wait_until(lambda: any(request.path == "/v1/embeddings" for request in upstream.received))
        lines = response.iter_lines()
        assert "Hello" in next(lines)
        web.signal(signal.SIGTERM)
        web.wait_until(lambda: httpx.get(f"{web.url}/health/ready", verify=NO_CERTIFICATES).status_code == 503)
        web.signal(signal.SIGTERM)
        *_, last, empty = lines
        assert last.startswith('data: {"detail":"The server is stopping')
        assert not empty
        assert (silent.result().status_code, silent.result().headers["retry-after"]) == (503, "2")
    assert web.process.wait(30) == 0
    assert {(record.endpoint, record.outcome) for record in records(2)} == {
        ("/v1/chat/completions", "client_left"),
        ("/v1/embeddings", "client_left"),
    }
    assert inflight(router) == inflight(embeddings) == 0
    assert "Traceback" not in web.said


def test_a_web_process_opens_as_many_files_as_it_may():
    look = "import resource; from opengate import serving; serving.raise_file_limit();"
    look += "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    command = f"ulimit -Sn 256 && ulimit -Hn 5000 && exec {sys.executable} -c '{look}'"
    limits = subprocess.check_output(["sh", "-c", command], cwd=ROOT, env=environment(), text=True)
    assert limits.splitlines()[0] == "(5000, 5000)"


class Narrow(Server):
    """A web process that may have 160 descriptors."""

    def spawn(self, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        process = super().spawn(variables)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (160, 160))
        return process


def test_connections_leave_descriptors_for_the_calls(router, ada, key_of, chat, redis_client):
    server = Narrow("uvicorn").start()
    try:
        with server.client(key_of(ada)) as client, ExitStack() as stack:
            assert client.get("/health").status_code == 200
            where = ("127.0.0.1", server.port)
            idle = [stack.enter_context(socket.create_connection(where, 10)) for _ in range(200)]
            assert idle[-1].recv(100).startswith(b"HTTP/1.1 503 ")
            assert chat(client).status_code == client.get("/health/ready").status_code == 200
    finally:
        server.stop()
