"""kill -9, of the web process and of the worker, under load: what was answered is counted, once."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from django.db.models import Sum

from routing.models import Router
from tests.conftest import CHAT
from tests.flows.worker import Worker
from tests.server import Server
from usage import auditing, spool
from usage.models import Account, UsageRecord

CALLS, THREADS = 500, 16
WEB_DIES_AT, WORKER_DIES_AT = 150, 300
SECONDS = 60


@dataclass
class Load:
    """Callers that go on through the death of the server; a connection that is refused is tried again."""

    server: Server
    key: str
    answered: list[str] = field(default_factory=list)
    cut: int = 0

    def __post_init__(self) -> None:
        self._numbers = iter(range(CALLS))
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.answered) >= count, SECONDS), len(self.answered)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()

    def _run(self) -> None:
        with self.server.client(self.key) as client:
            while (number := self._next()) is not None:
                request_id = self._call(client, stream=number % 2 == 0)
                with self._changed:
                    if request_id is None:
                        self.cut += 1
                    else:
                        self.answered.append(request_id)
                    self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            return next(self._numbers, None)

    def _call(self, client: httpx.Client, *, stream: bool) -> str | None:
        """The id of a call whose answer came whole; None when it was cut."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                response = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.02)  # until somebody listens again
            except httpx.TransportError:
                return None
            else:
                assert response.status_code == 200, response.text
                assert not stream or response.text.endswith("data: [DONE]\n\n")
                return response.headers["x-request-id"]


@pytest.fixture
def server(redis_client, router) -> Iterator[Server]:
    server = Server().start()
    yield server
    server.stop()


@pytest.fixture
def worker(redis_client, transactional_db, tmp_path) -> Iterator[Worker]:
    worker = Worker(tmp_path).start()
    yield worker
    worker.stop()


def test_what_was_answered_is_counted_once_though_everything_is_killed(
    server, worker, router, ada, key_of, chat, redis_client
):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=2_000_000)
    key = key_of(ada)
    with server.client(key) as client:
        first = chat(client).headers["x-request-id"]
    worker.wait_until(UsageRecord.objects.exists)  # both are at work

    load = Load(server, key)
    load.wait_for(WEB_DIES_AT)
    server.kill()
    server.start()
    load.wait_for(WORKER_DIES_AT)
    worker.kill()
    worker.start()
    load.join()
    worker.wait_until(lambda: redis_client.xlen(spool.STREAM) == 0)

    recorded = list(UsageRecord.objects.exclude(request_id=first).values_list("request_id", flat=True))
    cost = UsageRecord.objects.aggregate(cost=Sum("cost"))["cost"]
    print(f"\n{CALLS} calls: {len(load.answered)} answered, {load.cut} cut, {len(recorded)} records, cost {cost}")
    assert len(load.answered) + load.cut == CALLS
    assert load.cut > 0
    assert len(set(load.answered)) == len(load.answered)
    assert len(set(recorded)) == len(recorded)
    assert set(load.answered) <= set(recorded)
    assert len(recorded) - len(load.answered) <= min(load.cut, THREADS)  # settled, and the last byte was lost
    assert redis_client.xlen(spool.REJECTED) == 0
    assert Account.objects.get(user=ada).spent == cost
    assert auditing.audit().is_clean
