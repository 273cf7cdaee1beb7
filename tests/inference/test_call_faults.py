"""Embeddings, rerank, speech and documents: bad input, and providers that fail; each its status, record and place."""

import json
import socket
import time
from decimal import Decimal
from typing import Any

import httpx
import pytest

from routing.models import Provider, Router
from tests.flows.load import Callers
from tests.server import Server, is_refused_form
from tests.upstream import event
from tests.usage.records import fund, left
from usage.models import Limit

TYPES = {
    "/v1/embeddings": ("text-embeddings-inference", "vllm"),
    "/v1/rerank": ("text-classification", "albert"),
    "/v1/audio/transcriptions": ("automatic-speech-recognition", "openai"),
    "/v1/ocr": ("image-to-text", "mistral"),
}
PATHS = list(TYPES)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"json": {"model": "model", "input": ["a", "b"]}},
    "/v1/rerank": {"json": {"model": "model", "query": "q", "documents": ["a", "b"]}},
    "/v1/audio/transcriptions": {"data": {"model": "model"}, "files": {"file": ("a.wav", b"RIFF", "audio/wav")}},
    "/v1/ocr": {
        "json": {"model": "model", "document": {"type": "document_url", "document_url": "https://example.org/a.pdf"}}
    },
}
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [2.0]}]},
    "/v1/rerank": {"results": [{"index": 0, "relevance_score": 0.5}]},
    "/v1/audio/transcriptions": {"text": "Hello."},
    "/v1/ocr": {"pages": []},
}


@pytest.fixture
def model(role, upstream):
    """`model` for an endpoint: `model("/v1/rerank")`."""

    def _model(path: str, **fields: Any) -> Router:
        type, dialect = TYPES[path]
        router = Router.objects.create(name="model", type=type, cost_prompt_tokens=Decimal(1_000_000))
        fields = {"timeout": 5, **fields}
        Provider.objects.create(router=router, type=dialect, url=upstream.url, model_name="m", **fields)
        Limit.objects.open_router(role, router)
        return router

    return _model


def ask(client: httpx.Client, path: str) -> httpx.Response:
    return client.post(path, **BODIES[path])


def with_json(path: str, **fields: Any) -> dict[str, Any]:
    return {"json": BODIES[path]["json"] | fields}


# Bad input


@pytest.mark.parametrize("path", PATHS)
def test_a_model_of_another_type_gets_422_and_costs_nothing(as_ada, router, path, upstream, records):
    response = ask(as_ada, path)
    assert (response.status_code, response.json()["detail"]) == (422, "Wrong model type.")
    assert upstream.received == []
    assert records(0) == []


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_or_hidden_model_gets_404(as_ada, as_eve, model, path):
    assert ask(as_ada, path).json()["detail"] == "Model not found."
    model(path)
    assert ask(as_eve, path).status_code == 404
    assert ask(as_eve, path).json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("type", ["rpm", "tpm"])
def test_limits_hold_at_every_endpoint(as_ada, model, path, type, upstream):
    model(path)
    Limit.objects.filter(type=type).update(value=1)
    upstream.reply(ANSWERS[path])
    upstream.reply(ANSWERS[path])
    first, second = ask(as_ada, path), ask(as_ada, path)
    has_tokens = path in ("/v1/embeddings", "/v1/rerank")
    assert (first.status_code, second.status_code) == (200, 429 if type == "rpm" or has_tokens else 200)
    kind = "requests" if type == "rpm" else "tokens"
    assert first.headers[f"x-ratelimit-limit-{kind}"] == "1"
    assert ("retry-after" in second.headers) == (second.status_code == 429)


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_budget_is_refused_at_every_endpoint(as_ada, ada, model, path, upstream):
    model(path)
    fund(ada, 0)
    response = ask(as_ada, path)
    assert (response.status_code, response.json()["detail"]) == (400, "Insufficient budget.")
    assert upstream.received == []


