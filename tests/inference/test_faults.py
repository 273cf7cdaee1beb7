"""Bad input, and providers and callers that fail: each its status, its record, and its place given back."""

import json
import socket
import time
from datetime import timedelta

import httpx
import pytest
from django.utils import timezone

from accounts.models import Key
from routing.models import Provider, Router
from tests.server import free_port
from tests.upstream import chunk, completion, event, story
from usage.models import Limit

CHAT = {"model": "model", "messages": [{"role": "user", "content": "Say hello."}]}


def post(client, content: bytes) -> httpx.Response:
    return client.post("/v1/chat/completions", content=content)


# Bad input


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"{",
        b"\xef\xbb\xbf{}",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": NaN}',
        b"[" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
)
def test_a_body_that_is_not_json_gets_422(as_ada, router, content, upstream, records):
    response = post(as_ada, content)
    (fault,) = response.json()["detail"]
    assert response.status_code == 422
    assert (fault["type"], fault["loc"], fault["msg"]) == ("json_invalid", ["body"], "JSON decode error")
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert upstream.received == []
    assert records(0) == []


@pytest.mark.parametrize("content", [b"[]", b"1", b'"text"', b"null"])
def test_json_that_is_no_object_gets_422(as_ada, router, content):
    response = post(as_ada, content)
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body"])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": 1}, "model"),
        ({"model": None}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 1.5}, "n"),
        ({"tools": {}}, "tools"),
        ({"logit_bias": []}, "logit_bias"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"search_args": 1}, "search_args"),
    ],
)
def test_a_wrong_type_gets_422_and_says_where(as_ada, router, chat, fields, where):
    response = chat(as_ada, **fields)
    assert response.status_code == 422
    assert ["body", where] in [fault["loc"][:2] for fault in response.json()["detail"]]
    assert response.json()["error"]["param"].startswith(where)


def test_missing_fields_are_named(as_ada, router):
    faults = post(as_ada, b"{}").json()["detail"]
    assert [(fault["type"], fault["loc"]) for fault in faults] == [
        ("missing", ["body", "messages"]),
        ("missing", ["body", "model"]),
    ]


def test_a_long_input_is_not_sent_back(as_ada, router, chat):
    assert len(chat(as_ada, messages="x" * 10_000).content) < 1000


@pytest.mark.parametrize(
    "fields", [{"stop": [1] * 900_000}, {"logit_bias": dict.fromkeys(map(str, range(200_000)), "x")}]
)
def test_a_million_faults_are_told_in_a_few_words(as_ada, router, chat, fields):
    response = chat(as_ada, **fields)
    assert response.status_code in (200, 422)
    assert len(response.content) < 2000


@pytest.mark.parametrize("number", ["1e400", "123456789012345678901234567890", "-0.0"])
def test_odd_numbers_do_not_break_the_gateway(as_ada, router, number, upstream):
    response = post(as_ada, json.dumps(CHAT)[:-1].encode() + b', "odd": ' + number.encode() + b"}")
    assert response.status_code in (200, 422)
    for request in upstream.received:
        json.loads(request.body, parse_constant=lambda name: pytest.fail(f"{name} went upstream"))


