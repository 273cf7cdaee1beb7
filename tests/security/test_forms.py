"""Forms of other sites, guessed passwords, poisoned hosts, and paths around the doors."""

import re
import time

import pytest
from django.conf import settings
from django.test import Client

from accounts.models import Key, User
from knowledge.models import Collection
from tests.conftest import PASSWORD
from tests.flows.test_routes import routes
from tests.knowledge.conftest import collection, embeddings  # noqa: F401
from tests.playground.conftest import session_of
from usage.models import UsageRecord

EVIL = "evil.example"


def pages() -> list[str]:
    """Every path of console and playground, with 1 for each id."""
    found = [re.sub(r"<[^>]+>", "1", path) for path, _ in routes() if path.startswith(("/admin/", "/playground"))]
    return [path.replace("(?P", "x") for path in found]


def test_no_page_takes_a_form_of_another_site(admin, redis_client):
    """Signed in, as a browser is that another site leads here; the login itself, too."""
    walked = pages()
    assert len(walked) > 100
    rows = User.objects.count(), Key.objects.count()
    for signed_in in (True, False):
        client = Client(enforce_csrf_checks=True)
        if signed_in:
            client.force_login(admin, "accounts.passwords.PasswordBackend")
        client.cookies[settings.CSRF_COOKIE_NAME] = "a" * 32
        form = {"username": admin.email, "password": PASSWORD, "name": "x", "email": "x@example.org"}
        for path in walked:
            for token in ({}, {"csrfmiddlewaretoken": "b" * 32}, {"csrfmiddlewaretoken": ""}):
                assert client.post(path, form | token).status_code == 403, path
            text = client.post(path, "{}", content_type="text/plain")
            assert text.status_code == 403, path
        assert (settings.SESSION_COOKIE_NAME in client.cookies) == signed_in
    assert rows == (User.objects.count(), Key.objects.count())


def test_a_token_of_ours_from_another_origin_is_none(admin, redis_client):
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin, "accounts.passwords.PasswordBackend")
    client.cookies[settings.CSRF_COOKIE_NAME] = "a" * 32
    for origin in (f"https://{EVIL}", "null", "http://testserver.evil.example"):
        form = {"csrfmiddlewaretoken": "a" * 32, "name": "x"}
        assert client.post("/playground/keys", form, headers={"Origin": origin}).status_code == 403
    assert not Key.objects.exists()


def test_no_address_signs_anybody_out_or_changes_a_thing(admin, key_of, redis_client):
    key_of(admin)
    client = Client()
    client.force_login(admin, "accounts.passwords.PasswordBackend")
    key = Key.objects.get().pk
    for path in ("/admin/logout/", "/playground/logout", f"/playground/keys/{key}/revoke"):
        assert client.get(path).status_code in (200, 405)  # a question, or nothing
    assert client.get("/admin/").status_code == 200
    assert Key.objects.count() == 1


def test_no_other_site_reads_an_answer(target, ada, key_of):
    asked = {"Origin": f"https://{EVIL}", "Access-Control-Request-Method": "POST"}
    with target.client(key_of(ada)) as client:
        for method in ("OPTIONS", "GET", "POST"):
            for path in (
                "/v1/models",
                "/v1/chat/completions",
                "/v1/me",
                "/playground/chat",
                "/openapi.json",
                "/health",
            ):
                answer = client.request(method, path, headers=asked)
                assert not [name for name in answer.headers if name.startswith("access-control")], (method, path)
                assert answer.status_code != 500


def test_no_answer_has_an_address_that_a_caller_made_up(target, admin):
    poison = {"X-Forwarded-Host": EVIL, "X-Host": EVIL, "Forwarded": f"host={EVIL}", "X-Original-URL": f"//{EVIL}"}
    poison |= {"X-Rewrite-URL": "/admin/", "X-Forwarded-Prefix": f"//{EVIL}"}
    with target.client() as client:
        for signed_in in (False, True):
            if signed_in:
                client.cookies.set(settings.SESSION_COOKIE_NAME, session_of(admin))
            for path in ("/admin/", "/playground", "/playground/snippets", "/openapi.json", "/docs", "/favicon.ico"):
                answer = client.get(path, headers=poison)
                assert EVIL not in answer.text + str(answer.headers), path
                for host in (EVIL, f"localhost@{EVIL}", f"localhost:80@{EVIL}", f"{EVIL}#localhost", "localhost, x"):
                    answer = client.get(path, headers={"Host": host})
                    assert EVIL not in str(answer.headers), (path, host)
                    assert answer.status_code in (200, 302, 400), (path, host)


# Passwords that are guessed


