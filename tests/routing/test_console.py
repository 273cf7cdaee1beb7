"""The console's pages of routers, providers and roles."""

import time
from html import unescape

import pytest
from auditlog.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Role
from routing import circuit, figures
from routing.forms import RouterForm
from routing.models import Provider, Router
from tests.conftest import PASSWORD
from tests.flows.test_changes_in_force import Console, Form
from tests.management.conftest import model_list
from tests.routing.providers import count_outage
from usage.matrix import TYPES
from usage.models import Limit


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
    page = console.send(path, "provider_form", url="http://127.0.0.1:9/", new_key="another-secret")
    assert "Model provider upstream-name not reachable. It says: 503" in page
    assert Provider.objects.get().url == "http://127.0.0.1:9/"


def test_a_stored_key_goes_to_no_other_address(console, router):
    provider = Provider.objects.get()
    page = refused(console, provider, url="http://evil.example/")
    assert "The address changes: type the key again, or remove it." in page
    console.send(path_of(provider), "provider_form", url=f"{provider.url}deeper/")  # the same host
    assert Provider.objects.get().key == "upstream-secret"
    console.send(path_of(provider), "provider_form", url="http://127.0.0.1:9/", remove_key="on")
    assert (Provider.objects.get().url, Provider.objects.get().key) == ("http://127.0.0.1:9/", None)


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
        count_outage(provider.id)
    redis_client.zadd(f"opengate:inflight:{provider.id}", {"somebody": time.time() + 30})
    page = console.page("/admin/routing/provider/")
    assert "open, tried again in 5 s" in page
    assert '<td class="field-inflight">1</td>' in page
    assert "open, tried again in" in console.page(f"/admin/routing/provider/{provider.id}/change/")


def test_a_circuit_may_be_closed_by_hand(console, router, redis_client):
    provider = router.providers.get()
    count_outage(provider.id)
    fields = {"action": "close_circuits", "_selected_action": provider.id}
    assert "Their circuits are closed" in console.send("/admin/routing/provider/", "changelist-form", **fields)
    assert redis_client.exists(circuit.key(provider.id)) == 0


def test_a_provider_may_be_added_though_nothing_is_known_of_it(console):
    page = console.page("/admin/routing/provider/add/")
    assert "cost_prompt_tokens" in page
    assert "unknown" in page


def path_of(row) -> str:
    return f"/admin/{row._meta.app_label}/{row._meta.model_name}/{row.pk}/change/"


def form_of(console, row) -> dict:
    return Form(console.page(path_of(row)), f"{row._meta.model_name}_form").fields


def refused(console, row, **fields) -> str:
    """The page that a form with a fault comes back on."""
    answer = console.client.post(path_of(row), data=form_of(console, row) | fields)
    assert answer.status_code == 200, answer.headers.get("location")
    return unescape(answer.text)


def aliases_of(router) -> list[str]:
    return list(router.names.filter(is_alias=True).values_list("value", flat=True))


def values_of(role, router) -> dict:
    return dict(Limit.objects.filter(role=role, router=router).values_list("type", "value"))


def test_aliases_are_edited_as_lines(console, router):
    console.send(path_of(router), "router_form", aliases="one\r\n two \r\n\r\n")
    assert aliases_of(router) == ["one", "two"]
    assert form_of(console, router)["initial-aliases"] == "one\ntwo"
    console.send(path_of(router), "router_form", aliases="two\r\nthree")
    assert aliases_of(router) == ["two", "three"]


def test_a_router_and_its_alias_may_swap_names(console, router):
    router.names.create(value="other")
    console.send(path_of(router), "router_form", name="other", aliases="model")
    router.refresh_from_db()
    assert (router.name, aliases_of(router)) == ("other", ["model"])


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        ("model", "model is the router's own name."),
        ("other", "other is already a name of other."),
        ("others-alias", "others-alias is already a name of other."),
        ("twice\ntwice", "twice is there twice."),
        ("a" * 256, "has more than 255 characters."),
    ],
)
def test_an_alias_that_cannot_be_is_said(console, router, aliases, said):
    other = Router.objects.create(name="other", type="text-generation")
    other.names.create(value="others-alias")
    assert said in refused(console, router, aliases=aliases)
    assert aliases_of(router) == []


