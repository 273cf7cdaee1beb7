# ruff: noqa: F811  (fixtures by their names)
"""What log, traces and Sentry tell of requests and tasks, and what none of them ever does."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from django.db import connection

from accounts.models import Key
from routing.models import Provider
from tests.conftest import PASSWORD
from tests.flows.worker import Worker
from tests.knowledge.conftest import add, collection, embeddings, upload  # noqa: F401
from tests.server import ROOT, Server, environment
from tests.upstream import completion
from tests.watchers import Watchers

PROMPT = "zebras-in-pyjamas"
ANSWER = "lions-in-slippers"
PROVIDER_KEY = "upstream-secret"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
CLIENT, SERVER, CONSUMER = 3, 2, 5


@pytest.fixture(scope="module")
def observed(django_db_setup, django_db_blocker, tmp_path_factory):
    """A web process with everything on that can be, and who watches it."""
    watchers, folder = Watchers(), tmp_path_factory.mktemp("observed")
    everything = {
        "OPENGATE_LOG_LEVEL": "DEBUG",
        "OPENGATE_LOG_FORMAT": "json",
        "OPENGATE_ACCESS_LOG": "true",
        "OPENGATE_TRACES": "true",
        "OPENGATE_TRACES_TO_PROVIDERS": "true",
        "OPENGATE_SENTRY_DSN": watchers.dsn,
        "OPENGATE_SENTRY_ENVIRONMENT": "tests",
        "OTEL_EXPORTER_OTLP_ENDPOINT": watchers.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with django_db_blocker.unblock(), open(folder / "web.log", "ab") as log:
        server = Server(**everything)
        server.log = log
        server.start()
    yield SimpleNamespace(server=server, watchers=watchers, folder=folder, everything=everything)
    server.stop()
    watchers.close()


@pytest.fixture
def gateway(observed, transactional_db, redis_client):
    return observed.server


@pytest.fixture
def watchers(observed):
    observed.watchers.reset()
    return observed.watchers


@pytest.fixture
def lines(observed):
    """The log's objects since the test began."""
    path = observed.folder / "web.log"
    start = path.stat().st_size

    def read():
        return [json.loads(line) for line in path.read_bytes()[start:].splitlines()]

    return read