def test_embeddings_are_paid_by_their_prompt_tokens(as_ada, ada, model, upstream, records):
    model("/v1/embeddings")
    fund(ada, 10)
    upstream.reply(ANSWERS["/v1/embeddings"] | {"usage": {"prompt_tokens": 4, "total_tokens": 4}})
    response = ask(as_ada, "/v1/embeddings")
    assert response.json()["usage"]["cost"] == 4
    assert left(ada) == 6
    (record,) = records()
    assert (record.cost, record.prompt_tokens, record.kgco2eq_max) == (4, 4, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": ["a", ""]},
        {"input": ["a", 1]},
        {"input": [[]]},
        {"input": [[1], []]},
        {"input": [[1], ["a"]]},
        {"input": [-1]},
        {"input": [1.5]},
        {"input": [True]},
        {"input": {}},
        {"input": None},
        {"input": 7},
        {"encoding_format": "invalid_format"},
        {"dimensions": 0},
        {"dimensions": "3"},
        {"model": None},
    ],
)
def test_a_wrong_embedding_body_gets_422(as_ada, model, upstream, fields):
    model("/v1/embeddings")
    response = as_ada.post("/v1/embeddings", **with_json("/v1/embeddings", **fields))
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["body", next(iter(fields))]
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert upstream.received == []


@pytest.mark.parametrize(
    "fields",
    [
        {"query": ""},
        {"query": "  "},
        {"query": None},
        {"documents": []},
        {"documents": [""]},
        {"documents": ["a", 1]},
        {"documents": "a"},
        {"top_n": 0},
        {"top_n": 1.5},
    ],
)
def test_a_wrong_rerank_body_gets_422(as_ada, model, upstream, fields):
    model("/v1/rerank")
    response = as_ada.post("/v1/rerank", **with_json("/v1/rerank", **fields))
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["body", next(iter(fields))]
    assert upstream.received == []


