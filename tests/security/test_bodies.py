"""Bodies that are small on the wire and large in memory, or in no form that JSON has."""

import gzip
import json
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from opengate.bodies import MAX_JSON_VALUES, json_of
from opengate.errors import APIError
from tests.conftest import CHAT, PASSWORD
from tests.security.wire import MAX_BODY, answers, request
from tests.server import LONGEST_HEADER

CHATS = b'{"model": "model", "messages": [{"role": "user", "content": %s}]}'
NO_JSON = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": CHATS % (b"[" * 100_000 + b"]" * 100_000),
    "very deep": b"[" * 900_000,
    "deep and long": b"[" * (MAX_BODY - 1),
    "a number of 100,000 digits": CHATS % (b"1" * 100_000),
    "NaN": CHATS % b"NaN",
    "Infinity": CHATS % b"-Infinity",
    "half a pair": CHATS % b'"\\ud800"',
    "bytes that are no UTF-8": CHATS % b'"\xff\xfe"',
    "surrogates in UTF-8": CHATS % b'"\xed\xa0\x80"',
    "a control character": CHATS % b'"\x00"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-32": "{}".encode("utf-32"),
    "packed": gzip.compress(json.dumps(CHAT).encode()),
    "a bomb": gzip.compress(b"[" + b"0," * 5_000_000 + b"0]"),
    "two values": b"{}{}",
    "a comment": b"{} // none",
    "a comma too many": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "nothing": b"",
    "spaces": b" " * 100_000,
}
PATHS = ("/v1/chat/completions", "/v1/embeddings", "/v1/search", "/v1/me/keys", "/v1/collections", "/v1/auth/login")
SMALL = 1024 * 1024  # of rows


def test_what_is_no_json_is_told_in_the_shape_of_the_contract(target, ada, key_of, router, upstream, unused):
    with target.client(key_of(ada)) as client:
        for path in PATHS:
            for name, body in NO_JSON.items():
                for kind in ("application/json", "text/plain"):
                    headers = {"Content-Type": kind} | ({"Content-Encoding": "gzip"} if "bomb" in name else {})
                    answer = client.post(path, content=body, headers=headers)
                    is_long = len(body) > SMALL
                    assert answer.status_code == (413 if is_long else 422), (path, name, answer.text)
                    if not is_long:
                        fault = answer.json()["detail"][0]
                        assert fault["type"] in ("json_invalid", "missing"), (path, name)
                        assert fault["loc"][0] == "body", (path, name)
    assert upstream.received == []


@pytest.mark.parametrize(
    "value", [b"[]", b"{}", b"0", b'{"a":0}', b'""'], ids=("lists", "objects", "numbers", "pairs", "texts")
)
def test_too_many_values_are_refused_before_they_are_made(target, ada, key_of, value, unused):
    many = b"[" + b",".join([value] * (MAX_JSON_VALUES + 1)) + b"]"
    began = time.process_time()
    for body in (many, CHATS % many):
        with pytest.raises(APIError) as refused:
            json_of(body)
        assert refused.value.status == 413
    assert time.process_time() - began < 1
    with target.client(key_of(ada)) as client:
        for path in PATHS[:3]:
            answer = client.post(path, content=many[:MAX_BODY])
            assert answer.status_code == 413, path
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_long_text_is_no_bomb():
    text = json.dumps({"content": "An ordinary sentence, of a long document, with commas. " * 300_000})
    assert len(json_of(text.encode())["content"]) > 16_000_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "model", "messages": [], "messages": [{"role": "user", "content": "x"}]}',
        CHATS % b"1e999",
        CHATS % b"-1e400",
        CHATS % b"1e-99999",
        CHATS % b'"\\u0000\\u202e"',
        CHATS % (b"[" * 190 + b"]" * 190),
        b'{"model": "model", "messages": [], "a' + b'": 0, "a'.join(b"%d" % n for n in range(80_000)) + b'": 0}',
        b'{"model": "model", "messages": [], "__proto__": {"x": 1}, "__class__": "x", "$where": "1"}',
    ],
    ids=range(8),
)
def test_odd_json_breaks_nothing(target, ada, key_of, router, upstream, body):
    with target.client(key_of(ada)) as client:
        for path in PATHS:
            answer = client.post(path, content=body)
            assert answer.status_code in (200, 201, 404, 422), (path, answer.text)


