"""Requests as no decent client sends them, and many callers who leave."""

import json
import os
import socket
import time

import pytest

from tests.server import UNREADABLE
from tests.upstream import chunk, completion, event, story

CHAT = {"model": "model", "messages": [{"role": "user", "content": "Say hello."}]}
BODY = json.dumps(CHAT).encode()


def request(key: str, body: bytes = BODY, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def talk(gateway, *parts: bytes, until: bytes = b"", seconds: float = 3) -> bytes:
    """Send bytes over a bare socket; what came back until `until` came often enough, silence, or the end."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
        seen = b""
        try:
            while data := connection.recv(65536):
                seen += data
                if until and seen.count(until) >= 1:
                    break
        except TimeoutError:
            pass
        return seen


def test_two_callers_on_one_connection_get_each_their_own(gateway, router, ada, ben, key_of, upstream, records):
    upstream.reply(completion("for ada"))
    upstream.reply(completion("for ben"))
    both = request(key_of(ada, "a")) + request(key_of(ben, "b"))
    seen = talk(gateway, both, until=b"for ben").decode()
    assert seen.index("for ada") < seen.index("for ben")
    assert [(record.user_email, record.status) for record in records(2)] == [
        ("ada@example.org", 200),
        ("ben@example.org", 200),
    ]


@pytest.mark.parametrize(
    "path", ["//v1/chat/completions", "/v1/chat/completions/", "/v1/./chat/completions", "/v1/chat/completions%00"]
)
def test_other_spellings_of_the_path_lead_nowhere(gateway, router, ada, key_of, upstream, path):
    seen = talk(gateway, request(key_of(ada), BODY, path), until=b"detail")
    assert seen.split(b" ")[1] in (b"400", b"404")
    assert upstream.received == []


def test_a_chunked_body_is_a_body(gateway, router, ada, key_of):
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    seen = talk(
        gateway, request(key_of(ada), body, "/v1/chat/completions", "Transfer-Encoding: chunked"), until=b"usage"
    )
    assert b"200 OK" in seen


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Content-Length: 500"),
        ("Content-Length: -1",),
        ("Content-Length: x",),
        ("Content-Length: 100", "Transfer-Encoding: chunked"),
    ],
)
def test_contradictory_lengths_are_refused(gateway, router, ada, key_of, upstream, headers):
    seen = talk(gateway, request(key_of(ada), BODY, "/v1/chat/completions", *headers), until=b"\r\n\r\n")
    assert seen == b"" or seen.split(b" ")[1].decode() in UNREADABLE
    assert upstream.received == []


def test_an_unfinished_body_waits_for_nobody_else(gateway, router, ada, key_of, chat):
    key = key_of(ada)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as slow:
        slow.sendall(request(key, BODY, "/v1/chat/completions", "Content-Length: 100000"))
        with gateway.client(key) as client:
            assert chat(client).status_code == 200


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_callers_who_leave_leave_nothing_behind(gateway, router, ada, key_of, upstream, records, inflight):
    """300 streams left at different places: no socket, no place in flight, no memory, and a record each."""
    key, pid = key_of(ada), gateway.pid
    body = json.dumps(CHAT | {"stream": True}).encode()

    def leave(number: int) -> None:
        upstream.reply(chunks=[*story()[:2], event(chunk("x" * 1000))], then="stall")
        markers = (b"HTTP/1.1", b"Hello", b"there", b"xxxx")
        talk(gateway, request(key, body), until=markers[number % len(markers)])

    for number in range(20):
        leave(number)
    records(20)
    before, memory = fds(pid), rss_kib(pid)
    for number in range(300):
        leave(number)
    assert {record.outcome for record in records(320)} == {"client_left"}
    assert len(records(320)) == 320
    assert inflight(router) == 0
    deadline = time.monotonic() + 5
    while fds(pid) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert fds(pid) <= before
    assert rss_kib(pid) - memory < 8 * 1024
    assert all(request.left.wait(1) for request in upstream.received)
