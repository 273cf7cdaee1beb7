"""Signing in at an identity provider: a real one, and one that lies."""

import hashlib
import hmac
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from auditlog.models import LogEntry
from django.contrib.auth import SESSION_KEY
from django.core.checks import run_checks
from django.db import connection
from django.test import Client
from django.utils import timezone
from joserfc import jwt

from accounts import identity_provider, single_sign_on
from accounts.identity_provider import Identity
from accounts.models import Key, Organization, Role, User
from opengate import environment
from tests.accounts.identity_provider import (
    ACCESS,
    CALLBACK,
    CLIENT,
    CODE,
    LOGIN,
    SECRET,
    RealProvider,
    ScriptedProvider,
    new_key,
    segment,
)
from tests.conftest import PASSWORD, person
from tests.server import Server
from tests.upstream import Reply

PAGES = ("/playground/login", "/admin/login/")


@pytest.fixture
def provider(upstream, settings, role, redis_client):
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET = upstream.url, CLIENT, SECRET
    settings.OIDC_ROLE, settings.OIDC_NAME = role.name, "Example ID"
    identity_provider.forget()
    return ScriptedProvider(upstream)


def who(client):
    """Who is signed in."""
    return User.objects.filter(pk=client.session.get(SESSION_KEY)).first()


def refused(response, status, words, client):
    assert (response.status_code, SESSION_KEY in client.session) == (status, False), response.text
    assert words in response.text
    assert "no-store" in response.headers["Cache-Control"]
    return True


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


# answers that are not genuine


def hs256(provider):
    """Signed with the public key as if it were a shared secret."""

    def sign(claims):
        text = f"{segment({'alg': 'HS256', 'kid': provider.key.kid})}.{segment(claims)}"
        mac = hmac.new(provider.key.as_pem(private=False), text.encode(), hashlib.sha256).digest()
        return f"{text}.{segment(mac)}"

    return sign


def others_key(provider):
    other = new_key(provider.key.kid)
    return lambda claims: jwt.encode({"alg": "ES256", "kid": other.kid}, claims, other)


SIGNATURES = {
    "tampered": lambda provider: (
        lambda claims: provider.signed(claims).replace(".", f".{segment(claims | {'sub': 'x'})}.", 1).rsplit(".", 1)[0]
    ),
    "of another key": others_key,
    "unknown key": lambda provider: lambda claims: provider.signed(claims, kid="nobody's"),
    "alg none": lambda provider: lambda claims: f"{segment({'alg': 'none'})}.{segment(claims)}.",
    "HS256 with the public key": hs256,
    "no token": lambda provider: lambda claims: "no.token",
    "nested": lambda provider: lambda claims: f"{segment({'alg': 'ES256', 'kid': [1]})}.{'e30' * 4}.AA",
    "endless": lambda provider: lambda claims: "x" * 70_000,
    "not text": lambda provider: lambda claims: {"a": 1},
}


def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(provider):
    for lie, sign in SIGNATURES.items():
        client, provider.sign = Client(), sign(provider)
        assert refused(provider.sign_in(client), 400, "could not be verified", client), lie
    assert not User.objects.exists()


NOT_FOR_US: list[dict[str, Any]] = [
    {"iss": "https://evil.example"},
    {"iss": None},
    {"aud": "another"},
    {"aud": None},
    {"aud": [CLIENT, "another"]},
    {"aud": [CLIENT, "another"], "azp": "another"},
    {"azp": "another"},
    {"exp": 1_700_000_000},
    {"exp": None},
    {"exp": "tomorrow"},
    {"iat": None},
    {"nonce": "of-another-browser"},
    {"nonce": None},
    {"sub": None},
    {"sub": ""},
    {"sub": 7},
    {"sub": "x" * 256},
    {"sub": "a\x00b"},
    {"at_hash": "AAAA"},
    {"aud": 7},
]


def test_a_token_that_is_not_for_us_and_now_lets_nobody_in(provider):
    honest = provider.claims
    for claims in NOT_FOR_US:
        client, provider.claims = Client(), honest | claims
        assert refused(provider.sign_in(client), 400, "could not be verified", client), claims
    assert not User.objects.exists()


BROKEN = {
    "token: 500": ("/token", Reply([b"oops"], status=500), 503),
    "token: no JSON": ("/token", Reply([b"<html>"]), 503),
    "token: a list": ("/token", Reply([b"[]"]), 503),
    "token: deep": ("/token", Reply([b"[" * 200_000]), 503),
    "token: wrong secret": ("/token", Reply([b'{"error": "invalid_client"}'], status=401), 503),
    "token: used code": ("/token", Reply([b'{"error": "invalid_grant"}'], status=400), 400),
    "token: too long": ("/token", Reply([b" " * 600_000] * 2, gap=0), 503),
    "token: silent": ("/token", Reply([], then="stall"), 503),
    "token: drip": ("/token", Reply([b" "] * 80, gap=0.02), 503),
    "token: cut": ("/token", Reply([b"{"], then="cut"), 503),
    "token: elsewhere": ("/token", Reply([], status=302, headers={"Location": "https://evil.example"}), 503),
    "keys: 404": ("/keys", Reply([b"{}"], status=404), 503),
    "keys: none": ("/keys", Reply([b'{"keys": []}']), 400),
    "keys: odd": ("/keys", Reply([b'{"keys": [1, {"kty": "oct", "k": "AA"}, {"kty": "RSA"}, {"kty": "EC"}]}']), 400),
    "configuration: 404": ("/.well-known/openid-configuration", Reply([b"{}"], status=404), 503),
    "configuration: empty": ("/.well-known/openid-configuration", Reply([b"{}"]), 503),
}