WRONG: tuple[Any, ...] = (
    [],
    {},
    [[]],
    0,
    -1,
    2**63,
    1e300,
    True,
    None,
    "",
    "\0",
    "x" * 300_000,
    [{}] * 1000,
    {"a": {"b": []}},
)


def test_a_value_of_another_type_is_a_422_everywhere(target, ada, key_of, router, unused):
    fields: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [], "model": "model"},
        "/v1/embeddings": {"model": "model", "input": "x"},
        "/v1/rerank": {"model": "model", "query": "x", "documents": ["x"]},
        "/v1/search": {"query": "x", "collection_ids": [1], "method": "hybrid", "metadata_filters": {}, "limit": 1},
        "/v1/me/keys": {"name": "x", "expires": 1},
        "/v1/collections": {"name": "x", "visibility": "private", "description": "x", "model": "model"},
        "/v1/auth/login": {"email": "x@example.org", "password": "x"},
        "/v1/ocr": {"model": "model", "document": {"type": "document_url", "document_url": "data:x"}, "pages": [1]},
    }
    with target.client(key_of(ada)) as client:
        for path, body in fields.items():
            for name in body:
                for wrong in WRONG:
                    if (path, name) == ("/v1/chat/completions", "messages") and isinstance(wrong, list):
                        continue  # the messages are the upstream's business
                    answer = client.post(path, json=body | {name: wrong})
                    assert answer.status_code in (200, 201, 400, 401, 404, 422, 503), (path, name, wrong, answer.text)


@pytest.mark.needs("streamed bodies")
def test_a_stranger_may_not_send_much(target, ada, key_of):
    """Before anybody is asked who calls, Django would have kept all of it."""
    part = b"x" * (256 * 1024)
    known = {"Authorization": f"Bearer {key_of(ada)}"}
    for path in ("/v1/documents", "/v1/auth/login", "/v1/embeddings", "/admin/login/", "/playground/login", "/nowhere"):
        for headers in ({}, {"Authorization": "Bearer sk-" + "a" * 43}, {"Cookie": "opengate-session=" + "a" * 32}):
            for sent in (
                request("POST", path, headers | {"Content-Length": str(MAX_BODY)}, b""),
                request("POST", path, headers, part),
            ):
                found = target.send(sent)
                assert found.statuses == [401], (path, headers)
                assert "WWW-Authenticate".lower() in found.raw.decode().lower()
    assert target.send(request("POST", "/v1/embeddings", known, part)).statuses == [422]
    assert target.send(request("POST", "/v1/embeddings", known | {"Content-Length": "99999999999"})).statuses == [413]


@pytest.mark.needs("streamed bodies")
def test_large_bodies_at_a_time_have_a_bound_and_small_ones_pass(target, ada, ben, eve, admin, key_of, router, chat):
    """Bodies begin that are nearly the longest, and stop. There is room for three, and half of that for one caller."""
    with target.client(key_of(ada)) as client:
        for people, refused in (([ada, ben, eve, admin], 1), ([ada, ada, ada, ben], 2)):
            with ExitStack() as stack:
                wires = [stack.enter_context(target.connect()) for _ in people]
                for wire, person in zip(wires, people, strict=True):
                    head = {"Authorization": f"Bearer {key_of(person)}", "Content-Length": str(MAX_BODY)}
                    wire.sendall(request("POST", "/v1/chat/completions", head))
                    with suppress(ConnectionError):  # it is refused before that is sent
                        wire.sendall(b" " * (MAX_BODY - 1))
                assert chat(client).status_code == 200
                ends = [answers(wire).statuses for wire in wires]
            assert sorted(ends) == [[408]] * (4 - refused) + [[503]] * refused
        assert chat(client, user="x" * (MAX_BODY - 1000)).status_code == 200  # the room is free again


def test_a_very_long_key_opens_nothing_and_costs_little(target, ada, unused):
    odd = ("'; DROP TABLE accounts_key; --", "sk-" + "é" * 43, "sk-\u202e", "Ａ" * 43, "\x7f", "x" * LONGEST_HEADER)
    for path in ("/v1/models", "/v1/chat/completions", "/v1/me", "/v1/collections"):
        for key in odd:
            line = f"Authorization: Bearer {key}\r\n".encode()
            found = target.send(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n")
            assert found.statuses[0] in (400, 401, 404, 405), (path, key)
    assert PASSWORD not in target.said()