def typed(client, door: str, email: str, password: str, address: str) -> bool:
    """Whether the password opens the door, for somebody at that address."""
    headers = {"X-Forwarded-For": address}
    if door == "/v1/auth/login":
        answer = client.post(door, json={"email": email, "password": password}, headers=headers)
        assert answer.status_code in (200, 401, 404, 429)
        return bool(answer.status_code == 200)
    client.cookies.clear()
    client.get(door, headers=headers)
    form = {"csrfmiddlewaretoken": client.cookies["csrftoken"], "username": email, "password": password}
    answer = client.post(door, data=form, headers=headers)
    assert answer.status_code in (200, 302)
    return bool(answer.status_code == 302)


@pytest.mark.parametrize("door", ["/v1/auth/login", "/admin/login/", "/playground/login"])
def test_guesses_close_the_account_to_who_guesses_and_to_nobody_else(target, admin, door):
    """At all doors at once, however the e-mail is written; who knows the password comes in from elsewhere."""
    doors = {"/v1/auth/login", "/admin/login/", "/playground/login"}
    with target.client() as client:
        for number in range(6):
            assert not typed(client, door, admin.email, f"guess {number}", "192.0.2.1")
        for other in doors:
            assert not typed(client, other, admin.email, PASSWORD, "192.0.2.1"), other
            assert not typed(client, other, admin.email.upper(), PASSWORD, "192.0.2.1"), other
            assert typed(client, other, admin.email, PASSWORD, "192.0.2.2"), other


def test_a_stranger_takes_as_long_as_a_user(target, ada):
    took: dict[str, list[float]] = {ada.email: [], "nobody@example.org": []}
    with target.client() as client:
        for number in range(24):
            for email, times in took.items():
                began = time.perf_counter()
                typed(client, "/v1/auth/login", email, "guess", f"192.0.2.{number + 10}")
                times.append(time.perf_counter() - began)
    known, unknown = (min(times) for times in took.values())
    assert 0.5 < known / unknown < 2


# Around the doors

TRICKS = (
    "//v1/models",
    "/v1//models",
    "/v1/../v1/models",
    "/health/../v1/models",
    "/%2e%2e/v1/models",
    "/health/%2e%2e/v1/models",
    "/v1/models/",
    "/v1/models%20",
    "/v1/models%00",
    "/v1/models;x",
    "/v1/models?x#y",
    "/V1/models",
    "/v1%2fmodels",
    "/v1%2Fadmin%2Fusers",
    "/v1/chat/completions/",
    "/v1/chat%2fcompletions",
    "/v1/Chat/Completions",
    "/static/../v1/models",
    "/static/..%2f..%2fopengate/settings.py",
    "/static/%2e%2e/%2e%2e/manage.py",
    "/static//etc/passwd",
    "/admin/..;/v1/models",
    "/admin/login/../accounts/user/",
    "/admin/login/%2e%2e/accounts/user/",
    "/admin//accounts/user/",
    "/ADMIN/accounts/user/",
    "/metrics/",
    "//metrics",
    "/%6detrics",
)


def test_no_spelling_of_a_path_goes_around_its_door(target, router, ada, key_of, upstream, unused):
    for key in (None, key_of(ada)):
        for path in TRICKS:
            for method in ("GET", "POST", "HEAD", "PUT"):
                token = f"Authorization: Bearer {key}\r\n" if key and "models" not in path else ""
                found = target.send(
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n".encode()
                )
                assert found.statuses[0] in (301, 302, 400, 401, 403, 404, 405, 422), (method, path, found.raw[:300])
                assert b"etc/passwd" not in found.raw
                assert b"SECRET_KEY" not in found.raw
    assert upstream.received == []


def test_no_header_changes_a_method_and_no_body_a_right(target, ada, key_of, collection):  # noqa: F811
    override = {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE", "X-HTTP-Method": "DELETE"}
    grab = {"_method": "DELETE", "id": 1, "role": 1, "permissions": ["admin"], "budget": 9e9}
    with target.client(key_of(ada)) as client:
        for method in ("GET", "POST", "PATCH"):
            client.request(method, f"/v1/collections/{collection.pk}?_method=DELETE", headers=override, json=grab)
        client.patch("/v1/me", json=grab | {"name": "ada"})
        client.patch("/v1/me/info", json=grab | {"name": "ada"})
    before = User.objects.get(pk=ada.pk)
    assert Collection.objects.filter(pk=collection.pk, owner=ada).exists()
    assert (before.role_id, before.role.permissions) == (ada.role_id, ada.role.permissions)
    assert not UsageRecord.objects.exists()