def test_a_provider_that_is_away_or_mad_is_a_page_and_no_error_of_ours(provider, settings):
    for path, reply, status in BROKEN.values():
        provider.speak()
        identity_provider.forget()
        provider.upstream.route(path, lambda request, reply=reply: reply)
        client, settings.OIDC_TIMEOUT_SECONDS = Client(), 0.5 if reply.then == "stall" or reply.gap > 0.01 else 5
        words = "cannot be reached, or does not answer" if status == 503 else "could not be verified"
        assert refused(provider.sign_in(client), status, words, client)


UNSAFE: list[dict[str, Any]] = [
    {"issuer": "https://evil.example"},
    {"token_endpoint": "http://id.example.org/token"},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"jwks_uri": None},
    {"token_endpoint": 7},
    {"userinfo_endpoint": "https://[broken"},
]


def test_a_configuration_that_is_not_safe_is_not_followed(provider):
    for provider.metadata in UNSAFE:
        identity_provider.forget()
        client = Client()
        assert refused(client.get(LOGIN), 503, "cannot be reached, or does not answer", client), provider.metadata


def test_a_provider_that_is_gone_is_said_to_be_so(provider, settings):
    settings.OIDC_ISSUER = "http://127.0.0.1:9"
    client = Client(headers={"Accept-Language": "fr"})
    response = client.get(LOGIN)
    assert refused(response, 503, "injoignable", client)
    assert response.headers["Retry-After"]


def test_a_provider_that_is_away_is_not_asked_at_each_click(provider, monkeypatch):
    provider.metadata = {"jwks_uri": None}
    for _ in range(3):
        assert Client().get(LOGIN).status_code == 503
    assert len(provider.upstream.received) == 1
    provider.metadata = {}
    monkeypatch.setattr(identity_provider, "AWAY_SECONDS", 0)
    assert Client().get(LOGIN).status_code == 302


def test_keys_may_change_at_any_time(provider):
    assert provider.sign_in(Client()).headers["location"] == "/playground"
    provider.key = new_key()
    assert provider.sign_in(Client()).headers["location"] == "/playground"
    provider.key = new_key(provider.key.kid)  # other bits under the same name
    assert provider.sign_in(Client()).headers["location"] == "/playground"
    assert User.objects.count() == 1


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


# whose account it is


def test_a_verified_email_links_an_account_once_and_for_all(provider, ada):
    provider.claims |= {"email": "ADA@Example.org", "name": "Mallory"}
    provider.sign_in(Client())
    linked = User.objects.get()
    assert (linked.pk, linked.email, linked.sub, linked.iss) == (ada.pk, ada.email, "subject-1", provider.url)
    assert linked.name is None
    provider.claims |= {"email": "elsewhere@example.org", "email_verified": False}
    client = Client()
    provider.sign_in(client)
    assert who(client) == ada
    (entry,) = LogEntry.objects.get_for_object(ada).filter(action=LogEntry.Action.UPDATE)
    assert (entry.changes["sub"], entry.remote_addr) == ([None, "subject-1"], "127.0.0.1")


UNVERIFIED: list[tuple[dict[str, Any], str]] = [
    ({"email_verified": False}, "has not verified"),
    ({"email_verified": "false"}, "has not verified"),
    ({"email_verified": None}, "has not verified"),
    ({"email_verified": 1}, "has not verified"),
    ({"email": None}, "did not tell"),
    ({"email": ""}, "did not tell"),
    ({"email": ["admin@example.org"]}, "did not tell"),
    ({"email": "admin@example.org\x00"}, "did not tell"),
    ({"email": "x" * 250 + "@example.org"}, "did not tell"),
]


def test_an_email_that_is_not_verified_takes_over_nobody(provider, admin):
    honest = provider.claims | {"email": admin.email}
    provider.userinfo = {"sub": "subject-1"}
    for claims, words in UNVERIFIED:
        client, provider.claims = Client(), honest | claims
        assert refused(provider.sign_in(client, "/admin/"), 403, words, client), claims
    assert not User.objects.exclude(sub=None).exists()


@pytest.mark.parametrize("email", ["adm\u0131n@example.org", "admin@e\u212aample.org", "Admın@example.org"])
def test_an_email_that_looks_alike_is_another_one(provider, admin, email):
    admin.email = admin.email.replace("example", "ekample") if "\u212a" in email else admin.email
    admin.save()
    client = Client()
    provider.claims |= {"email": email}
    provider.sign_in(client)
    assert who(client) != admin
    assert User.objects.get(pk=admin.pk).sub is None


