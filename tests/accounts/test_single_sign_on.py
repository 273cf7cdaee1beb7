"""Signing in at an identity provider: the way there and back, and its pages."""

import logging
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import SESSION_KEY
from django.core.checks import run_checks
from django.test import Client

from accounts import identity_provider, sign_ins
from accounts.models import Key, User
from opengate import environment
from tests.accounts.identity_provider import (
    ACCESS,
    CALLBACK,
    CLIENT,
    CODE,
    LOGIN,
    SECRET,
    RealProvider,
    refused,
    who,
)
from tests.conftest import PASSWORD
from tests.server import Server

PAGES = ("/playground/login", "/admin/login/")


# at a real provider, over HTTP


@pytest.fixture(scope="module")
def real():
    provider = RealProvider()
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def server(real, django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        server = Server(OPENGATE_OIDC_ISSUER=real.url, OPENGATE_OIDC_ROLE="developers", OPENGATE_OIDC_LOGOUT="true")
        id, secret = real.register(f"{server.url}{CALLBACK}")
        server.extra |= {"OPENGATE_OIDC_CLIENT_ID": id, "OPENGATE_OIDC_CLIENT_SECRET": secret}
        server.start()
    yield server
    server.stop()


def at_the_provider(browser, page, **choice):
    """From one of our sign-in pages to the provider, whose form is sent; where that leads, on our side."""
    (link,) = re.findall(r'href="([^"]*)" id="single-sign-on"', browser.get(page).text)
    there = browser.get(link.replace("&amp;", "&"))
    assert there.status_code == 302
    form = browser.get(there.headers["location"])
    assert form.status_code == 200, form.text
    return browser.post(there.headers["location"], data=choice).headers["location"]


def test_people_come_and_go_by_a_real_provider(server, real, role, admin, redis_client):
    real.put("ada", email="Ada@example.org", email_verified=True, name="Ada")
    with server.client() as browser:
        back = at_the_provider(browser, "/playground/login?next=/playground/keys", sub="ada")
        assert browser.get(back).headers["location"] == "/playground/keys"
        assert browser.get("/playground/keys").status_code == 200
        ada = User.objects.get(iss=real.url, sub="ada")
        assert (ada.email, ada.name, ada.role, ada.has_usable_password()) == ("Ada@example.org", "Ada", role, False)
        assert "too old" in browser.get(back).text  # once, and no second time
        token = browser.cookies["csrftoken"]
        goodbye = browser.post("/playground/logout", data={"csrfmiddlewaretoken": token})
        (end,) = re.findall(r'href="([^"]*)" id="end-session"', goodbye.text)
        assert browser.get("/playground/keys").status_code == 302
        assert browser.get(end.replace("&amp;", "&")).status_code == 200
    real.put("root", email=admin.email, email_verified=True)
    with server.client() as browser:
        assert browser.get(at_the_provider(browser, "/admin/login/", sub="root")).headers["location"] == "/admin/"
        assert browser.get("/admin/accounts/user/").status_code == 200
        browser.cookies.clear()
        cancelled = browser.get(at_the_provider(browser, "/admin/login/", action="deny"))
        assert (cancelled.status_code, "was cancelled" in cancelled.text) == (403, True)
    admin.refresh_from_db()
    assert admin.sub == "root"


# the way there and back


def test_the_question_is_tied_to_the_browser_that_asks(provider):
    client = Client()
    first, second = (client.get(LOGIN) for _ in range(2))
    asked, again = provider.question(first), provider.question(second)
    assert first.headers["location"].startswith(f"{provider.url}/authorize?")
    assert {name: asked[name] for name in ("response_type", "client_id", "redirect_uri", "code_challenge_method")} == {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": f"http://testserver{CALLBACK}",
        "code_challenge_method": "S256",
    }
    assert not {asked[name] for name in ("state", "nonce", "code_challenge")} & set(again.values())
    cookie = first.cookies["opengate-sign-in"]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", 600)


def test_an_answer_that_another_browser_asked_for_signs_nobody_in(provider):
    attacker, victim = Client(), Client()
    asked = provider.asked = provider.question(attacker.get(LOGIN))
    victim.get(LOGIN)
    for state in ({"state": asked["state"]}, {"state": ""}, {"state": "é\x01"}, {}):
        answer = victim.get(CALLBACK, {"code": CODE, **state})
        assert refused(answer, 400, "begun in another browser", victim)
    victim.cookies["opengate-sign-in"] = attacker.cookies["opengate-sign-in"].value + "x"
    assert refused(victim.get(CALLBACK, {"code": CODE, "state": asked["state"]}), 400, "too old", victim)
    assert not [one for one in provider.upstream.received if one.path == "/token"]


def test_an_answer_is_taken_once(provider):
    client = Client()
    provider.sign_in(client)
    again = client.get(CALLBACK, {"code": CODE, "state": provider.asked["state"]})
    assert (again.status_code, "finished before" in again.text) == (400, True)
    assert who(client).email == "new@example.org"  # who came in stays in


def test_two_tabs_may_sign_in_at_a_time(provider):
    client = Client()
    tabs = [provider.question(client.get(LOGIN, {"next": page})) for page in ("/playground/keys", "/playground/usage")]
    for provider.asked, page in zip(tabs, ("/playground/keys", "/playground/usage"), strict=True):
        response = client.get(CALLBACK, {"code": CODE, "state": provider.asked["state"]})
        assert response.headers["location"] == page


def test_an_attempt_ends_after_ten_minutes(provider, monkeypatch):
    client = Client()
    provider.asked = provider.question(client.get(LOGIN))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 601)
    assert refused(client.get(CALLBACK, {"code": CODE, "state": provider.asked["state"]}), 400, "too old", client)


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ({"error": "access_denied"}, 403, "was cancelled"),
        ({"error": "server_error", "error_description": "<b>boo</b>"}, 503, "cannot be reached"),
        ({"code": ""}, 400, "could not be verified"),
        ({"code": "of-somebody-else"}, 400, "could not be verified"),
        ({"iss": "https://evil.example"}, 400, "could not be verified"),
    ],
)
def test_an_answer_without_a_code_of_ours_is_a_page(provider, answer, status, words):
    client = Client()
    response = provider.sign_in(client, **answer)
    assert refused(response, status, words, client)
    assert "boo" not in response.text


