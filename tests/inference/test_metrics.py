"""`/metrics` of two processes behind one port: one truth from either, by the contract's names, with few labels."""

import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
import promql_parser
import pytest
import yaml
from django.conf import settings
from django.db import connection
from django.test import RequestFactory
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from accounts.models import Permission, User
from inference import monitoring
from knowledge import backlog
from knowledge.models import Collection, Document
from opengate import metrics
from opengate.errors import APIError
from opengate.loops import in_loop
from routing.models import Router
from tests.conftest import CHAT
from tests.proxy import Proxy
from tests.server import ROOT, Server
from usage.models import Limit, UsageRecord

ENDPOINT = "/v1/chat/completions"


class Two:
    """Two processes that count in a folder, and reach Postgres and Redis by cables."""

    def __init__(self, folder: Path) -> None:
        database = connection.settings_dict
        socket_name = ".s.PGSQL.5432"
        self.folder = folder / "counts"
        self.redis = Proxy(folder / "redis", settings.REDIS_URL.removeprefix("unix://").partition("?")[0])
        self.postgres = Proxy(folder / socket_name, f"{database['HOST']}/{socket_name}")
        where = f"{database['USER']}@{quote(str(folder), safe='')}"
        variables = {
            "DATABASE_URL": f"postgresql://{where}/{database['NAME']}",
            "REDIS_URL": f"unix://{folder / 'redis'}?db=0",
            "PROMETHEUS_MULTIPROC_DIR": str(self.folder),
        }
        self.folder.mkdir()
        (self.folder / "counter_1.db").write_bytes(b"left by an earlier start")
        self.server = Server("uvicorn", workers="2", **variables).start()

    def counted(self) -> list[float]:
        """How many chats each process has counted."""
        files = sorted(self.folder.glob("counter_*.db"))
        return [total(list(MultiProcessCollector.merge([file])), "ogl_inference_requests_total") for file in files]

    def living(self) -> dict[str, str]:
        return metrics.living_seats(self.folder)

    def close(self) -> None:
        self.server.stop()
        self.redis.close()
        self.postgres.close()


@pytest.fixture(scope="module")
def _two(django_db_setup, django_db_blocker) -> Iterator[Two]:
    with tempfile.TemporaryDirectory(prefix="og-") as name, django_db_blocker.unblock():
        two = Two(Path(name))
        yield two
        two.close()


@pytest.fixture
def two(_two, transactional_db, redis_client, router) -> Two:
    return _two


@pytest.fixture
def key(ada: User, key_of) -> str:
    ada.role.permissions = [Permission.READ_METRIC]
    ada.role.save()
    key: str = key_of(ada)
    return key


@pytest.fixture
def scrape(two: Two, key: str) -> Callable[[], list[Metric]]:
    """What whichever process takes a new connection tells, parsed strictly."""

    def _scrape(client: httpx.Client | None = None) -> list[Metric]:
        if client is None:
            with two.server.client(key) as client:
                return _scrape(client)
        response = client.get("/metrics")
        assert response.status_code == 200, response.text
        return list(text_string_to_metric_families(response.text))

    return _scrape


