"""What a provider answers that lies, is away, or changes its keys."""

import hashlib
import hmac
from typing import Any

from django.test import Client
from joserfc import jwt

from accounts import identity_provider
from accounts.models import User
from tests.accounts.identity_provider import (
    CLIENT,
    LOGIN,
    new_key,
    refused,
    segment,
)
from tests.upstream import Reply


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