@contextmanager
def away(table):
    """A fault of ours: a table is not where it should be."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        try:
            yield
        finally:
            cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


@contextmanager
def refusing(table):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT no_rows CHECK (false) NOT VALID")
        try:
            yield
        finally:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT no_rows")


def ask(client, **fields):
    payload = {"model": "model", "messages": [{"role": "user", "content": PROMPT}]} | fields
    return client.post("/v1/chat/completions", json=payload, headers=CARRIED)


def test_a_stream_is_one_trace_from_the_caller_to_the_provider(as_ada, ada, router, upstream, watchers):
    first = router.providers.get()
    second = Provider.objects.create(router=router, type="mistral", url=upstream.url, model_name="other", timeout=5)
    upstream.reply({"message": f"I heard {PROMPT}"}, status=503)
    answer = ask(as_ada, stream=True)
    root = watchers.span("POST /v1/chat/completions")
    call = watchers.span("chat model")
    assert (root.trace, root.parent, root.kind) == (TRACE, PARENT, SERVER)
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["opengate.request_id"] == answer.headers["x-request-id"]
    assert root.resource["service.name"] == "opengate"
    assert (call.trace, call.parent, call.kind, call.failed) == (TRACE, root.id, CLIENT, False)
    told = call.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "model"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (9, 12)
    assert (told["server.address"], told["server.port"]) == ("127.0.0.1", upstream.port)
    assert 0 <= told["gen_ai.response.time_to_first_chunk"] < 5
    below = [one for one in watchers.spans if one.parent == call.id]
    assert {one.name for one in below} >= {"admission", "wait for a place", "try upstream-name", "try other"}
    assert all(call.began <= one.began <= one.ended <= call.ended for one in below)
    failed, answered = sorted((one for one in below if one.name.startswith("try")), key=lambda one: one.began)
    assert (failed.failed, failed.attributes["error.type"], answered.failed) == (True, "503", False)
    names = {first.id: ("openai", "upstream-name"), second.id: ("mistral_ai", "other")}
    for one in (failed, answered):
        about = one.attributes
        name = names[about["opengate.provider.id"]]
        assert (about["gen_ai.provider.name"], about["gen_ai.response.model"]) == name
    assert upstream.received[-1].headers["traceparent"] == f"00-{TRACE}-{root.id}-01"


def test_a_document_is_one_trace_from_its_upload_through_the_worker(
    as_ada,
    collection,
    upstream,
    observed,
    watchers,
    tmp_path,
):
    worker = Worker(tmp_path, **observed.everything).start()
    try:
        sent = upload(as_ada, collection, f"{PROMPT} sleep.")
        task = watchers.span("process knowledge.tasks.ingest_document")
        call = watchers.span("embeddings embeddings")
    finally:
        worker.stop()
    root = watchers.span("POST /v1/documents")
    assert (task.trace, task.parent, task.kind) == (root.trace, root.id, CONSUMER)
    assert task.attributes["opengate.request_id"] == sent.headers["x-request-id"]
    assert (call.trace, call.parent) == (root.trace, task.id)
    assert call.attributes["gen_ai.operation.name"] == "embeddings"
    assert call.attributes["gen_ai.usage.input_tokens"] > 0
    assert not [one for one in watchers.spans if "drain_usage" in one.name]
    records = [json.loads(line) for line in worker.said.splitlines() if line.startswith("{")]
    assert not [one for one in records if one["level"] == "INFO" and "drain_usage" in one["message"]]
    mine = [one for one in records if one.get("task_id") == task.attributes["messaging.message.id"]]
    assert {one["request_id"] for one in mine} == {sent.headers["x-request-id"]}
    assert PROMPT not in worker.said
    assert "@example.org" not in worker.said


def test_a_collector_that_hangs_holds_up_nobody(as_ada, router, watchers):
    watchers.answers.clear()
    try:
        ask(as_ada)
        watchers.wait(lambda: watchers.hanging)
        began = time.monotonic()
        assert [ask(as_ada).status_code for _ in range(20)] == [200] * 20
        assert time.monotonic() - began < 5  # the collector is given ten seconds for a batch
    finally:
        watchers.answers.set()


def test_an_error_of_ours_is_reported_without_what_was_sent(as_ada, ada, router, add, collection, watchers, lines):
    add("Of animals and clothes.")
    with away("knowledge_chunk"):
        asked = {"tools": [{"type": "search", "method": "lexical", "collection_ids": [collection.id]}]}
        chat = ask(as_ada, **asked)
        search = as_ada.post("/v1/search", json={"query": PROMPT, "collection_ids": [collection.id]})
    assert (chat.status_code, search.status_code) == (500, 500)
    events = watchers.wait(lambda: watchers.events if len(watchers.events) >= 2 else None)
    event = next(one for one in events if one["tags"]["request_id"] == chat.headers["x-request-id"])
    assert event["exception"]["values"][-1]["type"] == "ProgrammingError"
    assert (event["environment"], event["release"], event["tags"]["user_id"]) == (
        "tests",
        "opengate@0.1.0",
        str(ada.id),
    )
    assert "vars" not in json.dumps(event)
    told = [one for one in lines() if one["logger"] == "inference.consumers"]
    assert [one["request_id"] for one in told] == [chat.headers["x-request-id"]]
    assert "ProgrammingError: 42P01" in told[0]["exception"]


def test_the_access_log_has_a_line_for_each_request(as_ada, router, chat, watchers, lines):
    asked = [chat(as_ada).headers["x-request-id"], as_ada.get("/v1/collections/1").headers["x-request-id"]]

    def written():
        return [one for one in lines() if one["logger"] == "opengate.access"]

    watchers.wait(lambda: len(written()) == 2)
    hot, row = written()
    assert [hot["request_id"], row["request_id"]] == asked
    assert (hot["method"], hot["route"], hot["status"]) == ("POST", "/v1/chat/completions", 200)
    assert hot["bytes"] > 100
    assert {hot["logger"], hot["level"], hot["router"]} == {"opengate.access", "INFO", "model"}
    assert {"time", "duration_ms", "trace_id", "user_id", "key_id", "provider", "process"} <= hot.keys()
    assert (row["route"], row["status"]) == ("/v1/collections/<str:collection_id>", 404)


def test_a_file_of_a_page_leaves_no_line_of_another_format_in_the_log(gateway, watchers, lines):
    with gateway.client() as client:
        asked = client.get("/static/opengate/tokens.css").headers["x-request-id"]
    watchers.wait(lambda: asked in [one.get("request_id") for one in lines()])
    assert "py.warnings" not in {one["logger"] for one in lines()}


def test_whatever_goes_wrong_neither_log_nor_traces_nor_reports_repeat_what_was_sent(
    as_ada, ada, admin, key_of, router, upstream, gateway, observed, watchers, lines
):
    key = Key.objects.issue(ada, "other", None)[1]
    provider_says = {"message": f"{PROMPT} {ANSWER} {PROVIDER_KEY} Bearer {key}"}
    upstream.reply(completion(ANSWER))
    assert ask(as_ada).status_code == 200
    upstream.reply(provider_says, status=400)
    assert ask(as_ada).status_code == 400
    upstream.reply(f"{ANSWER} {PROMPT}".encode(), then="cut")
    assert ask(as_ada).status_code >= 500
    assert ask(as_ada, messages=PROMPT).status_code == 422
    login = {"email": ada.email, "password": PASSWORD}
    assert as_ada.post("/v1/auth/login", json=login).status_code == 200
    assert as_ada.post("/v1/auth/login", json=login | {"password": "mistaken " + PASSWORD}).status_code == 401
    assert as_ada.post("/v1/embeddings", content=f'{{"input": "{PROMPT}'.encode()).status_code == 422
    with gateway.client(key_of(admin)) as boss:
        made = {"router": router.id, "type": "openai", "url": upstream.url, "key": PROVIDER_KEY, "model_name": "m"}
        upstream.reply(provider_says, status=500)
        boss.post("/v1/admin/providers", json=made | {"timeout": 5})
        boss.post("/v1/admin/users", json={"email": "ada@example.org", "name": "x", "password": PASSWORD, "role": 1})
    with refusing("knowledge_collection"):  # Postgres shows the row that it refuses
        assert as_ada.post("/v1/collections", json={"name": PROMPT}).status_code == 500
    with gateway.client(key) as known, away("accounts_key"), away("knowledge_collection"):
        assert known.get("/v1/collections").status_code == 500
    last = ask(as_ada)
    assert last.status_code == 200
    watchers.wait(lambda: [one for one in lines() if one.get("request_id") == last.headers["x-request-id"]])
    assert len(lines()) > 12
    observed.server.stop()  # with all that it says at its end
    everything = (observed.folder / "web.log").read_bytes() + watchers.raw
    for marker in (PROMPT, ANSWER, PROVIDER_KEY, PASSWORD, "mistaken", key, key[3:], "@example.org", "traceback(most"):
        assert everything.count(marker.encode()) == 0, everything[everything.index(marker.encode()) - 300 :][:600]


# The client of Redis imports OpenTelemetry's metrics by itself, wherever they are installed.
LOADED = """
import sys, opengate.asgi
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exp", "sentry_sdk"))])
"""


def test_without_traces_and_sentry_nothing_of_them_is_imported(db):
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