def total(found: list[Metric], name: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels."""
    return sum(
        sample.value
        for metric in found
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def values(found: list[Metric], label: str, name: str) -> set[str]:
    return {sample.labels[label] for metric in found for sample in metric.samples if sample.name == name}


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_tell_one_truth_also_after_one_was_killed(two, key, scrape, records):
    before = total(scrape(), "ogl_inference_requests_total")
    calls = 0
    while calls < 8 or len([count for count in two.counted() if count]) < 2:
        with two.server.client(key) as client:
            assert client.post(ENDPOINT, json=CHAT).status_code == 200
        calls += 1
        assert calls < 300
    assert len(records(calls)) == calls
    wait_until(lambda: sum(two.counted()) == before + calls)  # they write once a second
    told = [total(scrape(), "ogl_inference_requests_total", status_code="200") for _ in range(6)]
    assert set(told) == {before + calls}
    victim = two.living()["0"]
    os.kill(int(victim), signal.SIGKILL)
    wait_until(lambda: victim not in two.living().values())
    assert total(scrape(), "ogl_inference_requests_total", status_code="200") == before + calls


def test_metrics_have_the_names_labels_and_bounds_of_the_contract(two, key, scrape):
    with two.server.client(key) as client:
        before = scrape(client)
        client.post(ENDPOINT, json=CHAT)
        with client.stream("POST", ENDPOINT, json=CHAT | {"stream": True}) as response:
            response.read()
        after = scrape(client)
    call = {"endpoint": ENDPOINT, "model": "model", "status_code": "200"}
    speed = {"endpoint": ENDPOINT, "model": "model"}

    def grew(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grew("ogl_inference_requests_total", **call) == 2
    assert grew("ogl_inference_requests_duration_seconds_bucket", **call, le="300.0") == 2
    assert grew("ogl_inference_requests_duration_seconds_count", **call) == 2
    assert grew("ogl_inference_ttft_milliseconds_count", **call) == 1
    assert grew("ogl_inference_output_tokens_per_second_count", **speed) == 2
    assert grew("ogl_inference_tokens_total", **speed, type="prompt") > 9
    assert grew("ogl_inference_tokens_total", **speed, type="completion") > 12
    http = {"handler": ENDPOINT, "method": "POST"}
    assert grew("ogl_http_requests_total", **http, status="2xx") == 2
    assert grew("ogl_http_request_duration_seconds_bucket", **http, le="+Inf") == 2
    assert grew("ogl_http_request_duration_highr_seconds_count") >= 2
    assert grew("ogl_http_request_size_bytes_sum", handler=ENDPOINT) > 100
    assert grew("ogl_http_response_size_bytes_count", handler=ENDPOINT) == 2
    ends = {"ogl_inference_requests_duration_seconds": (0.05, 300), "ogl_inference_ttft_milliseconds": (5, 300_000)}
    for name, (first, last) in {**ends, "ogl_inference_output_tokens_per_second": (5, 1000)}.items():
        bounds = sorted(float(bound) for bound in values(after, "le", f"{name}_bucket"))
        assert (bounds[0], bounds[-2]) == (first, last)


def test_what_callers_write_is_no_label(two, key, scrape):
    hostile = ["/evil-path", "/v1/evil-path", "/admin/evil-path", "/v1/models/evil-model", "/static/evil-path"]
    with two.server.client(key) as client:
        for path in hostile:
            client.get(path)
        client.post(ENDPOINT, json=CHAT | {"model": "evil-model"})
        client.post("/v1/embeddings", json={"model": "evil-model", "input": "x"})
        for method in ("PROPFIND", "MKCOL"):
            client.request(method, "/health")
        port = two.server.port
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n")
            raw.recv(100)
        text = client.get("/metrics").text
        found = scrape(client)
    assert "evil" not in text
    handlers = values(found, "handler", "ogl_http_requests_total")
    assert {"none", "/health", "/metrics", "/admin/{url}", "/v1/models/{model}", "/static/{path}"} <= handlers
    assert values(found, "method", "ogl_http_requests_total") <= {"GET", "POST", "other"}
    assert values(found, "status", "ogl_http_requests_total") <= {"2xx", "3xx", "4xx", "5xx"}
    assert values(found, "model", "ogl_inference_requests_total") <= {"model"}


def test_calls_refused_for_a_model_count_and_models_that_are_gone_do_not_show(two, key, scrape, role, router):
    Limit.objects.filter(role=role, router=router, type="rpm").update(value=0)
    other = Router.objects.create(name="renamed", type="text-embeddings-inference")
    Limit.objects.open_router(role, other)
    with two.server.client(key) as client:
        assert client.post(ENDPOINT, json=CHAT | {"model": "renamed"}).status_code == 422
        shown = scrape(client)
        other.delete()
        hidden = scrape(client)
    assert total(shown, "ogl_inference_requests_total", model="renamed", status_code="422") == 1
    assert values(hidden, "model", "ogl_inference_requests_total") <= {"model"}
    assert not UsageRecord.objects.exists()


def test_the_spool_the_queues_and_documents_are_told(two, scrape, redis_client, ada, settings):
    redis_client.xadd("opengate:usage", {"record": b"x"}, id=f"{int((time.time() - 100) * 1000)}-0")
    redis_client.lpush("documents", "task")
    redis_client.hset("opengate:worked", "celery", int(time.time()) - 50)
    collection = Collection.objects.create(name="papers", owner=ada, language="english")
    for name in ("one", "two"):
        Document.objects.create(collection=collection, name=name)
    found = scrape()
    assert total(found, "ogl_usage_spool_records") == 1
    assert 99 < total(found, "ogl_usage_spool_oldest_age_seconds") < 160
    assert total(found, "ogl_queue_tasks", queue="documents") == 1
    assert 49 < total(found, "ogl_worker_last_task_age_seconds", queue="celery") < 110
    assert total(found, "ogl_documents", status="pending") == 2
    assert total(found, "ogl_documents_oldest_due_age_seconds") > 0
    assert total(found, "ogl_redis_up") == total(found, "ogl_postgres_up") == total(found, "ogl_build_info") == 1


def test_each_living_process_tells_of_itself(two, scrape):
    def processes(name: str) -> set[str]:
        return values(scrape(), "process", name)

    def is_told_by_both(name: str) -> bool:
        return processes(name) == {"0", "1"}

    for name in ("ogl_redis_circuit_open", "ogl_usage_queue_records", "ogl_event_loop_lag_seconds_count"):
        wait_until(partial(is_told_by_both, name))
    assert processes("process_resident_memory_bytes") == processes("process_open_fds") == {"0", "1"}


def expressions() -> Iterator[str]:
    """All PromQL of the dashboard and of the alerts."""
    dashboard = json.loads((ROOT / "deploy/grafana/opengate.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def metrics_of(expression: str) -> set[str]:
    """Names in a PromQL expression; raises ValueError where it is none."""
    found: set[str] = set()

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            found.add(node.name)

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), note)
    return found


def test_dashboard_and_alerts_use_what_is_served_and_the_documentation_tells_all_of_it(two, key, scrape, redis_client):
    redis_client.hset("opengate:worked", mapping=dict.fromkeys(("celery", "documents"), int(time.time())))
    with two.server.client(key) as client:
        for stream in (False, True):
            client.post(ENDPOINT, json=CHAT | {"stream": stream})

        def is_told(name: str) -> bool:
            return bool(values(scrape(client), "process", name))

        used = set().union(*map(metrics_of, expressions())) - {"up"}
        wait_until(partial(is_told, "ogl_database_pool_connections"))
        served = scrape(client)
    assert used <= {sample.name for metric in served for sample in metric.samples}
    text = (ROOT / "docs/observability.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows if not name.isupper()}
    names = {metric.name + "_total" * (metric.type == "counter"): metric for metric in served}
    assert set(told) == set(names)
    for name, metric in names.items():
        labels = {frozenset(sample.labels.keys() - {"le"}) for sample in metric.samples}
        assert labels <= {frozenset(told[name])}, name
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert re.findall("^### (OpenGate.+)$", text, re.MULTILINE) == [rule["alert"] for rule in rules]
    assert all(rule["annotations"]["runbook"].endswith(rule["alert"].lower()) for rule in rules)


def test_a_scrape_says_who_is_away_and_does_not_fail(two, key, scrape):
    with two.server.client(key) as client:
        scrape(client)
        two.postgres.freeze()
        begun = time.monotonic()
        found = scrape(client)
        assert (total(found, "ogl_postgres_up"), total(found, "ogl_redis_up")) == (0, 1)
        assert time.monotonic() - begun < 8
        two.redis.cut()
        found = scrape(client)
        assert (total(found, "ogl_postgres_up"), total(found, "ogl_redis_up")) == (0, 0)
        assert total(found, "ogl_inference_requests_total") > 0
        two.postgres.mend()
        two.redis.mend()
        wait_until(lambda: total(scrape(client), "ogl_redis_up") == total(scrape(client), "ogl_postgres_up") == 1)


def test_a_large_table_of_documents_is_estimated(ada, monkeypatch):
    collection = Collection.objects.create(name="papers", owner=ada, language="english")
    rows = [Document(collection=collection, name="x", status=status) for status in ("ready", "pending") for _ in "1234"]
    Document.objects.bulk_create(rows)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE knowledge_document")
    monkeypatch.setattr(backlog, "SMALL_BYTES", 0)
    found = backlog.look()
    assert {status: count for status, count in found.documents.items() if count} == {"ready": 4, "pending": 4}


def test_without_metrics_there_is_no_such_page(settings):
    settings.METRICS = False
    with pytest.raises(APIError, match="Not Found") as refusal:
        in_loop(monitoring.metrics(RequestFactory().get("/metrics")))
    assert refusal.value.status == 404
