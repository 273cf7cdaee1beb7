"""Connections to providers: used again when all was in order, else never; no answer but to its request."""

import asyncio
import gzip
import io
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from inference.errors import UpstreamTrouble
from inference.upstream import connections, http
from inference.upstream.forms import Form
from opengate.loops import wind_down
from routing.models import Provider
from routing.snapshot import provider_of
from tests.inference.peer import Peer, Says, answer

Run = Callable[[Awaitable[Any]], Any]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request) -> Run:
    """Run async work in a loop of the kind, and leave nothing open."""

    async def work(story: Awaitable[Any]) -> Any:
        try:
            return await story
        finally:
            await wind_down()

    def _run(story: Awaitable[Any]) -> Any:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work(story))

    return _run


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def _peer(*says: Says, **how: Any) -> Peer:
        peers.append(Peer(*says, **how))
        return peers[-1]

    yield _peer
    for made in peers:
        made.close()


def at(url: str, timeout: int = 3) -> Any:
    return provider_of(Provider(type="openai", url=url, timeout=timeout, model_name="m"))


async def said(peer: Peer, body: Any = b"{}") -> str:
    """What comes of a call: the answer, or the trouble's status and words."""
    try:
        return (await http.post(at(peer.url), "v1/x", body)).decode()
    except UpstreamTrouble as error:
        return f"{error.status} {error.detail}"


async def one_by_one(peer: Peer, count: int) -> list[str]:
    return [await said(peer) for _ in range(count)]


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BUSY = "503 Model is too busy (AnswerCut), please try again later."
GARBLED = "500 AnswerGarbled"
UNREADABLE = "500 Response formatting failed."
UNAVAILABLE = "503 Model is temporarily unavailable, please try again later."


