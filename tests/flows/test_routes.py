"""Closed by default: every route says who may come in, and the few that are open are listed here."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import AnonymousUser
from django.http import HttpResponse, HttpResponseRedirect
from django.test import RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from accounts.authentication import HTTPBearer
from accounts.models import Permission, User
from accounts.permissions import Administers, AnyKey
from accounts.principals import Principal
from inference.consumers import CallConsumer
from opengate.api import calls, monitoring
from opengate.asgi import CONSUMERS
from opengate.playground.consumers import PlaygroundChat
from opengate.rows import RowView
from tests.conftest import CHAT, PASSWORD

PUBLIC = {
    "/health",
    "/health/ready",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/favicon.ico",
    "/admin/login/",
    "/playground/login",
    "/auth/oidc/login",
    "/auth/oidc/callback",
    "/v1/auth/login",
    "/",  # a 404
    "/v1/",  # a 404
}


def routes(patterns: Any = None, prefix: str = "/") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every path of the URL configuration with its view."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, path)
        else:
            assert isinstance(pattern, URLPattern)
            yield path, pattern.callback


def operations() -> Iterator[tuple[str, Any]]:
    """Every path of Ninja's with its operation."""
    for prefix, api in (("/v1/", calls), ("/", monitoring)):
        for router in api._get_bound_routers():
            bound = [operation for view in router.path_operations.values() for operation in view.operations]
            for pattern, operation in zip(router.urls_paths(router.prefix), bound, strict=True):
                yield f"{prefix}{pattern.pattern}", operation


def sends_to_the_login(view: Any, login: str) -> bool:
    request = RequestFactory().get("/x")
    request.user = AnonymousUser()
    response = view(request)
    return response.status_code == 302 and response.url.startswith(login)


def is_closed(path: str, view: Any) -> bool:
    """Whether the view asks who is calling: a page, an operation with a key, or a view with rights."""
    if path.startswith("/admin/") and path not in PUBLIC:
        return sends_to_the_login(view, "/admin/login/")
    if path.startswith("/playground"):
        return sends_to_the_login(view, "/playground/login")
    found = [operation for route, operation in operations() if route == path]
    if found:
        return all(any(isinstance(auth, HTTPBearer) for auth in operation.auth_callbacks) for operation in found)
    permissions = getattr(getattr(view, "cls", None), "permission_classes", ())
    return bool(permissions) and AllowAny not in permissions


def v1() -> list[tuple[str, str]]:
    """Method and path of every call under /v1, with `model` for each parameter."""
    found = [(method, path) for path, operation in operations() for method in operation.methods]
    found += [(consumer.method, path) for path, consumer in CONSUMERS.items() if path.startswith("/v1/")]
    return [(method, re.sub(r"<[^>]+>", "model", path)) for method, path in found]


def rows() -> list[tuple[str, str, type[RowView]]]:
    """Method, path with 1 for each id, and view of every row endpoint."""
    found = []
    for path, view in routes():
        row_view = getattr(view, "cls", None)
        if row_view is not None and issubclass(row_view, RowView):
            methods = [method.upper() for method in row_view.http_method_names if hasattr(row_view, method)]
            found += [(method, re.sub(r"<[^>]+>", "1", path), row_view) for method in methods]
    return found


CLOSED_ROWS = [(method, path, view) for method, path, view in rows() if path not in PUBLIC]


def needed(view: type[RowView]) -> Permission | None:
    """The permission that the view asks for."""
    (permission_class,) = view.permission_classes
    if permission_class is AnyKey:
        return None
    assert isinstance(permission_class, type)
    assert issubclass(permission_class, Administers)
    return permission_class.permission


def test_every_route_names_who_may_come_in():
    assert {path for path, view in routes() if not is_closed(path, view)} == PUBLIC


def test_every_consumer_asks_for_a_key_or_a_session():
    for path, consumer in CONSUMERS.items():
        assert issubclass(consumer, CallConsumer)
        assert consumer.is_authenticated
        assert consumer.__call__ is CallConsumer.__call__
        asks = PlaygroundChat if path == "/playground/chat" else CallConsumer
        assert consumer._caller is asks._caller


