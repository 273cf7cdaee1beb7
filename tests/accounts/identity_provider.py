"""Identity providers to sign in at: a real one in a process of its own, and one that says what a test wants."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from django.contrib.auth import SESSION_KEY
from django.test import Client
from joserfc import jwt
from joserfc.jwk import ECKey

from accounts.models import User
from tests.server import NO_CERTIFICATES, free_port
from tests.upstream import Received, Reply, Upstream

CLIENT, SECRET, CODE, ACCESS = "opengate", "client-secret-7Kq", "code-of-the-provider-3f", "access-token-91c"
LOGIN, CALLBACK = "/auth/oidc/login", "/auth/oidc/callback"


class RealProvider:
    """oidc-provider-mock: Authlib's own server, which knows our client, its secret and the one address to return to."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "oidc_provider_mock",
            "-p",
            str(port),
            "-r",
            "true",
            "-n",
            "true",
        ]
        environment = os.environ | {"AUTHLIB_INSECURE_TRANSPORT": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.browser = httpx.Client(timeout=10, verify=NO_CERTIFICATES)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self.browser.get(f"{self.url}/.well-known/openid-configuration").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise RuntimeError("The identity provider did not start.")

    def register(self, redirect_uri: str) -> tuple[str, str]:
        """The id and the secret of a new client."""
        body = {"redirect_uris": [redirect_uri], "token_endpoint_auth_method": "client_secret_basic"}
        made = self.browser.post(f"{self.url}/oauth2/clients", json=body).raise_for_status().json()
        return made["client_id"], made["client_secret"]

    def put(self, sub: str, **claims: Any) -> None:
        self.browser.put(f"{self.url}/users/{sub}", json=claims).raise_for_status()

    def stop(self) -> None:
        self.browser.close()
        self.process.terminate()
        self.process.wait(10)


class ScriptedProvider:
    """Answers as a provider does, but for the lies that a test tells it: `claims`, `sign`, routes of the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.url = upstream.url.rstrip("/")
        self.claims: dict[str, Any] = {"email": "new@example.org", "email_verified": True, "name": "New Person"}
        self.userinfo: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.sign = self.signed
        self.asked: dict[str, str] = {}
        self.key = new_key()
        self.speak()

    def speak(self) -> None:
        """Answer at every path."""
        self.upstream.route("/.well-known/openid-configuration", lambda request: self._described())
        self.upstream.route("/keys", lambda request: {"keys": [self.key.as_dict(private=False)]})
        self.upstream.route("/token", self._tokens)
        self.upstream.route("/userinfo", lambda request: self.userinfo)

    def signed(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode({"alg": "ES256", "kid": self.key.kid, **header}, claims, self.key)

    def _described(self) -> dict[str, Any]:
        places = {
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "jwks_uri": "keys",
            "userinfo_endpoint": "userinfo",
            "end_session_endpoint": "end",
        }
        described: dict[str, Any] = {name: f"{self.url}/{place}" for name, place in places.items()}
        return described | {"issuer": self.url, **self.metadata}

    def _tokens(self, request: Received) -> Any:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        proof = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        right = (form["code"], form["redirect_uri"], proof)
        if right != (CODE, self.asked["redirect_uri"], self.asked["code_challenge"]):
            return Reply([b'{"error": "invalid_grant"}'], status=400)
        now = int(time.time())
        claims = {"iss": self.url, "sub": "subject-1", "aud": CLIENT, "iat": now, "exp": now + 60}
        claims |= {"nonce": self.asked["nonce"]} | self.claims
        told = {name: value for name, value in claims.items() if value is not None}
        return {"access_token": ACCESS, "token_type": "Bearer", "id_token": self.sign(told)}

    def sign_in(self, client: Client, wanted: str = "/playground", **answer: str) -> Any:
        """There and back with a browser; `answer` are other parameters of the way back."""
        there = client.get(LOGIN, {"next": wanted})
        if there.status_code != 302:
            return there
        self.asked = self.question(there)
        return client.get(CALLBACK, {"code": CODE, "state": self.asked["state"], **answer})

    def question(self, there: Any) -> dict[str, str]:
        """What the browser is sent to the provider with."""
        return {name: values[0] for name, values in parse_qs(urlsplit(there.headers["location"]).query).items()}


def new_key(kid: str | None = None) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid or f"key-{time.monotonic_ns()}", "use": "sig"})


def segment(content: dict[str, Any] | bytes) -> str:
    """A part of a token."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def who(client: Client) -> Any:
    """The user who is signed in, or None."""
    return User.objects.filter(pk=client.session.get(SESSION_KEY)).first()


def refused(response: Any, status: int, words: str, client: Client) -> bool:
    """Whether it is a page with these words, kept by nobody, and nobody is signed in."""
    assert (response.status_code, SESSION_KEY in client.session) == (status, False), response.text
    assert words in response.text
    assert "no-store" in response.headers["Cache-Control"]
    return True
