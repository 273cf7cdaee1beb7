"""`/health/models` and `/metrics`: what those who watch the gateway are told."""

import time
from typing import Any

import pytest

from accounts.models import Permission
from routing import circuit
from routing.models import Provider, Router
from tests.flows.load import Callers
from tests.routing.providers import count_outage
from usage.models import Limit


def models_with(name: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"}]}


@pytest.fixture
def twins(router, upstream):
    """Two providers of `model`, which answer when asked for their models."""
    upstream.route("/v1/models", models_with("upstream-name"))
    first = router.providers.get()
    fields = {"url": f"{upstream.url}other/", "model_name": "upstream-name", "timeout": 5}
    second = Provider.objects.create(router=router, type="vllm", **fields)
    upstream.route("/other/v1/models", models_with("upstream-name"))
    return first, second


def open_circuit(redis_client, provider: Provider) -> None:
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)


def health(client) -> dict[str, str]:
    response = client.get("/health/models")
    assert response.status_code == 200, response.text
    return {model["id"]: model["status"] for model in response.json()["data"]}


def test_a_model_whose_providers_all_answer_is_green(as_ada, twins):
    assert as_ada.get("/health/models").json() == {"data": [{"id": "model", "status": "green"}]}


def test_a_model_with_one_provider_away_is_yellow_and_with_none_left_red(as_ada, twins, redis_client):
    open_circuit(redis_client, twins[0])
    assert health(as_ada) == {"model": "yellow"}
    open_circuit(redis_client, twins[1])
    assert health(as_ada) == {"model": "red"}
    redis_client.hincrbyfloat(circuit.key(twins[0].id), "until", -60)  # half open: the next call tries
    assert health(as_ada) == {"model": "yellow"}


def test_an_upstream_that_does_not_list_the_model_or_is_gone_is_away(as_ada, twins, upstream):
    upstream.route("/v1/models", models_with("another"))
    Provider.objects.filter(id=twins[1].id).delete()
    assert health(as_ada) == {"model": "red"}


def test_a_full_provider_or_a_line_is_yellow(as_ada, twins, redis_client):
    first = twins[0]
    first.qos_metric, first.qos_limit = "inflight", 1
    first.save()
    redis_client.zadd(f"opengate:inflight:{first.id}", {"somebody": time.time() + 30})
    assert health(as_ada) == {"model": "yellow"}


def test_an_upstream_is_asked_once_in_a_while_whoever_wants_to_know(as_ada, twins, upstream):
    for _ in range(5):
        health(as_ada)
    assert sorted(request.path for request in upstream.received) == ["/other/v1/models", "/v1/models"]


def test_many_who_ask_at_once_are_one_to_the_upstream(gateway, router, upstream, ada, key_of):
    upstream.route("/v1/models", models_with("upstream-name"), wait=0.2)
    key = key_of(ada)
    callers = Callers(
        [gateway], [key] * 10, lambda client, number: health(client), lambda callers: len(callers.answers) >= 10
    )
    assert {answer["model"] for answer in callers.join()} == {"green"}
    assert len(upstream.received) == 1


def test_each_caller_sees_the_models_it_may_use(as_ada, as_eve, twins, eve, upstream):
    Router.objects.create(name="without provider", type="text-generation")
    assert health(as_eve) == {}
    Limit.objects.open_router(eve.role, Router.objects.get(name="model"))
    assert health(as_eve) == health(as_ada) == {"model": "green"}


def test_a_slow_upstream_does_not_hold_the_answer_up(as_ada, router, upstream):
    upstream.route("/v1/models", models_with("upstream-name"), wait=20)
    begun = time.monotonic()
    assert health(as_ada) == {"model": "red"}
    assert time.monotonic() - begun < 6


@pytest.fixture
def as_watcher(gateway, ada, key_of):
    ada.role.permissions = [Permission.READ_METRIC]
    ada.role.save()
    with gateway.client(key_of(ada)) as client:
        yield client


def test_metrics_are_for_those_who_may_read_them(as_eve, gateway):
    response = as_eve.get("/metrics")
    assert (response.status_code, response.json()["detail"]) == (403, "Insufficient rights.")
    with gateway.client() as client:
        assert client.get("/metrics").status_code == 401


def test_metrics_tell_circuits_calls_in_flight_and_the_line(as_watcher, router, redis_client):
    provider = router.providers.get()
    open_circuit(redis_client, provider)
    redis_client.zadd(f"opengate:inflight:{provider.id}", {"a": time.time() + 30, "b": time.time() + 30})
    redis_client.zadd(f"opengate:line:{router.id}", {"c": time.time()})
    response = as_watcher.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=1.0.0")
    lines = response.text.splitlines()
    labels = f'provider="{provider.id}",router="model"'
    assert f"ogl_provider_inflight_requests{{{labels}}} 2.0" in lines
    assert 'ogl_router_waiting_requests{router="model"} 1.0' in lines
    states = {state: f'ogl_provider_circuit{{{labels},state="{state}"}}' for state in ("closed", "half_open", "open")}
    assert f"{states['open']} 1.0" in lines
    assert f"{states['closed']} 0.0" in lines
    assert f"{states['half_open']} 0.0" in lines
