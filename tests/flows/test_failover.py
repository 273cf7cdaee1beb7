"""A provider dies while calls go on: nobody notices, it is left alone, and it comes back by itself."""

import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import pytest

from opengate.loops import in_loop
from routing import circuit, load
from routing.circuit import State
from routing.models import Provider
from tests.conftest import CHAT
from tests.flows.load import Callers
from tests.routing.providers import count_outage
from tests.server import ROOT, free_port

CALLS, CALLERS = 1000, 16
DIES_AT, RETURNS_AT = 300, 700


class Twin:
    """A provider as a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / "upstream.py"), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"{self.url}stats")
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Grave:
    """Listens where a provider was, closes each connection, and counts them."""

    def __init__(self, port: int) -> None:
        self.knocks = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.knocks += 1
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def twins():
    made = [Twin(), Twin()]
    yield made
    for twin in made:
        twin.kill()


def state_of(provider: Provider) -> State:
    async def ask() -> State:
        return (await load.of([provider.id]))[provider.id].circuit.state

    return in_loop(ask())


def test_no_call_fails_when_one_of_two_providers_is_killed(gateway, router, ada, key_of, twins, records):
    router.providers.all().delete()
    steady, mortal = (
        Provider.objects.create(router=router, type="vllm", url=twin.url, model_name="fake", timeout=5)
        for twin in twins
    )
    key = key_of(ada)
    has_returned = threading.Event()

    def call(client, number) -> str:
        stream = number % 2 == 0
        text = f"[[bench chunks=5 delay=1 size=20 latency=5]] {number}"
        response = client.post(
            "/v1/chat/completions",
            json=CHAT | {"stream": stream, "messages": [{"role": "user", "content": text}]},
        )
        assert response.status_code == 200, response.text
        if not stream:
            assert response.json()["choices"]
        return "whole" if not stream or response.text.endswith("data: [DONE]\n\n") else "cut"

    callers = Callers(
        [gateway],
        [key] * CALLERS,
        call,
        lambda callers: len(callers.answers) >= CALLS and has_returned.is_set(),
    )
    callers.wait_for(DIES_AT)
    twins[1].kill()
    grave = Grave(twins[1].port)
    callers.wait_for(RETURNS_AT)
    assert state_of(mortal) == State.OPEN
    knocks = grave.knocks
    grave.close()
    twins[1].start()
    begun = time.monotonic()
    while state_of(mortal) != State.CLOSED:
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    has_returned.set()
    answers = Counter(callers.join())

    found = records(sum(answers.values()))
    served = Counter(record.provider_id for record in found)
    print(f"\n{sum(answers.values())} calls: {answers['whole']} whole, {answers['cut']} cut after their first byte")
    print(f"{knocks} tries at the dead provider during {RETURNS_AT - DIES_AT} calls; back after {seconds:.1f} s")
    print(f"{served[steady.id]} and {served[mortal.id]} calls served")
    assert len(found) == sum(answers.values())
    assert all(record.status == 200 for record in found)
    assert answers["cut"] <= CALLERS
    # Five in a row open it, beside those that were under way, and a trial or two while it was dead.
    assert knocks <= circuit.FAILURES_TO_OPEN + CALLERS + 3
    assert served[mortal.id] > DIES_AT // 4


def test_the_provider_that_was_left_alone_serves_again(as_ada, router, redis_client, chat, records):
    """The trial after the pause is an ordinary call, which gets its answer."""
    provider = router.providers.get()
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)
    redis_client.hincrbyfloat(circuit.key(provider.id), "until", -10)
    assert chat(as_ada).status_code == 200
    assert state_of(provider) == State.CLOSED
    (record,) = records()
    assert record.provider_id == provider.id


def test_with_the_only_circuit_open_the_answer_is_503_at_once(as_ada, router, chat, upstream, redis_client, records):
    provider = router.providers.get()
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)
    response = chat(as_ada)
    assert response.status_code == 503
    assert response.json()["detail"] == "Model is temporarily unavailable, please try again later."
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert upstream.received == []
    (record,) = records()
    assert (record.status, record.outcome, record.provider_id, record.cost) == (503, "upstream_failed", None, 0)
    assert record.total_tokens == 0


def test_a_provider_that_was_changed_is_tried_at_once(as_ada, router, chat, redis_client):
    provider = router.providers.get()
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)
    assert chat(as_ada).status_code == 503
    provider.timeout = 6
    provider.save()
    assert chat(as_ada).status_code == 200


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_statuses_that_a_request_may_bring_about_open_no_circuit(as_ada, router, chat, upstream, status):
    for _ in range(circuit.FAILURES_TO_OPEN + 1):
        upstream.reply({"error": "x"}, status=status)
        assert chat(as_ada).status_code == status
    assert state_of(router.providers.get()) == State.CLOSED


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_provider_that_says_it_is_away_is_left_alone(as_ada, router, chat, upstream, status):
    for _ in range(circuit.FAILURES_TO_OPEN):
        upstream.reply({"error": "x"}, status=status)
        assert chat(as_ada).status_code == status
    assert state_of(router.providers.get()) == State.OPEN