def test_the_playgrounds_chat_opens_to_nobody_without_a_session(gateway, router, ada, key_of, upstream):
    for key in (None, key_of(ada)):
        with gateway.client(key) as client:
            assert client.post("/playground/chat", json=CHAT).status_code == 401
    assert upstream.received == []


def test_an_open_view_would_be_noticed():
    class Open(APIView):
        permission_classes = [AllowAny]

    class Bare(APIView):
        permission_classes = []

    assert not is_closed("/x", lambda request: None)
    assert not is_closed("/x", Open.as_view())
    assert not is_closed("/x", Bare.as_view())
    assert not is_closed("/admin/x", lambda request: HttpResponse())
    assert not is_closed("/playground/x", lambda request: HttpResponse())
    assert not is_closed("/playground/x", lambda request: HttpResponseRedirect("/admin/login/"))
    assert is_closed("/x", APIView.as_view())


def test_the_walk_sees_the_calls():
    assert {("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/model")} <= set(v1())


NO_KEY_OF_OURS = [
    (None, "Not authenticated"),
    ("Bearer", "Not authenticated"),
    ("Basic YWRhOmFkYQ==", "Not authenticated"),
    ("sk-" + "a" * 43, "Not authenticated"),
    ("Bearer sk-" + "a" * 43, "Invalid API key."),
    ("Bearer sk-short", "Invalid API key."),
    ("Bearer sk-" + "a" * 5000, "Invalid API key."),
    ("Bearer sk-" + "é" * 43, "Invalid API key."),
    ("Bearer " + "0" * 64, "Invalid API key."),
]


@pytest.mark.parametrize(("authorization", "detail"), NO_KEY_OF_OURS, ids=lambda text: str(text)[:18])
def test_no_call_opens_without_a_key_of_ours(gateway, router, authorization, detail, subtests):
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    with gateway.client() as client:
        for method, path in v1():
            with subtests.test(f"{method} {path}"):
                response = client.request(method, path, json=CHAT if method == "POST" else None, headers=headers)
                assert (response.status_code, response.json()["detail"]) == (401, detail)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("authorization", "detail"),
    [
        (None, "Not authenticated"),
        ("Basic YWRhOmFkYQ==", "Not authenticated"),
        ("Bearer sk-" + "a" * 43, "Invalid API key."),
        ("Bearer " + "0" * 64, "Invalid API key."),
    ],
    ids=lambda text: str(text)[:18],
)
def test_no_row_opens_without_a_key_of_ours(gateway, authorization, detail, subtests):
    headers = {} if authorization is None else {"Authorization": authorization}
    with gateway.client() as client:
        for method, path, _ in CLOSED_ROWS:
            with subtests.test(f"{method} {path}"):
                response = client.request(method, path, content=b"no JSON", headers=headers)
                assert (response.status_code, response.json()) == (401, {"detail": detail})
                assert response.headers["www-authenticate"] == "Bearer"


def test_no_row_opens_with_a_session_of_the_console(gateway, admin):
    with gateway.client() as client:
        client.get("/admin/login/")
        form = {"csrfmiddlewaretoken": client.cookies["csrftoken"], "username": admin.email, "password": PASSWORD}
        assert client.post("/admin/login/", data=form).status_code == 302
        assert client.get("/admin/").status_code == 200
        for method, path, _ in CLOSED_ROWS:
            assert client.request(method, path, json={}).status_code == 401


def test_a_row_asks_for_its_permission_and_no_other(gateway, eve, key_of, subtests):
    with gateway.client(key_of(eve)) as client:
        for method, path, view in CLOSED_ROWS:
            with subtests.test(f"{method} {path}"):
                asks_for(eve, client, method, path, needed(view))


def asks_for(eve: User, client: httpx.Client, method: str, path: str, permission: Permission | None) -> None:
    """With no permission, with all others, and with this one alone."""
    for held in ([], [one for one in Permission if one != permission], [permission] if permission else []):
        eve.role.permissions = held
        eve.role.save()
        response = client.request(method, path, content=b"no JSON")
        if permission is None or permission in held:
            assert response.status_code not in (401, 403)
        else:
            models = "routers" in path or "providers" in path
            words = "User has no admin rights." if models else "Insufficient rights."
            assert (response.status_code, response.json()) == (403, {"detail": words})


