"""The console's pages of providers: the upstream is asked about its model there, too."""

import time

import pytest

from routing import circuit
from routing.models import Provider
from tests.flows.test_changes_in_force import Console
from tests.management.conftest import model_list


@pytest.fixture
def console(gateway, admin):
    with gateway.client() as client:
        client.headers["Origin"] = gateway.url
        yield Console(client, admin.email)


def test_a_new_provider_is_asked_for_its_context_length(console, router, upstream):
    upstream.route("/v1/models", model_list(max_model_len=8192))
    fields = {"router": router.id, "type": "vllm", "url": f"{upstream.url}", "model_name": "upstream-name"}
    Provider.objects.all().delete()
    page = console.send("/admin/routing/provider/add/", "provider_form", **fields)
    assert "was added successfully" in page
    assert "not reachable" not in page
    assert Provider.objects.get().max_context_length == 8192


def test_one_that_does_not_answer_is_stored_and_told(console, router, upstream):
    path = f"/admin/routing/provider/{Provider.objects.get().id}/change/"
    page = console.send(path, "provider_form", url="http://127.0.0.1:9/")
    assert "Model provider upstream-name not reachable. It says: 503" in page
    assert Provider.objects.get().url == "http://127.0.0.1:9/"


def test_one_that_contradicts_the_others_is_told(console, router, upstream):
    Provider.objects.update(max_context_length=1024)
    upstream.route("/second/v1/models", model_list(max_model_len=8192))
    fields = {"router": router.id, "type": "vllm", "url": f"{upstream.url}second/", "model_name": "upstream-name"}
    page = console.send("/admin/routing/provider/add/", "provider_form", **fields)
    assert "Inconsistent max context length for model. Expected: 1024. Actual: 8192" in page


def test_the_router_page_asks_its_new_providers(console, upstream):
    upstream.route("/v1/models", model_list(max_model_len=8192))
    provider = {"type": "vllm", "model_name": "upstream-name", "url": upstream.url, "timeout": "5"}
    provider |= {"model_hosting_zone": "WOR", "model_total_params": "0", "model_active_params": "0"}
    fields = {f"providers-0-{name}": value for name, value in provider.items()} | {"providers-TOTAL_FORMS": "1"}
    console.send("/admin/routing/router/add/", "router_form", name="new", type="text-generation", **fields)
    assert Provider.objects.get(router__name="new").max_context_length == 8192


def test_a_key_that_no_header_carries_is_refused(console, router):
    path = f"/admin/routing/provider/{Provider.objects.get().id}/change/"
    with pytest.raises(AssertionError, match="signs of ASCII"):
        console.send(path, "provider_form", new_key="é")
    assert Provider.objects.get().key == "upstream-secret"


def test_the_list_of_providers_tells_their_circuits_and_calls_in_flight(console, router, redis_client):
    provider = router.providers.get()
    for _ in range(circuit.FAILURES_TO_OPEN):
        redis_client.eval(*circuit.failed(provider.id)[1:])
    redis_client.zadd(f"opengate:inflight:{provider.id}", {"somebody": time.time() + 30})
    page = console.page("/admin/routing/provider/")
    assert "open, tried again in 5 s" in page
    assert '<td class="field-inflight">1</td>' in page
    assert "open, tried again in" in console.page(f"/admin/routing/provider/{provider.id}/change/")


def test_a_circuit_may_be_closed_by_hand(console, router, redis_client):
    provider = router.providers.get()
    redis_client.eval(*circuit.failed(provider.id)[1:])
    fields = {"action": "close_circuits", "_selected_action": provider.id}
    assert "Their circuits are closed" in console.send("/admin/routing/provider/", "changelist-form", **fields)
    assert redis_client.exists(circuit.key(provider.id)) == 0


def test_a_provider_may_be_added_though_nothing_is_known_of_it(console):
    page = console.page("/admin/routing/provider/add/")
    assert "cost_prompt_tokens" in page
    assert "unknown" in page