def test_a_body_over_the_limit_gets_413_while_it_arrives(as_ada, router, settings):
    def endless():
        for _ in range(settings.MAX_BODY_BYTES // 2**20 + 8):
            yield b" " * 2**20

    response = as_ada.post("/v1/chat/completions", content=endless())
    assert response.status_code == 413
    assert response.json()["detail"] == f"Request size limit exceeded (max: {settings.MAX_BODY_BYTES} bytes)."


def test_other_methods_get_405(as_ada, router):
    response = as_ada.get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("name", ["no-such-model", "MODEL", "", "a" * 10_000, "model\x00", "'; drop table--"])
def test_an_unknown_model_gets_404(as_ada, router, chat, name):
    response = chat(as_ada, model=name)
    assert (response.status_code, response.json()["detail"]) == (404, "Model not found.")


def test_a_model_of_another_type_gets_422(as_ada, router, chat):
    Router.objects.filter(id=router.id).update(type="text-embeddings-inference")
    response = chat(as_ada)
    assert (response.status_code, response.json()["detail"]) == (422, "Wrong model type.")


def test_a_model_without_provider_gets_404(as_ada, router, chat):
    router.providers.all().delete()
    assert chat(as_ada).status_code == 404


def test_a_model_the_role_does_not_know_gets_404(as_eve, router, chat):
    assert chat(as_eve).json()["detail"] == "Model not found."


@pytest.mark.parametrize("value", [0, "absent"])
def test_a_closed_model_gets_403(as_ada, router, chat, value, records):
    limit = Limit.objects.get(type="tpd")
    if value == "absent":
        limit.delete()
    else:
        limit.value = value
        limit.save()
    response = chat(as_ada)
    assert (response.status_code, response.json()["detail"]) == (403, "Insufficient permissions to access the model.")
    assert records(0) == []


def test_search_without_arguments_gets_422(as_ada, router, chat):
    assert "search_args is required when search is True" in chat(as_ada, search=True).text


# Keys


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (None, "Not authenticated"),
        ("", "Not authenticated"),
        ("Basic abc", "Not authenticated"),
        ("Bearer", "Not authenticated"),
        ("Bearer x", "Invalid API key."),
        ("Bearer sk-" + "a" * 43, "Invalid API key."),
        ("Bearer sk-' OR 1=1 --", "Invalid API key."),
        ("Bearer " + "k" * 8_000, "Invalid API key."),
    ],
)
def test_without_a_good_key_the_answer_is_401(gateway, router, chat, header, detail):
    with gateway.client() as client:
        if header is not None:
            client.headers["Authorization"] = header
        response = chat(client)
    assert (response.status_code, response.json()["detail"]) == (401, detail)
    assert response.headers["www-authenticate"] == "Bearer"


def test_two_authorization_headers_are_none(gateway, router, ada, key_of):
    key = key_of(ada)
    headers = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=headers).status_code == 401


def test_an_expired_key_and_an_expired_user_get_401(as_ada, router, ada, chat):
    assert chat(as_ada).status_code == 200
    for row in (Key.objects.get(), ada):
        row.expires = timezone.now() - timedelta(seconds=1)
        row.save()
        response = chat(as_ada)
        assert (response.status_code, response.json()["detail"]) == (401, "Invalid API key.")
        row.expires = None
        row.save()
        assert chat(as_ada).status_code == 200


# Providers


def only_record(records):
    (record,) = records()
    return record