def test_a_connection_is_used_again_and_by_one_call_at_a_time(run, peer):
    there = peer(Says(answer(b"1")), Says(CHUNKED + b"1\r\n2\r\n0\r\nX-Trailer: 1\r\n\r\n"), Says(answer(b"3")))
    assert run(one_by_one(there, 3)) == ["1", "2", "3"]
    assert there.connections == 1
    many = peer(*[Says(answer(b"%d" % number)) for number in range(20)])

    async def at_once() -> list[str]:
        return await asyncio.gather(*(said(many) for _ in range(20)))

    assert sorted(run(at_once()), key=int) == [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("first", "heard"),
    [
        (Says(answer(b"mine") + answer(b"another's")), "mine"),
        (Says(answer(b"mine") + b"rubbish"), "mine"),
        (Says(answer(b"mine"), later=answer(b"another's")), "mine"),
        (Says(answer(b"mine", "Connection: close") + b"more"), "mine"),
        (Says(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nmine"), "mine"),
        (Says(b"HTTP/1.1 200 OK\r\n\r\nmine", then="close"), "mine"),
        (Says(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + answer(b"mine", "Connection: close")), "mine"),
        (Says(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + answer(b"x")), GARBLED),
        (Says(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000), GARBLED),
        (Says(b"hello\r\n\r\n"), GARBLED),
        (Says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2**20), GARBLED),
        (Says(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 2**16), GARBLED),
        (Says(answer(b"mine", "Transfer-Encoding: chunked")), GARBLED),
        (Says(answer(b"mine", "Content-Length: 2")), GARBLED),
        (Says(CHUNKED + b"4\r\nmine\r\nzz\r\n"), BUSY),
        (Says(CHUNKED + b"4\r\nmine\r\n0\r\nX: " + b"a" * 2**20), BUSY),
        (Says(CHUNKED + b"4\r\nmine\r\n", then="close"), BUSY),
        (Says(answer(b"mine")[:-1], then="close"), BUSY),
        (Says(b"", then="close"), BUSY),
        (Says(answer(status=204)), UNAVAILABLE),
        (Says(answer(gzip.compress(b"mine", mtime=0), "Content-Encoding: gzip", "Connection: close")), "mine"),
        (Says(answer(gzip.compress(bytes(2**27), mtime=0), "Content-Encoding: gzip", "Connection: close")), UNREADABLE),
        (Says(answer(b"mine", "Content-Encoding: br", "Connection: close")), UNREADABLE),
        (
            Says(answer(gzip.compress(b"no", mtime=0), "Content-Encoding: gzip", "Connection: close", status=400)),
            "400 no",
        ),
    ],
    ids=lambda case: str(case.data[:40] + case.data[-20:]) if isinstance(case, Says) else "",
)
def test_after_an_answer_out_of_order_the_next_call_gets_its_own_by_another_connection(run, peer, first, heard):
    there = peer(first, Says(answer(b"yours")))

    async def calls() -> list[str]:
        mine = await said(there)
        if first.later:
            await until(lambda: there.open == 0)
        return [mine, await said(there)]

    assert run(calls()) == [heard, "yours"]
    assert [number for number, _ in there.asked] == [1, 2]


def test_a_request_that_a_kept_connection_took_to_its_grave_is_sent_once_more(run, peer, monkeypatch):
    there = peer(Says(answer(b"1")), Says(b"", then="close"), Says(answer(b"2")))
    assert run(one_by_one(there, 2)) == ["1", "2"]
    assert [number for number, _ in there.asked] == [1, 1, 2]

    again = peer(Says(answer(b"1")), Says(b"", then="close"), Says(b"", then="close"))
    assert run(one_by_one(again, 2)) == ["1", BUSY]
    begun = peer(Says(answer(b"1")), Says(b"HTTP", then="close"))
    assert run(one_by_one(begun, 2)) == ["1", BUSY]
    monkeypatch.setattr(connections, "STALE_SECONDS", -1)
    taken_in = peer(Says(answer(b"1")), Says(b"", then="close"))
    assert run(one_by_one(taken_in, 2)) == ["1", BUSY]
    assert [len(one.asked) for one in (again, begun, taken_in)] == [3, 2, 2]


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n"])
def test_what_is_said_unasked_is_no_answer(run, peer, greeting):
    there = peer(greeting=greeting)
    assert set(run(one_by_one(there, 3))) <= {BUSY, GARBLED}
    assert there.connections == 3


def test_an_answer_before_all_is_sent_is_one_and_ends_the_connection(run, peer):
    refusal = Says(answer(b'{"message": "too long"}', status=413), is_early=True)
    there = peer(refusal, refusal)
    form = Form({}, lambda: io.BytesIO(bytes(2**24)), "a.wav", "audio/wav")

    async def calls() -> list[str]:
        return [await said(there, bytes(2**24)), await said(there, form), await said(there)]

    assert run(calls()) == ["413 too long", "413 too long", "{}"]
    assert [number for number, _ in there.asked] == [1, 2, 3]


@pytest.mark.parametrize("is_second_first", [True, False])
def test_who_leaves_the_line_takes_nobodys_turn(run, peer, settings, is_second_first):
    settings.UPSTREAM_MAX_CALLS = 1
    there = peer(Says(b"", then="stall"))

    async def story() -> str:
        first = asyncio.ensure_future(said(there))
        await until(lambda: len(there.asked) == 1)
        second, third = asyncio.ensure_future(said(there)), asyncio.ensure_future(said(there))
        await asyncio.sleep(0)
        for task in (second, first) if is_second_first else (first, second):
            task.cancel()
            await asyncio.sleep(0)
        return await third

    assert run(story()) == "{}"
    assert len(there.asked) == 2


def test_kept_connections_are_few_and_grow_old(run, peer, monkeypatch):
    monkeypatch.setattr(connections, "MAX_IDLE", 2)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    there = peer()

    async def calls() -> None:
        await asyncio.gather(*(said(there) for _ in range(5)))
        assert there.connections > 2
        await until(lambda: there.open == 2)
        await until(lambda: there.open == 0)
        assert await said(there) == "{}"

    run(calls())


def test_a_kept_connection_that_the_provider_closes_is_let_go_at_once(run, peer):
    there = peer(Says(answer(b"1")), Says(answer(b"2")))

    async def calls() -> None:
        assert await said(there) == "1"
        pool = http._client().pool
        assert len(pool.connections) == 1
        there.hang_up()
        await until(lambda: not pool.connections)
        assert await said(there) == "2"

    run(calls())
    assert [number for number, _ in there.asked] == [1, 2]


def test_a_slow_reader_holds_the_provider_back_and_loses_nothing(run, peer):
    size = 2**25
    there = peer(Says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)))

    async def story() -> int:
        async with aclosing(http.stream(at(there.url), "v1/x", b"{}")) as pieces:
            length = len(await anext(pieces))
            sent = -1
            while sent != there.sent:  # until it goes no further
                sent = there.sent
                await asyncio.sleep(0.1)
            assert 0 < sent < size / 2
            async for piece in pieces:
                length += len(piece)
        return length

    assert run(story()) == size