WANTED = [
    ("/playground/usage?days=7", "/playground/usage?days=7"),
    ("/admin/routing/router/", "/admin/routing/router/"),
    ("https://evil.example/", "/playground"),
    ("//evil.example/playground", "/playground"),
    ("/\\evil.example", "/playground"),
    ("/playground\\@evil.example", "/playground"),
    ("javascript:alert(1)", "/playground"),
    ("/playgroundevil", "/playground"),
    ("/v1/models", "/playground"),
    ("/playground/logout", "/playground"),
    ("/admin/login/?next=/admin/", "/admin/"),
    ("/playground/" + "x" * 400, "/playground"),
    ("/playground/\nx", "/playground"),
]


def test_the_sign_in_leads_to_a_page_of_ours(provider):
    client = Client()
    for wanted, reached in WANTED:
        assert provider.sign_in(client, wanted).headers["location"] == reached, wanted


def test_the_session_is_a_new_one(provider, ada):
    client = Client()
    client.post("/playground/login", {"username": ada.email, "password": PASSWORD})
    before = str(client.session.session_key)
    provider.sign_in(client)
    assert client.session.session_key != before
    assert who(client).email == "new@example.org"
    assert not client.session.exists(before)


def test_a_host_that_nobody_checked_is_no_part_of_the_address(provider, settings):
    assert Client().get(LOGIN, headers={"Host": "evil.example"}).status_code == 400
    settings.ALLOWED_HOSTS = ["*"]
    assert Client().get(LOGIN, headers={"Host": "evil.example"}).status_code == 503
    settings.PUBLIC_URL = "https://ai.example.org"
    asked = provider.question(Client().get(LOGIN, headers={"Host": "evil.example"}))
    assert asked["redirect_uri"] == f"https://ai.example.org{CALLBACK}"


def test_no_secret_is_logged(provider, caplog):
    with caplog.at_level(logging.INFO):
        provider.sign_in(Client())
        provider.sign = lambda claims: provider.signed(claims | {"aud": "x"})
        provider.sign_in(Client())
    assert "InvalidClaimError of aud" in caplog.text
    for secret in (CODE, ACCESS, SECRET, "eyJ", provider.asked["state"], provider.asked["nonce"], "new@example"):
        assert secret not in caplog.text


# pages and settings


def test_without_an_issuer_there_is_nothing_of_it(client, transactional_db):
    for page in PAGES:
        assert "single-sign-on" not in client.get(page).text
    for path in (LOGIN, CALLBACK):
        assert client.get(path).status_code == 404