def test_two_administrators_undo_nothing_of_each_others(console, router, role):
    router.names.create(value="old")
    old_page = form_of(console, router)
    console.send(
        path_of(router),
        "router_form",
        **{
            "aliases": "old\nfirst",
            "cost_prompt_tokens": "3",
            f"limits-{role.id}-rpm": "7",
            "providers-0-timeout": "9",
        },
    )
    changed = {"aliases": "second", "cost_completion_tokens": "4", f"limits-{role.id}-rpd": "8"}
    changed |= {"providers-0-model_hosting_zone": "FRA"}
    assert console.client.post(path_of(router), data=old_page | changed).status_code == 302
    router.refresh_from_db()
    assert (router.cost_prompt_tokens, router.cost_completion_tokens) == (3, 4)
    assert aliases_of(router) == ["first", "second"]
    assert values_of(role, router) == {"rpm": 7, "rpd": 8, "tpm": None, "tpd": None}
    provider = router.providers.get()
    assert (provider.timeout, provider.model_hosting_zone, provider.key) == (9, "FRA", "upstream-secret")


def test_limits_are_words_and_numbers(console, router, role):
    Limit.objects.filter(type="tpd").delete()
    page = form_of(console, router)
    assert [page[f"limits-{role.id}-{type}"] for type in TYPES] == ["unlimited", "unlimited", "unlimited", "closed"]
    cells = {"rpm": " Closed ", "rpd": "1,000", "tpm": "", "tpd": "UNLIMITED"}
    console.send(path_of(router), "router_form", **{f"limits-{role.id}-{type}": text for type, text in cells.items()})
    assert values_of(role, router) == {"rpm": 0, "rpd": 1000, "tpd": None}


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "99999999999999999999", "١٢"])
def test_what_is_no_limit_is_said_beside_its_cell_and_all_else_stays(console, router, role, text):
    typed = {f"limits-{role.id}-rpm": text, f"limits-{role.id}-rpd": "55", "aliases": "kept"}
    page = refused(console, router, **typed)
    assert "1 cell is no limit: see below." in page
    assert f'id="limits-{role.id}-rpm-error"' in page
    assert f'id="limits-{role.id}-rpd-error"' not in page
    sent = Form(page, "router_form").fields
    assert {name: sent[name] for name in typed} == typed
    assert values_of(role, router) == dict.fromkeys(TYPES)
    assert console.client.post(path_of(router), data=sent | {f"limits-{role.id}-rpm": "1"}).status_code == 302
    assert values_of(role, router) == {"rpm": 1, "rpd": 55, "tpm": None, "tpd": None}


def test_a_role_opens_and_closes_routers_in_one_step(console, router, role):
    other = Router.objects.create(name="other", type="text-generation")
    Limit.objects.filter(type="rpm").update(value=7)
    console.send(path_of(role), "role_form", **{f"limits-{other.id}-all": "open"})
    assert values_of(role, other) == dict.fromkeys(TYPES)
    assert values_of(role, router) == {"rpm": 7, "rpd": None, "tpm": None, "tpd": None}
    console.send(path_of(role), "role_form", **{f"limits-{other.id}-all": "close"})
    assert set(values_of(role, other).values()) == {0}


def test_what_nobody_changed_leaves_no_trace(console, router, role):
    before = LogEntry.objects.count()
    ids = set(Limit.objects.values_list("id", flat=True))
    console.send(path_of(role), "role_form")
    console.send(path_of(router), "router_form")
    logged = LogEntry.objects.order_by("id")[before:]
    assert [entry.content_type.model for entry in logged if entry.content_type.model != "session"] == []
    console.send(path_of(role), "role_form", **{f"limits-{router.id}-tpm": "5"})
    assert LogEntry.objects.latest("id").changes == {"value": [None, 5]}
    assert set(Limit.objects.values_list("id", flat=True)) == ids


