"""What is changed in the console of one process is in force at the very next call of every process."""

import re
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import Key, Role
from routing.models import Provider, Router
from tests.conftest import CHAT, PASSWORD
from tests.server import Server
from usage.models import Limit, LimitType


class Form(HTMLParser):
    """What a browser would send of the form with that id, or of the one that holds its fields."""

    def __init__(self, page: str, id: str) -> None:
        super().__init__()
        self.id = id
        self.fields: dict[str, Any] = {}
        self._inside = False
        self._select: str | None = None
        self._text: str | None = None
        self.feed(page)
        assert self.fields, f"The page has no form {id}."

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = given.get("id") == self.id
        elif self._inside and tag == "option" and self._select and "selected" in given:
            self.fields[self._select] = given["value"]
        elif self._inside and tag == "select":
            self._select = given["name"]
        elif self._inside and tag == "textarea":
            self._text = given["name"]
            self.fields[self._text] = ""
        elif self._inside and tag == "input" and "name" in given:
            kind = given.get("type")
            if kind != "submit" and (kind != "checkbox" or "checked" in given):
                self.fields[given["name"]] = given.get("value", "on" if kind == "checkbox" else "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
        elif tag == "select":
            self._select = None
        elif tag == "textarea":
            self._text = None

    def handle_data(self, data: str) -> None:
        if self._text is not None:  # its first line break is none
            self.fields[self._text] += data if self.fields[self._text] else data.removeprefix("\n")


class Console:
    """An administrator at the console of one process."""

    def __init__(self, client: httpx.Client, email: str) -> None:
        self.client = client
        page = self.send("/admin/login/", "login-form", username=email, password=PASSWORD)
        assert "Log out" in page

    def send(self, path: str, form: str, **fields: Any) -> str:
        """Fill in the form of a page and send it; answers the page that follows."""
        filled = Form(self.client.get(path).raise_for_status().text, form).fields | fields
        sent = self.client.post(path, data=filled)
        assert sent.status_code == 302, re.findall(r"errorlist.*?<li>(.*?)</li>", sent.text, re.DOTALL)
        return self.page(sent.headers["location"])

    def page(self, path: str) -> str:
        return self.client.get(path, follow_redirects=True).raise_for_status().text

    def delete(self, path: str) -> None:
        token = Form(self.page(path), "logout-form").fields["csrfmiddlewaretoken"]
        assert self.client.post(path, data={"csrfmiddlewaretoken": token, "post": "yes"}).status_code == 302


@pytest.fixture(scope="session")
def _console_process(_gateway: Server, django_db_blocker: Any) -> Iterator[Server]:
    with django_db_blocker.unblock():
        server = Server().start()
    yield server
    server.stop()


@pytest.fixture
def processes(_console_process, gateway, router):
    """Two web processes; the first has the console, and the second hears of it through Redis only."""
    return [_console_process, gateway]


@pytest.fixture
def console(processes, admin):
    with processes[0].client() as client:
        client.headers["Origin"] = processes[0].url
        yield Console(client, admin.email)


@pytest.fixture
def answers(processes):
    """Status and detail of a chat, asked of each process in turn."""
    clients = [process.client() for process in processes]

    def _answers(key: str, model: str = "model") -> list[Any]:
        headers = {"Authorization": f"Bearer {key}"}
        sent = [c.post("/v1/chat/completions", json=CHAT | {"model": model}, headers=headers) for c in clients]
        return [200 if r.status_code == 200 else (r.status_code, r.json()["detail"]) for r in sent]

    yield _answers
    for client in clients:
        client.close()


@pytest.fixture
def key(processes, ada, key_of, answers):
    """A key of ada's that both processes know."""
    key = key_of(ada)
    assert answers(key) == OPEN
    return key


OPEN = [200, 200]
UNKNOWN_KEY = [(401, "Invalid API key.")] * 2
UNKNOWN_MODEL = [(404, "Model not found.")] * 2
CLOSED = [(403, "Insufficient permissions to access the model.")] * 2


def test_a_deleted_key_opens_no_process(console, answers, key):
    console.delete(f"/admin/accounts/key/{Key.objects.get().id}/delete/")
    assert answers(key) == UNKNOWN_KEY


def test_a_key_revoked_in_the_list_opens_no_process(console, answers, key):
    ticked = Key.objects.get().id
    page = console.send("/admin/accounts/key/", "changelist-form", action="revoke", _selected_action=ticked)
    assert "1 key revoked." in page
    assert answers(key) == UNKNOWN_KEY


def test_a_key_that_expires_opens_no_process(console, answers, key):
    path = f"/admin/accounts/key/{Key.objects.get().id}/change/"
    console.send(path, "key_form", expires_0="2020-01-01", expires_1="00:00:00")
    assert answers(key) == UNKNOWN_KEY


def test_a_closed_limit_closes_the_model(console, answers, key):
    limit = Limit.objects.get(type="rpd")
    console.send(f"/admin/usage/limit/{limit.id}/change/", "limit_form", value="0")
    assert answers(key) == CLOSED
    console.send(f"/admin/usage/limit/{limit.id}/change/", "limit_form", value="")
    assert answers(key) == OPEN


def test_a_renamed_router_answers_to_its_new_name_only(console, answers, key, router):
    console.send(f"/admin/routing/router/{router.id}/change/", "router_form", name="renamed")
    assert answers(key) == UNKNOWN_MODEL
    assert answers(key, "renamed") == OPEN


def test_an_added_alias_is_a_name(console, answers, key, router):
    assert answers(key, "an/alias") == UNKNOWN_MODEL
    console.send(f"/admin/routing/router/{router.id}/change/", "router_form", aliases="an/alias")
    assert answers(key, "an/alias") == OPEN
    assert answers(key) == OPEN


def test_a_removed_provider_gets_no_call(console, answers, key, upstream):
    received = len(upstream.received)
    console.delete(f"/admin/routing/provider/{Provider.objects.get().id}/delete/")
    assert answers(key) == UNKNOWN_MODEL
    assert len(upstream.received) == received


def test_an_expired_user_opens_no_process(console, answers, key, ada):
    gone = timezone.now() - timedelta(seconds=1)
    fields = {"expires_0": f"{gone:%Y-%m-%d}", "expires_1": f"{gone:%H:%M:%S}"}
    console.send(f"/admin/accounts/user/{ada.id}/change/", "user_form", **fields)
    assert answers(key) == UNKNOWN_KEY


def test_a_user_with_another_role_may_use_what_that_role_may(console, answers, key, ada, role):
    other = Role.objects.create(name="others")
    console.send(f"/admin/accounts/user/{ada.id}/change/", "user_form", role=other.id)
    assert answers(key) == UNKNOWN_MODEL
    console.send(f"/admin/accounts/user/{ada.id}/change/", "user_form", role=role.id)
    assert answers(key) == OPEN


def test_a_new_key_opens_every_process_and_is_shown_once(console, answers, key, ada):
    path = "/admin/accounts/key/add/"
    form = Form(console.page(path), "key_form").fields | {"user": ada.id, "name": "made in the console"}
    page = console.client.post(path, data=form).text
    (text,) = re.findall(r">(sk-[\w-]{43})</code>", unescape(page))
    assert answers(text) == OPEN
    made = Key.objects.get(name="made in the console")
    for path in ("/admin/accounts/key/", f"/admin/accounts/key/{made.id}/change/", "/admin/"):
        assert text not in console.page(path)


def test_a_new_router_is_callable_at_once(console, answers, key, role, upstream):
    assert answers(key, "new/router") == UNKNOWN_MODEL
    provider = {"type": "openai", "model_name": "new-name", "url": upstream.url}
    fields = {f"providers-0-{name}": value for name, value in provider.items()} | {"providers-TOTAL_FORMS": "1"}
    fields |= {"providers-0-timeout": "5", "providers-0-model_hosting_zone": "WOR"}
    fields |= {"providers-0-model_total_params": "0", "providers-0-model_active_params": "0"}
    console.send("/admin/routing/router/add/", "router_form", name="new/router", type="text-generation", **fields)
    new = Router.objects.get(name="new/router")

    limits = {f"limits-{new.id}-{type}": "unlimited" for type in LimitType.values}
    console.send(f"/admin/accounts/role/{role.id}/change/", "role_form", **limits)
    assert answers(key, "new/router") == OPEN
    assert upstream.received[-1].json["model"] == "new-name"


def test_a_providers_key_goes_to_the_upstream_and_nowhere_else(console, answers, key, upstream):
    provider, secret = Provider.objects.get(), "typed-into-the-console-by-an-admin"
    path = f"/admin/routing/provider/{provider.id}/change/"
    pages = [console.send(path, "provider_form", new_key=secret)]
    pages += [console.page(path), console.page(f"/admin/routing/router/{provider.router_id}/change/")]
    assert not any(secret in page for page in pages)
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM routing_provider WHERE id = %s", [provider.id])
        assert not any(secret in str(column) for column in cursor.fetchone())
    assert answers(key) == OPEN
    assert [request.headers["authorization"] for request in upstream.received[-2:]] == [f"Bearer {secret}"] * 2
    console.send(path, "provider_form")  # an empty field leaves it as it is
    assert Provider.objects.get().key == secret