def test_passwords_can_be_closed(provider, settings, ada, admin):
    settings.PASSWORD_LOGIN = False
    for page in PAGES:
        client = Client()
        shown = client.get(page).text
        assert "Sign in with Example ID" in shown
        assert 'name="password"' not in shown
        answer = client.post(page, {"username": admin.email, "password": PASSWORD})
        assert "switched off" in answer.text
        assert SESSION_KEY not in client.session
    body = {"email": ada.email, "password": PASSWORD}
    answer = Client().post("/v1/auth/login", body, content_type="application/json")
    assert answer.status_code == 403
    assert answer.json() == {"detail": "Signing in with a password is switched off here: use single sign-on."}
    assert not Key.objects.exists()
    provider.claims |= {"email": admin.email}
    provider.sign_in(client, "/admin/")
    assert "Change password" not in client.get("/admin/").text


def test_who_signs_out_goes_on_to_the_provider_where_that_is_wished(provider, settings, admin):
    settings.OIDC_LOGOUT = True
    provider.claims |= {"email": admin.email}
    for page, path in (("/playground", "/playground/logout"), ("/admin/", "/admin/logout/")):
        client = Client()
        provider.sign_in(client, page)
        goodbye = client.post(path)
        assert SESSION_KEY not in client.session
        (link,) = re.findall(r'href="([^"]*)" id="end-session"', goodbye.text)
        asked = parse_qs(urlsplit(link.replace("&amp;", "&")).query)
        assert asked["post_logout_redirect_uri"] == ["http://testserver/playground/login"]
        assert asked["id_token_hint"][0].startswith("eyJ")
    provider.metadata = {"end_session_endpoint": None}
    for path in ("/playground/logout", "/admin/logout/"):  # nowhere to go on to
        identity_provider.forget()
        provider.sign_in(client)
        assert "end-session" not in client.post(path).text
        assert SESSION_KEY not in client.session


def test_the_secret_goes_in_the_body_where_that_is_taken(provider):
    provider.sign_in(Client())
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    identity_provider.forget()
    provider.sign_in(Client())
    header, body = (one for one in provider.upstream.received if one.path == "/token")
    assert ("authorization" in header.headers, SECRET.encode() in header.body) == (True, False)
    assert ("authorization" in body.headers, SECRET.encode() in body.body) == (False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"OIDC_ISSUER": "https://id.example.org"}, "OPENGATE_OIDC_CLIENT_ID is not set"),
        ({"OIDC_CLIENT_ID": "x"}, "OPENGATE_OIDC_ISSUER is not set"),
        ({"OIDC_ISSUER": "http://id.example.org", "OIDC_CLIENT_ID": "x"}, "is not https"),
        ({"OIDC_ISSUER": "https://[id", "OIDC_CLIENT_ID": "x"}, "is not https"),
        ({"OIDC_ISSUER": "https://id.example.org", "OIDC_CLIENT_ID": "x", "OIDC_SCOPES": "email"}, "lacks openid"),
        (
            {"OIDC_ISSUER": "https://id.example.org", "OIDC_CLIENT_ID": "x", "ALLOWED_HOSTS": ["*"]},
            "OPENGATE_PUBLIC_URL",
        ),
        ({"OIDC_GROUP_ROLES": {"a": ""}}, "OPENGATE_OIDC_GROUP_ROLES"),
        ({"PASSWORD_LOGIN": False}, "Nobody can sign in"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_check_says_what_is_missing(settings, changes, words):
    assert not [one for one in run_checks() if one.id == "opengate.E007"]
    for name, value in changes.items():
        setattr(settings, name, value)
    assert any(words in one.msg for one in run_checks() if one.id == "opengate.E007")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENGATE_PUBLIC_URL", "javascript:alert(1)"),
        ("OPENGATE_PUBLIC_URL", "https://ai.example.org/path"),
        ("OPENGATE_OIDC_GROUP_ROLES", "[]"),
        ("OPENGATE_OIDC_GROUP_ROLES", "{"),
        ("OPENGATE_OIDC_TIMEOUT_SECONDS", "0"),
        ("OPENGATE_OIDC_SCOPES", 'openid "x"'),
    ],
)
def test_a_value_that_makes_no_sense_is_said_to_be_so(name, value):
    _, (problem, *_) = environment.read({name: value})
    assert problem.variable == name


def test_an_issuer_far_away_sends_us_to_no_port_of_this_machine():
    assert sign_ins.may_name("https://id.example.org", "https://keys.example.org/jwks")
    assert sign_ins.may_name("http://127.0.0.1:8080", "http://127.0.0.1:8080/jwks")
    for url in ("http://127.0.0.1:6379/", "http://localhost/", "http://keys.example.org/", "file:///etc/passwd", ""):
        assert not sign_ins.may_name("https://id.example.org", url)