def test_an_account_that_is_somebody_elses_there_stays_theirs(provider, ada):
    ada.iss, ada.sub = provider.url, "another-subject"
    ada.save()
    provider.claims |= {"email": ada.email}
    client = Client()
    assert refused(provider.sign_in(client), 403, "belongs to another person", client)


def test_two_accounts_that_differ_in_case_are_not_guessed_among(provider, ada):
    person("ADA@example.org", ada.role)
    provider.claims |= {"email": ada.email}
    client = Client()
    assert refused(provider.sign_in(client), 403, "Several accounts", client)


def test_an_expired_account_stays_closed(provider, ada):
    provider.claims |= {"email": ada.email}
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    client = Client()
    assert refused(provider.sign_in(client), 403, "has expired", client)
    ada.iss, ada.sub = provider.url, "subject-1"
    ada.save()
    assert refused(provider.sign_in(client), 403, "has expired", client)


def test_a_new_person_gets_what_the_settings_say(provider, settings):
    settings.OIDC_ORGANIZATION = "Ministry"
    Organization.objects.create(name="Ministry")
    client = Client()
    provider.sign_in(client)
    user = who(client)
    assert (user.email, user.name, user.role.name, user.organization.name) == (
        *("new@example.org", "New Person"),
        *("developers", "Ministry"),
    )
    assert not user.has_usable_password()
    assert LogEntry.objects.get_for_object(user).get(action=LogEntry.Action.CREATE).changes["sub"][1] == "subject-1"
    page = client.get("/playground/password").text
    assert "without a password" in page
    form = {"new_password1": "correct horse 2", "new_password2": "correct horse 2"}
    assert client.post("/playground/password", form).status_code == 403
    assert not User.objects.get().has_usable_password()


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"OIDC_ROLE": ""}, 403, "You have no account"),
        ({"OIDC_ROLE": "no such role"}, 503, "not set up correctly"),
        ({"OIDC_ROLE": "admin"}, 503, "not set up correctly"),
        ({"OIDC_ORGANIZATION": "nowhere"}, 503, "not set up correctly"),
        ({"OIDC_GROUP_ROLES": {"staff": "nothing"}}, 503, "not set up correctly"),
        ({"OIDC_EMAIL_DOMAINS": ["example.com"]}, 403, "may sign in here"),
    ],
    ids=str,
)
def test_nobody_is_made_by_mistake(provider, settings, admin, changes, status, words):
    for name, value in changes.items():
        setattr(settings, name, value)
    client = Client()
    provider.claims |= {"groups": ["staff"]}
    assert refused(provider.sign_in(client), status, words, client)
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("groups", "given"),
    [(["x", "staff"], "staff"), ("root", "admin"), (["root", "staff"], "staff"), ([], "developers"), (7, "developers")],
)
def test_groups_choose_the_role_of_a_new_person(provider, settings, admin, groups, given):
    Role.objects.create(name="staff")
    settings.OIDC_GROUP_ROLES = {"staff": "staff", "root": "admin"}
    settings.OIDC_EMAIL_DOMAINS = ["EXAMPLE.org"]
    client = Client()
    provider.claims |= {"groups": groups}
    provider.sign_in(client)
    assert who(client).role.name == given


@pytest.mark.parametrize("is_signed", [False, True])
def test_what_the_id_token_lacks_is_asked_of_the_provider(provider, settings, is_signed):
    """As ProConnect has it: a signed answer, and nothing about whether the e-mail is verified."""
    provider.claims = {"email_verified": True}
    provider.userinfo = {"sub": "subject-1", "email": "new@example.org", "given_name": "New", "usual_name": "Person"}
    if is_signed:
        signed = provider.signed({**provider.userinfo, "iss": provider.url, "aud": CLIENT})
        provider.upstream.route("/userinfo", lambda request: Reply([signed.encode()], content_type="application/jwt"))
    client = Client()
    assert refused(provider.sign_in(client), 403, "has not verified", client)
    settings.OIDC_TRUST_EMAIL = True
    provider.sign_in(client)
    assert (who(client).email, who(client).name) == ("new@example.org", "New Person")
    provider.userinfo["sub"] = "subject-2"
    provider.upstream.route("/userinfo", lambda request: provider.userinfo)
    assert provider.sign_in(client).status_code == 400


def test_of_many_first_sign_ins_at_a_time_one_makes_the_account(provider):
    new = Identity("https://id.example.org", "s", "new@example.org", is_verified=True, name=None, groups=())
    start = threading.Barrier(8)

    def come(_):
        try:
            start.wait(10)
            return single_sign_on.user_of(new).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(come, range(8)))
    assert {User.objects.get().pk} == found


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
    assert identity_provider.may_name("https://id.example.org", "https://keys.example.org/jwks")
    assert identity_provider.may_name("http://127.0.0.1:8080", "http://127.0.0.1:8080/jwks")
    for url in ("http://127.0.0.1:6379/", "http://localhost/", "http://keys.example.org/", "file:///etc/passwd", ""):
        assert not identity_provider.may_name("https://id.example.org", url)