@pytest.mark.parametrize("stream", [False, True])
class TestProviderFails:
    def test_connection_refused(self, as_ada, router, chat, records, inflight, stream):
        Provider.objects.update(url=f"http://127.0.0.1:{free_port()}/")
        response = chat(as_ada, stream=stream)
        assert response.status_code == 503
        assert response.json()["detail"] == "Model is temporarily unavailable, please try again later."
        assert response.headers["retry-after"] == "10"
        record = only_record(records)
        assert (record.status, record.outcome, record.total_tokens) == (503, "upstream_failed", 0)
        assert inflight(router) == 0

    def test_timeout(self, as_ada, router, chat, upstream, records, inflight, stream):
        Provider.objects.update(timeout=1)
        upstream.reply(completion(), wait=30)
        response = chat(as_ada, stream=stream)
        assert response.status_code == 503
        assert response.json()["detail"].startswith("Model is too busy (")
        assert response.json()["detail"].endswith("Error), please try again later.")
        record = only_record(records)
        assert (record.status, record.outcome, record.total_tokens) == (503, "upstream_failed", 0)
        assert upstream.received[0].left.wait(1)
        assert inflight(router) == 0

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
    def test_an_error_status_is_relayed(self, as_ada, router, chat, upstream, records, inflight, stream, status):
        upstream.reply({"error": {"message": "no", "type": "t"}}, status=status, headers={"Retry-After": "7"})
        response = chat(as_ada, stream=stream)
        assert response.status_code == status
        assert response.json()["detail"] == {"error": {"message": "no", "type": "t"}}
        assert response.json()["error"]["message"] == "no"
        assert response.headers["retry-after"] == "7"
        assert response.headers["content-type"] == "application/json"
        record = only_record(records)
        assert (record.status, record.outcome, record.total_tokens) == (status, "upstream_failed", 0)
        assert inflight(router) == 0

    def test_html_instead_of_json(self, as_ada, router, chat, upstream, records, stream):
        upstream.reply(b"<html>hello</html>", content_type="text/html")
        response = chat(as_ada, stream=stream)
        assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")
        assert only_record(records).outcome == "upstream_failed"

    def test_a_redirect_is_not_followed(self, as_ada, router, chat, upstream, stream):
        upstream.reply(b"", status=307, headers={"Location": f"{upstream.url}elsewhere"})
        assert chat(as_ada, stream=stream).status_code == 503
        assert len(upstream.received) == 1

    def test_its_key_is_not_in_what_it_says(self, as_ada, router, chat, upstream, stream):
        upstream.reply({"message": "bad key upstream-secret"}, status=401)
        assert chat(as_ada, stream=stream).json()["detail"] == "bad key ***"

    def test_the_next_provider_is_tried(self, as_ada, router, chat, upstream, records, inflight, stream):
        Provider.objects.create(router=router, type="vllm", url=upstream.url, model_name="second")
        upstream.reply({"message": "down"}, status=500)
        assert chat(as_ada, stream=stream).status_code == 200
        tried = [request.json["model"] for request in upstream.received]
        assert sorted(tried) == ["second", "upstream-name"]
        record = only_record(records)
        assert (record.status, record.provider_model_name) == (200, tried[-1])
        assert inflight(router) == 0

    def test_a_fault_of_the_request_is_not_tried_elsewhere(self, as_ada, router, chat, upstream, stream):
        Provider.objects.create(router=router, type="vllm", url=upstream.url, model_name="second")
        upstream.reply({"message": "too long"}, status=400)
        assert chat(as_ada, stream=stream).json()["detail"] == "too long"
        assert len(upstream.received) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"choices": 1}', b"\xff\xfe", b"[" * 5000])
def test_a_completion_that_is_none_gets_500(as_ada, router, chat, upstream, body, records):
    upstream.reply(body)
    response = chat(as_ada)
    assert (response.status_code, response.json()["detail"]) == (500, "Response formatting failed.")
    assert only_record(records).total_tokens == 0


@pytest.mark.parametrize("chunks", [[], [b": nothing\n\n"], [event("[DONE]")]])
def test_a_stream_without_an_event_gets_503(as_ada, router, chat, upstream, chunks, records):
    upstream.reply(chunks=chunks)
    response = chat(as_ada, stream=True)
    assert (response.status_code, response.json()["detail"]) == (
        503,
        "The model closed the stream without an answer.",
    )
    assert only_record(records).outcome == "upstream_failed"


def test_an_error_as_first_event_is_a_status(as_ada, router, chat, upstream):
    upstream.reply(chunks=[event({"error": {"message": "too long", "code": 400}})])
    response = chat(as_ada, stream=True)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "too long")


def test_a_stream_that_breaks_ends_with_an_error_and_no_done(as_ada, router, chat, upstream, records, inflight):
    upstream.reply(chunks=story()[:2], then="cut")
    response = chat(as_ada, stream=True)
    last = response.text.strip().split("\n\n")[-1]
    assert response.status_code == 200
    assert json.loads(last.removeprefix("data: "))["detail"].startswith("Model is too busy (")
    assert "[DONE]" not in response.text
    record = only_record(records)
    assert (record.status, record.outcome, record.completion_tokens) == (200, "upstream_failed", 3)
    assert record.tokens_estimated
    assert inflight(router) == 0