def test_a_new_router_comes_with_its_first_provider_and_who_may_use_it(console, role, upstream):
    upstream.route("/v1/models", model_list())
    provider = {"type": "vllm", "model_name": "upstream-name", "url": upstream.url, "timeout": "5"}
    provider |= {"model_hosting_zone": "WOR", "model_total_params": "0", "model_active_params": "0"}
    fields = {f"providers-0-{name}": value for name, value in provider.items()} | {"providers-TOTAL_FORMS": "1"}
    fields |= {"aliases": "short", f"limits-{role.id}-all": "open"}
    console.send("/admin/routing/router/add/", "router_form", name="new", type="text-generation", **fields)
    new = Router.objects.get(name="new")
    assert (new.providers.count(), aliases_of(new)) == (1, ["short"])
    assert values_of(role, new) == dict.fromkeys(TYPES)


def test_a_role_that_goes_while_its_limits_are_edited_breaks_nothing(console, router, role):
    page = form_of(console, router)
    role.delete()
    sent = console.client.post(path_of(router), data=page | {f"limits-{role.id}-rpm": "1"})
    assert sent.status_code == 302
    assert not Limit.objects.exists()


def test_the_router_page_tells_the_health_of_each_provider(console, router, redis_client):
    Router.objects.update(load_balancing_strategy="least_busy")
    provider = router.providers.get()
    for number, sample in enumerate([(40, 400, 25.0), (60, 1500, 15.0)]):
        for command in figures.recorded(provider.id, f"call-{number}", figures.Sample(*sample)):
            redis_client.execute_command(*command)
    page = console.page(path_of(router))
    assert '<span class="badge good">well</span>' in page
    for shown in ("60 ms", "1.50 s", ">15<", "any number at a time"):
        assert shown in page
    count_outage(provider.id)
    assert '<span class="badge fair">failing</span>' in console.page(path_of(router))


def test_the_list_of_routers_tells_aliases_health_and_who_may_use_them(console, router, role, redis_client):
    router.names.create(value="an/alias")
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(router.providers.get().id)
    page = console.page("/admin/routing/router/?q=an/alias")
    for shown in ("an/alias", 'upstream-name <span class="badge bad">away</span>', "developers", "free"):
        assert shown in page
    assert "developers" not in console.page("/admin/routing/router/?q=nothing")
    Limit.objects.filter(type="rpm").update(value=0)
    assert '<td class="field-roles">nobody</td>' in console.page("/admin/routing/router/")
    assert '<td class="field-open_routers">none</td>' in console.page("/admin/accounts/role/?q=developers")


def test_names_stay_text_on_the_pages_of_models(console, router, role):
    for row in (router, role):
        row.name = "<script>alert(1)</script>"
        row.save()
    for page in ("/admin/routing/router/", "/admin/accounts/role/", path_of(router), path_of(role)):
        assert "<script>alert" not in console.page(page)


@pytest.mark.parametrize("page", ["/admin/routing/router/", "/admin/accounts/role/", "router", "role"])
def test_pages_take_as_many_queries_for_many_rows_as_for_few(admin, router, role, client, page):
    client.post("/admin/login/", {"username": admin.email, "password": PASSWORD})
    path = {"router": path_of(router), "role": path_of(role)}.get(page, page)

    def queries() -> int:
        with CaptureQueriesContext(connection) as caught:
            assert client.get(path).status_code == 200
        return len(caught)

    few = queries()
    for number in range(5):
        new = Router.objects.create(name=f"router-{number}", type="text-generation")
        Provider.objects.create(router=new, type="openai", url="http://127.0.0.1:9/", model_name="m")
        Provider.objects.create(router=router, type="openai", url="http://127.0.0.1:9/", model_name=f"m-{number}")
        new.names.create(value=f"alias-{number}")
        Limit.objects.open_router(Role.objects.create(name=f"role-{number}"), new)
        Limit.objects.open_router(role, new)
    assert queries() == few
    assert few < 20


def test_who_may_change_models_and_not_limits_reads_them(router, role):
    form = RouterForm(instance=router)
    form.fields["limits"].disabled = True
    shown = str(form["limits"])
    assert "unlimited" in shown
    assert 'type="text"' not in shown
    assert "<select" not in shown
