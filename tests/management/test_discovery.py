"""What an upstream is asked when a provider is made, in the dialect of each type."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connection

from routing.models import ModelType, Provider, Router
from tests.management.conftest import MODEL, model_list

VECTORS = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.25] * 5}], "model": MODEL}
INFO = {"model_id": MODEL, "max_input_length": 512, "model_type": {"embedding": {"pooling": "mean"}}}

# What each type is asked, what it answers, and what is learned of it.
TYPES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "albert": ("/v1/models", model_list(max_context_length=4096), 4096),
    "openai": ("/v1/models", model_list(), None),
    "mistral": ("/v1/models", model_list(max_context_length=32_768), 32_768),
    "tei": ("/info", INFO, 512),
    "vllm": ("/v1/models", model_list(max_model_len=8192), 8192),
}


@pytest.fixture
def create(as_admin, upstream):
    """Post a provider for a router of the type; answers the response."""

    def _create(type: str, router_type: str = "text-generation", **fields: Any) -> Any:
        router, _ = Router.objects.get_or_create(name=router_type, type=router_type)
        body = {"router": router.id, "type": type, "url": upstream.url, "model_name": MODEL, "key": "upstream-secret"}
        return as_admin.post("/v1/admin/providers", json=body | fields)

    return _create


@pytest.mark.parametrize("type", TYPES)
def test_a_provider_is_asked_for_context_and_vectors(create, upstream, as_admin, type):
    path, answer, length = TYPES[type]
    upstream.route(path, answer)
    upstream.route("/v1/embeddings", VECTORS)
    response = create(type, "text-embeddings-inference")
    assert response.status_code == 201, response.text
    provider = Provider.objects.get()
    assert (provider.max_context_length, provider.vector_size) == (length, 5)
    asked, embedded = upstream.received
    assert (asked.method, asked.path, asked.body) == ("GET", path, b"")
    assert (embedded.method, embedded.json) == ("POST", {"model": MODEL, "input": "hello world"})
    assert all(request.headers["authorization"] == "Bearer upstream-secret" for request in upstream.received)
    row = as_admin.get(f"/v1/admin/routers/{provider.router_id}").json()
    assert (row["max_context_length"], row["vector_size"], row["providers"]) == (length, 5, 1)


@pytest.mark.parametrize("type", ["albert", "openai", "mistral", "vllm"])
def test_only_embedders_are_asked_for_vectors_and_none_without_a_key_sends_one(create, upstream, type):
    upstream.route("/v1/models", TYPES[type][1])
    assert create(type, key=None).status_code == 201
    (asked,) = upstream.received
    assert "authorization" not in asked.headers
    assert Provider.objects.get().vector_size is None


def test_a_model_of_albert_answers_to_its_aliases(create, upstream):
    upstream.route("/v1/models", {"data": [{"id": "openweight-small", "aliases": [MODEL], "max_context_length": 7}]})
    assert create("openai").status_code == 424
    assert create("albert").status_code == 201
    assert Provider.objects.get().max_context_length == 7


@pytest.mark.parametrize("router_type", ModelType.values)
@pytest.mark.parametrize("type", TYPES)
def test_a_type_serves_the_routers_that_the_contract_says(create, upstream, type, router_type):
    served = {
        "text-generation": {"albert", "mistral", "openai", "vllm"},
        "image-text-to-text": {"albert", "mistral", "openai", "vllm"},
        "text-embeddings-inference": {"albert", "openai", "mistral", "tei", "vllm"},
        "automatic-speech-recognition": {"albert", "mistral", "openai", "vllm"},
        "text-classification": {"albert", "tei", "vllm"},
        "image-to-text": {"mistral"},
    }
    upstream.route("/v1/models", model_list())
    upstream.route("/info", INFO)
    upstream.route("/v1/embeddings", VECTORS)
    response = create(type, router_type)
    assert response.status_code == (201 if type in served[router_type] else 400), response.text
    assert bool(upstream.received) == (response.status_code == 201)


FAULTS: dict[str, dict[str, Any]] = {
    "no such model": {"reason": "is not among those it lists", "body": {"data": [{"id": "another"}]}},
    "no list": {"reason": "is not among those it lists", "body": {"data": {"id": MODEL}}},
    "no object": {"reason": "Response formatting failed", "body": [MODEL]},
    "no JSON": {"reason": "Response formatting failed", "body": b"<html>", "content_type": "text/html"},
    "refused": {
        "reason": "Incorrect API key",
        "body": {"error": {"message": "Incorrect API key upstream-secret"}},
        "status": 401,
    },
    "broken": {"reason": "500", "body": {}, "status": 500},
    "redirect": {
        "reason": "temporarily unavailable",
        "body": {},
        "status": 302,
        "headers": {"Location": "http://127.0.0.1:9/"},
    },
    "cut": {"reason": "too busy", "body": b'{"data": [', "then": "cut"},
    "silent": {"reason": "too busy", "body": b"", "then": "stall"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upstream_that_gives_no_answer_is_a_424_and_makes_nothing(create, upstream, fault):
    how = {name: value for name, value in FAULTS[fault].items() if name != "reason"}
    upstream.reply(how.pop("body"), **how)
    response = create("vllm", timeout=1)
    assert (response.status_code, response.json()["detail"]) == (424, f"Model provider {MODEL} not reachable.")
    assert FAULTS[fault]["reason"] in response.json()["reason"]
    assert "upstream-secret" not in response.text
    assert not Provider.objects.exists()
    assert len(upstream.received) == 1


@pytest.mark.parametrize("answer", [{"data": []}, {"data": [{"embedding": []}]}, {"data": [{"embedding": "AAAA"}]}, {}])
def test_an_upstream_without_vectors_is_a_424(create, upstream, answer):
    upstream.route("/v1/models", model_list())
    upstream.route("/v1/embeddings", answer)
    assert create("openai", "text-embeddings-inference").status_code == 424


@pytest.mark.parametrize("length", [-1, 0, 1.5, "8192", True, 2**40, None])
def test_a_length_that_is_none_is_not_kept(create, upstream, length):
    upstream.route("/v1/models", model_list(max_model_len=length))
    assert create("vllm").status_code == 201
    assert Provider.objects.get().max_context_length is None


def test_what_an_upstream_does_not_tell_contradicts_nothing(create, upstream):
    upstream.route("/v1/models", model_list(max_model_len=8192))
    assert create("vllm").status_code == 201
    assert create("openai", url=f"{upstream.url}other", timeout=1).status_code == 424
    upstream.route("/other/v1/models", model_list())
    assert create("openai", url=f"{upstream.url}other").status_code == 201


def in_the_background(work: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        work()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_no_transaction_and_no_connection_waits_for_an_upstream(create, upstream, as_admin):
    upstream.reply(model_list(), wait=1.5)
    answers: list[Any] = []
    thread = in_the_background(lambda: answers.append(create("vllm")))
    deadline = time.monotonic() + 1
    while not upstream.received and time.monotonic() < deadline:
        time.sleep(0.01)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT state, xact_start FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        rows = cursor.fetchall()
    assert upstream.received
    assert not answers
    assert all(started is None for _, started in rows), rows
    thread.join()
    assert answers[0].status_code == 201


def test_a_slow_upstream_holds_up_nobody_else(create, upstream, as_admin):
    """More slow probes at a time than there are connections in the pool of the web process."""
    for _ in range(15):
        upstream.reply(model_list(), wait=2, gap=0)
    threads = [in_the_background(partial(create, "vllm", url=f"{upstream.url}{n}")) for n in range(15)]
    while len(upstream.received) < 15:
        time.sleep(0.01)
    started = time.monotonic()
    assert as_admin.get("/v1/admin/providers").json()["total"] == 0
    assert time.monotonic() - started < 1.5
    for thread in threads:
        thread.join()
    assert Provider.objects.count() == 15


def test_the_key_of_an_upstream_is_masked_everywhere(create, upstream, as_admin):
    secret = "sk-upstream-0123456789-abcdefghij"
    upstream.route("/v1/models", model_list())
    made = create("openai", key=secret)
    id = made.json()["id"]
    answers = [made, as_admin.get(f"/v1/admin/providers/{id}"), as_admin.get("/v1/admin/providers")]
    answers.append(as_admin.delete(f"/v1/admin/providers/{id}"))
    assert all(secret not in answer.text for answer in answers)
    assert answers[1].json()["key"] == f"{secret[:8]}...{secret[-8:]}"


@pytest.mark.parametrize("key", ["two\r\nlines", "nul\x00", "é", "with space", ""])
def test_a_key_that_no_header_carries_is_a_422(create, upstream, key):
    assert create("openai", key=key).status_code == 422
    assert upstream.received == []


def test_the_address_is_completed(create, upstream, as_admin):
    upstream.route("/v1/models", model_list())
    made = create("vllm", url=upstream.url.rstrip("/")).json()
    assert made["url"] == upstream.url
    assert create("vllm").status_code == 409