def test_an_error_event_in_the_middle_is_passed_on_and_written_down(as_ada, router, chat, upstream, records):
    upstream.reply(chunks=[event(chunk("Hi")), event({"error": {"message": "cuda"}}), event("[DONE]")])
    assert "cuda" in chat(as_ada, stream=True).text
    assert only_record(records).outcome == "upstream_failed"


def test_a_line_without_end_is_cut_off(as_ada, router, chat, upstream, settings, records):
    piece = b"x" * 2**20
    upstream.reply(chunks=[event(chunk("Hi")), b"data: ", *[piece] * (settings.UPSTREAM_MAX_EVENT_BYTES // 2**20 + 24)])
    assert "Response formatting failed." in chat(as_ada, stream=True).text
    assert upstream.received[0].left.wait(2)


def test_a_completion_without_end_is_cut_off(as_ada, router, chat, upstream, settings):
    pieces = [b" " * 2**20] * (settings.UPSTREAM_MAX_RESPONSE_BYTES // 2**20 + 40)
    upstream.reply(chunks=pieces, content_type="application/json")
    assert chat(as_ada).status_code == 500
    assert upstream.received[0].left.wait(2)


# Callers


def call_over_socket(gateway, key: str, *, stream: bool) -> socket.socket:
    """A chat posted over a bare socket, which the test may close when it likes."""
    body = json.dumps(CHAT | {"stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


def hang_up_after(gateway, key: str, marker: bytes) -> None:
    """Read a stream until `marker` has come, and close."""
    with call_over_socket(gateway, key, stream=True) as connection:
        seen = b""
        while marker not in seen:
            seen += connection.recv(65536)


def first_request(upstream):
    deadline = time.monotonic() + 5
    while not upstream.received and time.monotonic() < deadline:
        time.sleep(0.005)
    return upstream.received[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_before_the_headers(gateway, ada, router, key_of, upstream, records, inflight, stream):
    upstream.reply(completion(), wait=30)
    with call_over_socket(gateway, key_of(ada), stream=stream):
        request = first_request(upstream)
    assert request.left.wait(1)
    record = only_record(records)
    assert (record.status, record.outcome) == (499, "client_left")
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (3, 0, True)
    assert inflight(router) == 0


@pytest.mark.parametrize("flowing", [False, True])
def test_a_caller_who_leaves_in_the_middle(gateway, ada, router, key_of, upstream, records, inflight, flowing):
    if flowing:
        upstream.reply(chunks=[*story()[:2], *[event(chunk(""))] * 5000], gap=0.01)
    else:
        upstream.reply(chunks=story()[:2], then="stall")
    hang_up_after(gateway, key_of(ada), b"there")
    assert first_request(upstream).left.wait(1)
    record = only_record(records)
    assert (record.status, record.outcome) == (200, "client_left")
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (3, 3, True)
    assert inflight(router) == 0


def test_a_caller_who_leaves_after_the_last_token(gateway, ada, router, key_of, upstream, records, inflight):
    upstream.reply(chunks=story(usage=False, done=False), then="stall")
    hang_up_after(gateway, key_of(ada), b'"finish_reason":"stop"')
    assert first_request(upstream).left.wait(1)
    record = only_record(records)
    assert (record.status, record.outcome) == (200, "client_left")
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (3, 5, True)
    assert inflight(router) == 0


def test_a_caller_who_leaves_when_all_is_said_is_no_different(gateway, ada, router, key_of, records):
    hang_up_after(gateway, key_of(ada), b"[DONE]")
    record = only_record(records)
    assert (record.outcome, record.total_tokens) == ("finished", 21)


def test_a_caller_who_leaves_in_the_middle_of_its_body_leaves_nothing(gateway, ada, router, key_of, chat, records):
    key = key_of(ada)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        connection.sendall(head.encode() + b'Content-Length: 1000\r\n\r\n{"model"')
    with gateway.client(key) as client:
        assert chat(client).status_code == 200
    assert len(records(1)) == 1