def test_a_reader_who_has_enough_keeps_a_connection_whose_answer_ends_and_no_other(run, peer):
    done = CHUNKED + b"6\r\n[DONE]\r\n"
    ends, stalls = Says(done, later=b"0\r\n\r\n"), Says(done, then="stall")
    there = peer(ends, stalls, Says(done, later=b"4\r\nmore\r\n", then="stall"))

    async def first() -> bytes:
        async with aclosing(http.stream(at(there.url), "v1/x", b"{}")) as pieces:
            return await anext(pieces)

    async def story() -> None:
        assert await first() == b"[DONE]"
        await until(lambda: http._client().pool._kept != {})
        for _ in range(2):
            assert await first() == b"[DONE]"
            await until(lambda: there.open == 0)
        assert [number for number, _ in there.asked] == [1, 1, 2]

    run(story())


class Slowly(io.BytesIO):
    """A file that remembers how much of it was asked for at once."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        self.most = max(self.most, size if size is not None and size >= 0 else 2**60)
        return super().read(size)


def test_a_file_is_sent_from_where_it_lies_as_fast_as_it_is_taken(run, peer):
    content = bytes(range(256)) * 2**16
    files: list[Slowly] = []

    def opened() -> Slowly:
        files.append(Slowly(content))
        return files[-1]

    there, stuck = peer(), peer(Says(b"", is_early=True))
    form = Form({"model": ["m"], "é": ["1", "2"]}, opened, 'a"\r\né.wav', "audio/wav")

    async def story() -> int:
        assert await said(there, form) == "{}"
        task = asyncio.ensure_future(said(stuck, form))
        await until(lambda: len(stuck.asked) == 1)
        await asyncio.sleep(0.1)
        read = files[1].tell()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return read

    assert run(story()) < len(content) / 2
    assert files[0].most <= 2**17
    assert [file.closed for file in files] == [True, True]
    ((_, request),) = there.asked
    assert content + b"\r\n--" in request
    assert request.count(b"\r\n\r\n") == 5  # of the head and of each part
    assert 'filename="a%22%0D%0Aé.wav"'.encode() in request


def test_addresses_are_tried_in_turn_and_the_one_that_answered_comes_first(run, peer, monkeypatch):
    there, asked = peer(Says(answer(b"1", "Connection: close"))), []

    def look_up(host: str, port: int, *args: Any, **how: Any) -> Any:
        asked.append(host)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.2", port)), (*kind, ("127.0.0.1", port))]

    async def story() -> None:
        url = f"http://models.example:{there.port}/"
        for _ in range(2):
            await http.get(at(url), "v1/x")
        assert list(http._client().pool._met.values()) == [look_up("", there.port)[1]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    run(story())
    assert asked == ["models.example", ""]


def certificate(folder: Path, name: x509.GeneralName) -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself, and a server that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key").write_bytes(private)
    (folder / "certificate").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return folder / "certificate", context


@pytest.mark.parametrize(
    ("name", "is_known", "heard"),
    [("localhost", True, "{}"), ("localhost", False, UNAVAILABLE), ("another.example", True, UNAVAILABLE)],
)
def test_tls_wants_a_certificate_of_that_name_by_somebody_known(
    run, peer, tmp_path, monkeypatch, name, is_known, heard
):
    path, context = certificate(tmp_path, x509.DNSName(name))
    there = peer(certificate=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(path if is_known else tmp_path / "none"))
    connections._certificates.cache_clear()

    async def calls() -> list[str]:
        url = there.url.replace("127.0.0.1", "localhost")
        found = []
        for body in (b"{}", bytes(2**22)):
            try:
                found.append((await http.post(at(url), "v1/x", body)).decode())
            except UpstreamTrouble as error:
                found.append(f"{error.status} {error.detail}")
        there.hang_up()
        await until(lambda: not http._client().pool.connections)
        return found

    try:
        assert run(calls()) == [heard, heard]
    finally:
        connections._certificates.cache_clear()
    assert [number for number, _ in there.asked] == ([1, 1] if heard == "{}" else [])
