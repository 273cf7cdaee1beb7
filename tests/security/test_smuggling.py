"""Requests whose end two readers could see in two places: refused, or read in step, never one inside another.

What is clear must hold on every server. How much that is not is refused, and how soon, is `manage.py serve`'s own.
"""

import json
from contextlib import ExitStack

import pytest

from tests.conftest import CHAT
from tests.security.wire import Target, answers, request

NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
BODY = json.dumps(CHAT).encode()
LENGTH = str(len(BODY)).encode()
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked"

REFUSED = {
    "length and chunks": (b"Content-Length: 4\r\n" + CHUNKED, CHUNKS),
    "chunks and length": (CHUNKED + b"\r\nContent-Length: 4", CHUNKS),
    "two lengths": (b"Content-Length: 4\r\nContent-Length: " + LENGTH, BODY),
    "twice the same length": (b"Content-Length: %s\r\nContent-Length: %s" % (LENGTH, LENGTH), BODY),
    "a list of lengths": (b"Content-Length: %s, %s" % (LENGTH, LENGTH), BODY),
    **{
        f"a length of {value!r}": (b"Content-Length: " + value, BODY)
        for value in (b"+5", b"-1", b"0x10", b"5 5", b"", b"9" * 30, b"1e3", b"five")
    },
    **{
        f"{line!r}": (line, CHUNKS)
        for line in (
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding:\x0bchunked",
            b"Transfer-Encoding:\r\n chunked",
            b'Transfer-Encoding: "chunked"',
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        )
    },
    "a folded header": (b"X: a\r\n b\r\nContent-Length: " + LENGTH, BODY),
    "a bare carriage return": (b"X: a\rTransfer-Encoding: chunked", CHUNKS),
    "a bare line feed": (b"X: a\nContent-Length: " + LENGTH, BODY),
    "NUL in a name": (b"X\0: a\r\nContent-Length: " + LENGTH, BODY),
    "NUL in a value": (b"X: a\0b\r\nContent-Length: " + LENGTH, BODY),
    **{
        f"a chunk that begins {start!r}": (CHUNKED, start + BODY + b"\r\n0\r\n\r\n")
        for start in (b"F" * 17 + b"\r\n", b"-1\r\n", b"0x5\r\n", b"%x;a\n" % len(BODY), b"%x\n" % len(BODY), b"\r\n")
    },
    "a chunk without its end": (CHUNKED, b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY)),
}
IN_STEP = {
    "a length": (b"Content-Length: " + LENGTH, BODY),
    "chunks": (CHUNKED, CHUNKS),
    "chunks after a tab": (b"Transfer-Encoding:\tchunked", CHUNKS),
    "chunks by another case": (b"tRANSFER-ENCODING: CHUNKED", CHUNKS),
    "extensions of chunks": (CHUNKED, b"%x;a=b\r\n%s\r\n0;c\r\n\r\n" % (len(BODY), BODY)),
    "trailers that would be headers": (
        CHUNKED,
        b"%x\r\n%s\r\n0\r\nAuthorization: Bearer x\r\nHost: evil.example\r\n\r\n" % (len(BODY), BODY),
    ),
}


def call(key: str, lines: bytes, body: bytes, path: str = "/v1/chat/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode()
    return head + lines + b"\r\n\r\n" + body


def test_an_ambiguous_request_is_refused_and_the_connection_closed(serve, ada, key_of, router, upstream, unused):
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        for name, (lines, body) in REFUSED.items():
            found = serve.send(call(key_of(ada), lines, body, path) + NEXT)
            assert (found.statuses, found.closed) == ([400], True), (path, name)
    assert upstream.received == []


def test_what_is_clear_is_read_in_step(target, ada, key_of, router, upstream):
    for name, (lines, body) in IN_STEP.items():
        upstream.received.clear()
        found = target.send(call(key_of(ada), lines, body) + NEXT)
        assert (found.statuses, found.closed, len(upstream.received)) == ([200, 200], True, 1), name


def test_a_body_behind_a_refusal_is_no_request(target, router, upstream, unused):
    """Not even one that looks like it, with a key or without, whatever the refusal."""
    hidden = request("DELETE", "/v1/collections/1") + NEXT
    for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/me/keys", "/nowhere", "/admin/login/"):
        for sent in (
            request("POST", path, {}, hidden),
            request("POST", path, {"Content-Length": "0", "Transfer-Encoding": "chunked"}, b"").replace(
                b"Content-Length: 0\r\n", b""
            )
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden),
        ):
            found = target.send(sent + NEXT)
            assert len(found.statuses) == 2, (path, found.raw)
            assert found.statuses[0] in (400, 401, 403, 404), path
            assert (found.statuses[1], found.closed) == (200, True)


def test_a_length_that_lies_is_found_out(serve, ada, key_of, router, upstream, unused):
    """Too short: what is left is no request. Too long: the caller is waited for, and then no more. None: no body."""
    short = serve.send(call(key_of(ada), b"Content-Length: %d" % (len(BODY) - 1), BODY))
    none = serve.send(call(key_of(ada), b"X: y", BODY))
    long = serve.send(call(key_of(ada), b"Content-Length: %d" % (len(BODY) + 5), BODY), quiet=8)
    left = serve.send(call(key_of(ada), b"Content-Length: %d" % (len(BODY) + 5), BODY), end=True)
    assert (short.statuses, short.closed) == ([422], True)
    assert (none.statuses, none.closed) == ([422], True)
    assert (long.statuses, long.closed, long.content["detail"][:8]) == ([408], True, "The body")
    assert left.statuses in ([], [408])
    assert upstream.received == []