def test_everything_under_admin_asks_for_the_admin_permission():
    asked = {path: needed(view) for _, path, view in CLOSED_ROWS}
    assert {path for path, permission in asked.items() if permission == Permission.ADMIN} == {
        path for path in asked if path.startswith("/v1/admin/")
    }
    assert len(CLOSED_ROWS) == 51


def test_two_keys_are_no_key(gateway, router, ada, key_of):
    twice = [("Authorization", f"Bearer {key_of(ada)}")] * 2
    with gateway.client() as client:
        for method, path in v1():
            assert client.request(method, path, json=CHAT, headers=twice).status_code == 401


def test_the_scheme_may_be_written_in_any_case(gateway, router, ada, key_of, chat):
    with gateway.client() as client:
        client.headers["Authorization"] = f"bearer {key_of(ada)}"
        assert chat(client).status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_stranger_finds_no_model(as_eve, router, chat, upstream):
    for response in (chat(as_eve), chat(as_eve, stream=True), as_eve.get("/v1/models/model")):
        assert (response.status_code, response.json()["detail"]) == (404, "Model not found.")
    assert as_eve.get("/v1/models").json() == {"object": "list", "data": []}
    assert upstream.received == []


def test_the_console_sends_everyone_else_to_its_login(gateway):
    with gateway.client() as client:
        for path in ("/admin/", "/admin/accounts/key/", "/admin/accounts/user/1/change/", "/admin/no/such/page"):
            response = client.get(path)
            assert response.status_code == 302, path
            assert response.headers["location"].startswith("/admin/login/")


def test_a_user_without_the_right_does_not_enter_the_console(gateway, ada):
    with gateway.client() as client:
        page = client.get("/admin/login/")
        (token, *_) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        form = {"csrfmiddlewaretoken": token, "username": ada.email, "password": "correct horse battery"}
        refused = client.post("/admin/login/", data=form)
        assert refused.status_code == 200
        assert "Please enter the correct e-mail and password for a staff account" in refused.text
        assert client.get("/admin/").status_code == 302


class Seeing(APIView):
    """Notes who was let in. It names no permission."""

    seen: list[Any] = []

    def get(self, request: Request) -> Response:
        self.seen.append(request.auth)
        return Response({})


class SeeingAnyKey(Seeing):
    permission_classes = [AnyKey]


@pytest.fixture(autouse=True)
def _nobody_seen():
    Seeing.seen.clear()


@pytest.fixture
def asked(redis_client):
    """Ask a view of Django REST framework, with a key or without."""

    def _asked(view, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return view.as_view()(APIRequestFactory().get("/", headers=headers))

    return _asked


def test_a_view_that_names_no_permission_is_closed_to_every_key(asked, admin, key_of):
    assert asked(Seeing).status_code == 401
    assert asked(Seeing, key_of(admin)).status_code == 403
    assert Seeing.seen == []


def test_a_view_for_any_key_sees_whose_it_is(asked, ada, key_of):
    assert asked(SeeingAnyKey, key_of(ada)).status_code == 200
    (principal,) = Seeing.seen
    assert isinstance(principal, Principal)
    assert (principal.user_id, principal.email) == (ada.id, "ada@example.org")
    assert not principal.grants(Permission.ADMIN)


def test_a_view_for_any_key_is_closed_without_one(asked, transactional_db):
    for key, detail in ((None, "Not authenticated"), ("sk-" + "a" * 43, "Invalid API key.")):
        response = asked(SeeingAnyKey, key)
        assert (response.status_code, response.data["detail"]) == (401, detail)
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert Seeing.seen == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 401),
        ("POST", "/v1/chat/completions", 401),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/health", 200),
        ("GET", "/health/ready", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/admin/", 302),
        ("GET", "/admin/login/", 200),
        ("POST", "/admin/login/", 403),
        ("GET", "/static/admin/css/base.css", 200),
        ("GET", "/static/nowhere.css", 404),
    ],
)
def test_every_answer_has_a_request_id_of_its_own(gateway, method, path, status):
    with gateway.client() as client:
        client.headers["x-request-id"] = "chosen-by-the-caller"
        answers = [client.request(method, path) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", id) for id in ids)