@pytest.mark.parametrize(
    "fields",
    [
        {"language": "klingon"},
        {"response_format": "xml"},
        {"temperature": "1.5"},
        {"temperature": "nan"},
        {"temperature": "warm"},
        {"stream": "true"},
    ],
)
def test_a_wrong_form_gets_422(as_ada, model, upstream, fields):
    model("/v1/audio/transcriptions")
    form = {"model": "model"} | fields
    response = as_ada.post("/v1/audio/transcriptions", data=form, files={"file": b"x"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", next(iter(fields))]
    assert upstream.received == []


def test_a_form_without_its_fields_says_which(as_ada):
    faults = as_ada.post("/v1/audio/transcriptions", data={"language": "fr"}).json()["detail"]
    assert [fault["loc"] for fault in faults] == [["body", "model"], ["body", "file"]]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/ocr"])
def test_a_body_that_is_no_object_gets_422(as_ada, path, content):
    response = as_ada.post(path, content=content)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize(
    ("content", "type"),
    [
        (b"nonsense", "multipart/form-data; boundary=b"),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
        ),
        (b"model=model&file=text", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
        (b"&".join(b"a%d=1" % n for n in range(2000)), "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/parse-beta"])
def test_a_form_that_is_none_gets_a_4xx(as_ada, path, content, type):
    response = as_ada.post(path, content=content, headers={"content-type": type})
    assert response.status_code in (400, 422), response.text
    assert is_refused_form(response) or response.json()["detail"]


def test_half_a_million_faults_are_told_in_a_few_words(as_ada, model):
    model("/v1/embeddings")
    for fields in ({"input": [1, "a"] * 490_000}, {"input": [["a"]] * 490_000}):
        response = as_ada.post("/v1/embeddings", **with_json("/v1/embeddings", **fields))
        assert (response.status_code, len(response.content) < 2000) == (422, True)
    response = as_ada.post("/v1/rerank", json={"model": "model", "query": "q", "documents": [1] * 500_000})
    assert (response.status_code, len(response.content) < 5000) == (422, True)


# Files


def test_a_file_over_20_mib_gets_413(as_ada, model, upstream, records):
    model("/v1/audio/transcriptions")
    content = b"\0" * (20 * 1024 * 1024 + 1)
    response = as_ada.post("/v1/audio/transcriptions", data={"model": "model"}, files={"file": content})
    assert (response.status_code, response.json()["detail"]) == (413, "File size limit exceeded (max: 20971520 bytes).")
    assert upstream.received == []
    assert records(0) == []


@pytest.mark.parametrize("path", [*PATHS, "/v1/parse-beta", "/v1/me/keys", "/v1/nowhere"])
def test_an_endless_body_gets_413_while_it_arrives(as_ada, settings, path):
    def endless():
        for _ in range(settings.MAX_BODY_BYTES // 2**20 + 8):
            yield b"\0" * 2**20

    response = as_ada.post(path, content=endless(), headers={"content-type": "application/octet-stream"})
    assert response.status_code == 413
    assert response.json()["detail"] == f"Request size limit exceeded (max: {settings.MAX_BODY_BYTES} bytes)."
    assert response.headers["x-request-id"]


@pytest.mark.needs("streamed bodies")
def test_an_announced_body_over_the_limit_is_not_read(gateway, ada, key_of):
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key_of(ada)}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in connection.recv(1000)


def test_an_empty_file_gets_422(as_ada, model, upstream):
    model("/v1/audio/transcriptions")
    response = as_ada.post("/v1/audio/transcriptions", data={"model": "model"}, files={"file": b""})
    assert (response.status_code, response.json()["detail"][0]["msg"]) == (422, "Value error, The file is empty.")


@pytest.mark.needs("streamed bodies")
def test_large_files_are_streamed_through_and_not_held_in_memory(transactional_db, redis_client, model, ada, key_of):
    model("/v1/audio/transcriptions", timeout=60)
    size, callers = 19 * 1024 * 1024, 8
    server = Server().start()
    try:
        key, content = key_of(ada), b"\0" * size

        def call(client, number) -> int:
            return client.post(
                "/v1/audio/transcriptions", data={"model": "model"}, files={"file": content}, timeout=60
            ).status_code

        def round_of(count: int) -> int:
            Callers([server], [key] * count, call, lambda callers: len(callers.answers) >= count).join()
            return high_water(server)

        before = round_of(1)
        after = round_of(callers)
    finally:
        server.stop()
    print(f"\n{callers} files of {size >> 20} MiB at a time: {(after - before) >> 20} MiB more than one")
    assert after - before < callers * size / 3


def high_water(server: Server) -> int:
    """The most memory that a web process ever held, in bytes."""
    with open(f"/proc/{server.pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_a_file_name_is_no_path_and_breaks_no_form(as_ada, model, upstream):
    model("/v1/audio/transcriptions")
    upstream.reply({"text": "Hello."})
    name = '../../etc/é"\r\nX-Evil: 1.wav'
    files = {"file": (name, b"RIFF", "audio/wav")}
    assert as_ada.post("/v1/audio/transcriptions", data={"model": "model"}, files=files).status_code == 200
    assert b"\r\nX-Evil" not in upstream.received[0].body
    assert b"../" not in upstream.received[0].body


@pytest.mark.parametrize(("sent", "kept"), [("audio/x-wav", True), ("garbage\x01 here", False), ("x", False)])
def test_what_a_file_says_it_is_goes_on_only_where_a_header_can_hold_it(as_ada, model, upstream, sent, kept):
    model("/v1/audio/transcriptions")
    upstream.reply({"text": "Hello."})
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="été.wav"\r\nContent-Type: {sent}\r\n\r\nRIFF'
    body = f'{head}\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nmodel\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = as_ada.post("/v1/audio/transcriptions", content=body.encode(), headers=headers)
    assert response.status_code == 200, response.text
    assert (f"Content-Type: {sent}".encode() in upstream.received[0].body) == kept
    assert kept or b"Content-Type: application/octet-stream" in upstream.received[0].body


@pytest.mark.parametrize("name", ['x"', "x\r\nX-Evil: 1", "é", "file", "x" * 200])
def test_fields_with_odd_names_stay_here(as_ada, model, upstream, name):
    model("/v1/audio/transcriptions")
    upstream.reply({"text": "Hello."})
    parts = {"model": "model", name: "odd"}
    body = "".join(f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts.items())
    body += '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = as_ada.post("/v1/audio/transcriptions", content=body.encode(), headers=headers)
    assert response.status_code == 200, response.text
    assert b"odd" not in upstream.received[0].body


@pytest.mark.parametrize("path", [*PATHS, "/v1/parse-beta", "/v1/models"])
def test_another_method_gets_405_in_the_shape_of_all_refusals(as_ada, path):
    response = as_ada.delete(path)
    assert (response.status_code, response.json()["detail"]) == (405, "Method Not Allowed")
    assert response.headers["allow"] == ("GET" if path == "/v1/models" else "POST")


# Providers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b"null", b"", b'{"data": 1, "results": 1}', b"\xff"])
def test_an_answer_that_is_none_gets_500_and_costs_nothing(as_ada, model, path, answer, upstream, records, inflight):
    router = model(path)
    upstream.reply(answer)
    response = ask(as_ada, path)
    assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")
    (record,) = records()
    assert (record.status, record.outcome, record.cost, record.total_tokens) == (500, "upstream_failed", 0, 0)
    assert inflight(router) == 0


@pytest.mark.parametrize(
    "data",
    [
        '[{"index": 0, "embedding": [1]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}, {"index": 2, "embedding": [1]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}]',
        '[{"index": 0, "embedding": [1]}, {"index": -1, "embedding": [1]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]',
        '[{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [NaN]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1e999]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": ["1"]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [null]}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1, "embedding": "AACAPw=="}]',
        '[{"index": 0, "embedding": [1]}, {"index": 1}]',
        '[{"index": 0, "embedding": [1]}, 7]',
    ],
)
def test_vectors_that_are_wrong_get_500_and_cost_nothing(as_ada, model, data, upstream, records):
    model("/v1/embeddings")
    upstream.reply(f'{{"data": {data}, "usage": {{"prompt_tokens": 9}}}}'.encode())
    response = ask(as_ada, "/v1/embeddings")
    assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")
    (record,) = records()
    assert (record.cost, record.total_tokens) == (0, 0)


@pytest.mark.parametrize(("fields", "stored"), [({"dimensions": 2}, None), ({}, 2)])
def test_vectors_of_another_size_than_wanted_or_known_get_500(as_ada, model, upstream, fields, stored):
    model("/v1/embeddings", vector_size=stored)
    upstream.reply(ANSWERS["/v1/embeddings"])
    assert as_ada.post("/v1/embeddings", **with_json("/v1/embeddings", **fields)).status_code == 500


def test_a_number_beyond_32_bits_has_no_base64(as_ada, model, upstream):
    model("/v1/embeddings")
    upstream.reply({"data": [{"embedding": [1e300]}, {"embedding": [1.0]}]})
    response = as_ada.post("/v1/embeddings", **with_json("/v1/embeddings", encoding_format="base64"))
    assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")


@pytest.mark.parametrize(
    "results",
    [
        '[{"index": 2, "relevance_score": 1}]',
        '[{"index": -1, "relevance_score": 1}]',
        '[{"index": 1, "relevance_score": 1}, {"index": 1, "relevance_score": 1}]',
        '[{"index": "0", "relevance_score": 1}]',
        '[{"index": true, "relevance_score": 1}]',
        '[{"index": [], "relevance_score": 1}]',
        '[{"index": 0, "relevance_score": NaN}]',
        '[{"index": 0, "relevance_score": 1e999}]',
        '[{"index": 0, "relevance_score": null}]',
        '[{"relevance_score": 1}]',
        "[7]",
    ],
)
def test_ranks_that_are_wrong_get_500(as_ada, model, results, upstream):
    model("/v1/rerank")
    upstream.reply(f'{{"results": {results}}}'.encode())
    response = ask(as_ada, "/v1/rerank")
    assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")


@pytest.mark.parametrize("path", PATHS)
def test_the_next_provider_makes_good_what_the_first_one_spoils(as_ada, model, path, upstream, records):
    router = model(path)
    Provider.objects.create(router=router, type=TYPES[path][1], url=upstream.url, model_name="other", timeout=5)
    upstream.reply(b"<html>")
    upstream.reply(ANSWERS[path])
    assert ask(as_ada, path).status_code == 200
    assert len(upstream.received) == 2
    assert upstream.received[0].body != upstream.received[1].body  # each with its model's name
    (record,) = records()
    assert (record.status, record.outcome) == (200, "finished")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(as_ada, model, path, status, upstream, records):
    model(path)
    upstream.reply({}, status=status, headers={"Location": f"{upstream.url}elsewhere"})
    response = ask(as_ada, path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert len(upstream.received) == 1
    (record,) = records()
    assert (record.outcome, record.cost) == ("upstream_failed", 0)


@pytest.mark.parametrize("path", PATHS)
def test_an_upstreams_refusal_comes_through_in_its_words(as_ada, model, path, upstream, records):
    model(path)
    upstream.reply({"message": "Invalid file format."}, status=400)
    response = ask(as_ada, path)
    assert (response.status_code, response.json()["detail"]) == (400, "Invalid file format.")
    (record,) = records()
    assert (record.status, record.outcome, record.cost) == (400, "upstream_failed", 0)


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_of_100_mb_is_cut_off(as_ada, model, path, upstream, inflight, gateway):
    router = model(path)
    before = high_water(gateway)
    upstream.reply(chunks=[b" " * 2**20] * 100, content_type="application/json", gap=0)
    assert ask(as_ada, path).status_code == 500
    assert upstream.received[0].left.wait(5)
    assert inflight(router) == 0
    assert high_water(gateway) - before < 160 * 2**20


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_that_drips_is_given_up(as_ada, model, path, upstream, inflight, records):
    router = model(path, timeout=1)
    upstream.reply(chunks=[b" "] * 100, content_type="application/json", gap=0.1)
    begun = time.monotonic()
    response = ask(as_ada, path)
    assert response.status_code == 503
    assert response.json()["detail"] == "Model is too busy (TimeoutError), please try again later."
    assert 0.9 < time.monotonic() - begun < 5
    assert upstream.received[0].left.wait(5)
    assert inflight(router) == 0
    (record,) = records()
    assert (record.status, record.cost) == (503, 0)


@pytest.mark.parametrize("begins", [False, True])
def test_a_stream_that_drips_is_given_up(as_ada, router, upstream, inflight, records, begins):
    router.providers.update(timeout=1)
    first = [event({"choices": [{"delta": {"content": "Hi"}}]})] if begins else []
    upstream.reply(chunks=[*first, *[b":"] * 100], gap=0.1)
    response = as_ada.post("/v1/chat/completions", json={"model": "model", "messages": [], "stream": True})
    assert response.status_code == (200 if begins else 503)
    assert "Model is too busy (TimeoutError), please try again later." in response.text
    assert "[DONE]" not in response.text
    assert upstream.received[0].left.wait(5)
    assert inflight(router) == 0
    (record,) = records()
    assert record.outcome == "upstream_failed"


@pytest.mark.parametrize("path", PATHS)
def test_a_caller_who_leaves_stops_the_provider(gateway, ada, key_of, model, path, upstream, inflight, records):
    router = model(path)
    upstream.reply(ANSWERS[path], wait=30)
    request = httpx.Request("POST", f"{gateway.url}{path}", **BODIES[path])
    body = request.read()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key_of(ada)}\r\n"
    head += f"Content-Type: {request.headers['content-type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 5
        while not upstream.received:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert upstream.received[0].left.wait(5)
    (record,) = records()
    assert (record.status, record.outcome) == (499, "client_left")
    assert inflight(router) == 0


def test_a_slow_provider_does_not_starve_another(role, upstream, ada, key_of, transactional_db, redis_client):
    """Bulkheads: as many calls as may be hang at one provider, and another one on the same host answers."""
    for name in ("slow", "quick"):
        router = Router.objects.create(name=name, type="text-embeddings-inference")
        Provider.objects.create(router=router, type="vllm", url=upstream.url, model_name=name, timeout=30)
        Limit.objects.open_router(role, router)
    # The slow model hangs, the quick one answers at once.
    upstream.reply(ANSWERS["/v1/embeddings"], wait=30)
    upstream.reply(ANSWERS["/v1/embeddings"], wait=30)
    settings = {"OPENGATE_UPSTREAM_MAX_CALLS": "2", "OPENGATE_UPSTREAM_CONNECT_TIMEOUT_SECONDS": "0.5"}
    server = Server(**settings).start()
    try:
        key = key_of(ada)
        hanging = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        body = json.dumps({"model": "slow", "input": "a"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        for connection in hanging:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        deadline = time.monotonic() + 5
        while len(upstream.received) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with server.client(key) as client:
            third = client.post("/v1/embeddings", json={"model": "slow", "input": "a"})
            assert (third.status_code, third.headers["retry-after"]) == (503, "10")
            assert third.json()["detail"] == "Model is too busy, please try again later."
            upstream.reply({"data": [{"embedding": [1.0]}]})
            assert client.post("/v1/embeddings", json={"model": "quick", "input": "a"}).status_code == 200
        for connection in hanging:
            connection.close()
    finally:
        server.stop()