def test_a_change_of_protocol_ends_the_connection(serve, ada, key_of, router, upstream, unused):
    """A proxy that lets it through and one that does not would see other requests in what follows."""
    for protocol in ("websocket", "h2c", "TLS/1.0"):
        asked = {"Upgrade": protocol, "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        for path in ("/health", "/v1/models", "/v1/chat/completions", "/playground/chat"):
            found = serve.send(request("GET", path, asked) + NEXT + NEXT)
            assert len(found.statuses) == 1, (protocol, path)
            assert found.statuses[0] != 101
            assert found.closed
        found = serve.send(call(key_of(ada), f"Upgrade: {protocol}\r\nConnection: Upgrade".encode(), NEXT))
        assert (len(found.statuses), found.closed) == (1, True)


def test_there_is_no_websocket(target):
    """Not even for one who asks properly, of a server that would have it."""
    asked = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    for path in ("/health", "/v1/chat/completions", "/playground/chat"):
        found = target.send(request("GET", path, asked | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}))
        assert found.statuses in ([200], [403], [405]), path


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (b"GET /health HTTP/1.2", [400]),
        (b"GET /health HTTP/9.9", [400]),
        (b"PRI * HTTP/2.0", [400]),
        (b"GET /hea lth HTTP/1.1", [400]),
        (b"CONNECT evil.example:443 HTTP/1.1", [400]),
        (b"FOO /health HTTP/1.1", [400]),
        (b"G\0T /health HTTP/1.1", [400]),
        (b"A" * 1_000_000 + b" / HTTP/1.1", [400]),
        ("GET /é HTTP/1.1".encode(), [400]),
        (b"\x16\x03\x01\x02\x00\x01", [400]),
        (b"GET /v1/models?" + b"a" * 1_000_000 + b" HTTP/1.1", [431]),
        (b"GET /health HTTP/1.1\r\nX: " + b"a" * 1_000_000, [431]),
        (b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 9_999 + b"X: a", [431]),
        (b"GET /health HTTP/1.1\r\n" + b"a" * 1_000_000, [431]),
        (b"GET /v1/models?" + b"a" * 60_000 + b" HTTP/1.1", [401, 200]),
        (b"OPTIONS * HTTP/1.1", [404, 200]),
        (b"GET /%ff%zz HTTP/1.1", [404, 200]),
        (b"GET http://evil.example/v1/models HTTP/1.1", [401, 200]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_odd_line_is_refused_and_a_long_head_not_kept(serve, line, statuses):
    found = serve.send(line + b"\r\nHost: localhost\r\n\r\n" + NEXT)
    assert (found.statuses, found.closed) == (statuses, True)


@pytest.mark.parametrize("end", ["\r\n\r\n", ""], ids=["whole", "endless"])
def test_headers_are_counted_as_they_come(serve, end):
    with serve.connect() as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 70_000 + end.encode())
        answer = caller.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"Request headers are too large (max: 65536 bytes)." in answer


def test_old_callers_get_one_answer(serve):
    for version in (b"HTTP/1.0", b"HTTP/1.0\r\nConnection: keep-alive"):
        found = serve.send(b"GET /health " + version + b"\r\n\r\n" + NEXT)
        assert (found.statuses, found.closed) == ([200], True)


def test_requests_in_a_row_are_answered_in_order_up_to_a_number(serve):
    few = request("GET", "/v1/models") + request("GET", "/health") + request("GET", "/nowhere")
    assert serve.send(few * 5 + NEXT).statuses == [401, 200, 404] * 5 + [200]
    many = serve.send(request("GET", "/health") * 1000)
    assert many.closed
    assert many.statuses == [200] * len(many.statuses) != [200] * 1000
    faulty = serve.send(request("GET", "/health") + b"GARBAGE\r\n\r\n")
    assert (faulty.statuses, faulty.closed) == ([200], True)  # its own answer, not that of the fault


def test_whoever_says_nothing_or_little_is_let_go(serve: Target):
    """Connections without a request, with half a head, half a body, or more of a body that nobody reads."""
    began = serve.connections()
    half = request("POST", "/v1/auth/login", {"Content-Length": "100"}, b"{")
    starts = (b"GET /hea", b"GET /health HTTP/1.1\r\nHost: local", b"\r\n", half, b"")[:-1]
    with ExitStack() as stack:
        wires = [(stack.enter_context(serve.connect()), starts[number % len(starts)]) for number in range(200)]
        for wire, start in wires:
            wire.sendall(start)
        with serve.client() as client:
            assert client.get("/health").status_code == 200
        for wire, start in wires:
            found = answers(wire, 10, quiet=8)
            assert (found.statuses, found.closed) == ([408] if start == half else [], True), start
    assert serve.connections() <= began + 2


def test_dripping_prolongs_nothing(serve: Target, ada, key_of):
    heads = [b"GET /health HTTP/1.1\r\nX-Drip: ", b"POST /v1/auth/login HTTP/1.1\r\nContent-Length: 999\r\n\r\n"]
    wires = [serve.connect() for _ in heads]
    for wire, head in zip(wires, heads, strict=True):
        wire.sendall(head)
    for wire in wires:
        wire.settimeout(0.2)
        sent, ended = 0, False
        while sent < 60 and not ended:
            try:
                wire.send(b"a")
                sent += 1
                ended = not wire.recv(4096)
            except TimeoutError:
                pass
            except ConnectionError:
                ended = True
        assert ended
        wire.close()
