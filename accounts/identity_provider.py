"""The identity provider (OpenID Connect): what it is asked, and whether what it answers is genuine.

Authorization code flow with PKCE. Authlib says what an id token must claim, joserfc checks signatures; requests are
ours, since each must end in time and within bounds.
"""

import json
import logging
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from authlib.oauth2.claims import ClaimsOption
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from django.conf import settings
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

from accounts.errors import Reason, SignInRefused
from accounts.sign_ins import Attempt, Identity, may_name

logger = logging.getLogger(__name__)

KNOWN_SECONDS = 600.0  # that its configuration and keys are remembered
AWAY_SECONDS = 5.0  # that nobody asks again after it did not describe itself: each who asks waits in a thread
MAX_BYTES = 1024 * 1024  # of an answer
MAX_TOKEN = 64 * 1024  # characters
LEEWAY_SECONDS = 60  # that clocks may differ
MAX_GROUPS = 1000

# Signatures by a private key alone: with `none` or a shared secret, whoever knows the public key could sign.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
KEY_TYPES = ("RSA", "EC", "OKP")

# What may be wrong with a token that somebody else made.
_FAULTS = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Metadata:
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    end_session_endpoint: str | None
    takes_secret_in_body: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    body: bytes

    @property
    def content(self) -> dict[str, Any]:
        """The JSON object; raises SignInRefused when it is none."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise away(f"answered {self.status} without a JSON object")
        return content


_metadata: dict[str, tuple[float, _Metadata]] = {}
_keys: dict[str, tuple[float, list[Key]]] = {}
_away: dict[str, float] = {}


def away(what: str) -> SignInRefused:
    """The provider cannot be asked, or its answers make no sense: `what` is for the log, and holds nothing secret."""
    logger.warning("The identity provider %s %s.", settings.OIDC_ISSUER, what)
    return SignInRefused(Reason.AWAY)


def not_genuine(what: str) -> SignInRefused:
    """Its answer does not hold, or is not for us."""
    logger.warning("An answer of the identity provider was refused: %s.", what)
    return SignInRefused(Reason.NOT_GENUINE)


def authorization_url(attempt: Attempt, redirect_uri: str) -> str:
    """Where the browser goes to sign in; raises SignInRefused."""
    asked = {
        "response_type": "code",
        "client_id": settings.OIDC_CLIENT_ID,
        "redirect_uri": redirect_uri,
        "scope": settings.OIDC_SCOPES,
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": create_s256_code_challenge(attempt.verifier),
        "code_challenge_method": "S256",
    }
    return _with(_known().authorization_endpoint, asked)


def end_session_url(id_token: str, return_to: str) -> str | None:
    """Where the browser goes to sign out there, too; None where that is not offered."""
    try:
        endpoint = _known().end_session_endpoint
    except SignInRefused:
        return None
    asked = {"client_id": settings.OIDC_CLIENT_ID, "post_logout_redirect_uri": return_to, "id_token_hint": id_token}
    return endpoint and _with(endpoint, asked)


def _with(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(parameters)}"


def identity(code: str, attempt: Attempt, redirect_uri: str, iss: str | None = None) -> tuple[Identity, str]:
    """Who signed in, and the id token that says so; `iss` is what the answer says of its sender, if it does.

    Raises SignInRefused when the provider is away, or the answer is not genuine, not for us, or not of this attempt.
    """
    metadata = _known()
    if iss is not None and iss != metadata.issuer:
        raise not_genuine("it names another issuer")
    tokens = _tokens(metadata, code, attempt, redirect_uri)
    id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
    if not isinstance(id_token, str):
        raise not_genuine("it has no id token")
    claims = _checked(id_token, metadata, attempt.nonce, access_token)
    return _identity(metadata.issuer, claims, _more(claims, metadata, access_token)), id_token


def _tokens(metadata: _Metadata, code: str, attempt: Attempt, redirect_uri: str) -> dict[str, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": attempt.verifier,
    }
    secret = settings.OIDC_CLIENT_SECRET
    basic = None
    if secret and not metadata.takes_secret_in_body:
        basic = httpx.BasicAuth(_form_encoded(settings.OIDC_CLIENT_ID), _form_encoded(secret))
    else:
        form |= {"client_id": settings.OIDC_CLIENT_ID} | ({"client_secret": secret} if secret else {})
    answer = _asked("POST", metadata.token_endpoint, data=form, auth=basic)
    if answer.status >= 500 or answer.status == 429:
        raise away(f"answered {answer.status} when asked for the tokens")
    content = answer.content
    if answer.status != 200:
        error = content.get("error")
        if error == "invalid_grant":  # the code was used before, or too late, or is no code
            raise not_genuine("the code is not good")
        named = error if isinstance(error, str) and re.fullmatch("[a-z_]{1,40}", error) else "no error that has a name"
        raise away(f"gave no tokens: status {answer.status}, {named}; look at the client's id and secret")
    return content


def _form_encoded(text: str) -> str:
    """As RFC 6749 (2.3.1) wants ids and secrets in a header."""
    return urlencode({"": text})[1:]


def _checked(id_token: str, metadata: _Metadata, nonce: str, access_token: Any) -> dict[str, Any]:
    """What the id token claims, if it is signed by the provider, for us, of this attempt, and not too old."""
    token = _verified(id_token, metadata)
    options: dict[str, ClaimsOption] = {
        "iss": {"essential": True, "value": metadata.issuer},
        "aud": {"essential": True, "value": settings.OIDC_CLIENT_ID},
    }
    params = {"nonce": nonce, "client_id": settings.OIDC_CLIENT_ID, "access_token": access_token}
    try:
        CodeIDToken(token.claims, token.header, options, params).validate(leeway=LEEWAY_SECONDS)
    except _FAULTS as error:
        raise not_genuine(_told(error)) from None
    return token.claims


def _told(error: BaseException) -> str:
    """The kind of fault, and the claim: nothing that the token holds."""
    claim = getattr(error, "claim", None)
    return f"{type(error).__name__}{f' of {claim}' if isinstance(claim, str) else ''}"


def _verified(text: str, metadata: _Metadata) -> jwt.Token:
    """The token, if one of the provider's keys signed it; a signature that none did has the keys read anew, once."""
    if len(text) > MAX_TOKEN:
        raise not_genuine("a token is too long")
    try:
        kid = jws.extract_compact(text.encode()).headers().get("kid")
    except _FAULTS as error:
        raise not_genuine(_told(error)) from None
    fault: BaseException | None = None
    for is_anew in (False, True):
        for key in _public_keys(metadata.jwks_uri, anew=is_anew):
            if kid is not None and key.kid != kid:
                continue
            try:
                return jwt.decode(text, key, algorithms=ALGORITHMS)
            except _FAULTS as error:
                fault = error
    raise not_genuine(_told(fault) if fault else "no key of its has the token's id")


def _public_keys(url: str, *, anew: bool) -> list[Key]:
    seen, keys = _keys.get(url, (float("-inf"), []))
    if not anew and time.monotonic() - seen < KNOWN_SECONDS:
        return keys
    answer = _asked("GET", url)
    found = answer.content.get("keys") if answer.status == 200 else None
    if not isinstance(found, list):
        raise away(f"answered {answer.status} without keys")
    keys = []
    for one in found:
        if isinstance(one, dict) and one.get("kty") in KEY_TYPES and one.get("use", "sig") == "sig":
            try:
                keys.append(JWKRegistry.import_key(one))
            except _FAULTS:
                continue  # of a kind that nobody here knows; others may do
    _keys[url] = (time.monotonic(), keys)
    return keys


def _more(claims: Mapping[str, Any], metadata: _Metadata, access_token: Any) -> dict[str, Any]:
    """What the provider tells beside the id token, if that lacks the e-mail. Some sign it (application/jwt)."""
    if "email" in claims or not metadata.userinfo_endpoint or not isinstance(access_token, str):
        return {}
    try:
        answer = _asked("GET", metadata.userinfo_endpoint, headers={"Authorization": f"Bearer {access_token}"})
    except UnicodeEncodeError:
        raise not_genuine("its access token is none") from None
    if answer.status != 200:
        raise away(f"answered {answer.status} when asked for the person")
    told: dict[str, Any]
    if answer.content_type == "application/jwt":
        told = _verified(answer.body.decode("latin-1"), metadata).claims
        if told.get("iss", metadata.issuer) != metadata.issuer:
            raise not_genuine("what it tells of the person is of another issuer")
    else:
        told = answer.content
    if told.get("sub") != claims["sub"]:
        raise not_genuine("it tells of another person")
    return told


def _identity(issuer: str, claims: Mapping[str, Any], more: Mapping[str, Any]) -> Identity:
    sub = claims["sub"]
    if not isinstance(sub, str) or not 0 < len(sub) <= 255 or not sub.isprintable():
        raise not_genuine("its subject is none")
    source = claims if "email" in claims else more  # an e-mail, and whether it is verified, of one hand
    email = source.get("email")
    verified = source.get("email_verified", settings.OIDC_TRUST_EMAIL)
    everything = {**more, **claims}
    return Identity(
        iss=issuer,
        sub=sub,
        email=email.strip() if isinstance(email, str) else None,
        is_verified=verified is True or verified == "true",
        name=_name(everything),
        groups=_groups(everything.get(settings.OIDC_GROUPS_CLAIM)),
    )


def _name(claims: Mapping[str, Any]) -> str | None:
    """Whole, or of its parts as ProConnect has them."""
    parts = [claims.get("name")]
    if not isinstance(parts[0], str):
        parts = [claims.get("given_name"), claims.get("family_name", claims.get("usual_name"))]
    words = " ".join(part for part in parts if isinstance(part, str))
    return "".join(letter for letter in words if letter.isprintable()).strip()[:255] or None


def _groups(found: Any) -> tuple[str, ...]:
    groups: Sequence[Any] = found if isinstance(found, list) else [found]
    return tuple(group for group in groups[:MAX_GROUPS] if isinstance(group, str))


def _known() -> _Metadata:
    """The provider's own description, remembered for a while; raises SignInRefused."""
    issuer = settings.OIDC_ISSUER
    now = time.monotonic()
    seen, metadata = _metadata.get(issuer, (float("-inf"), None))
    if metadata is None or now - seen >= KNOWN_SECONDS:
        if now - _away.get(issuer, float("-inf")) < AWAY_SECONDS:
            raise SignInRefused(Reason.AWAY)
        try:
            metadata = _described(issuer)
        except SignInRefused:
            _away[issuer] = time.monotonic()
            raise
        _metadata[issuer] = (time.monotonic(), metadata)
    return metadata


def _described(issuer: str) -> _Metadata:
    answer = _asked("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if answer.status != 200:
        raise away(f"answered {answer.status} when asked for its configuration")
    content = answer.content
    named = content.get("issuer")
    if not isinstance(named, str) or named.rstrip("/") != issuer.rstrip("/") or len(named) > 255:
        raise away("is not the issuer that OPENGATE_OIDC_ISSUER names")

    def endpoint(name: str) -> str | None:
        url = content.get(name)
        if url is not None and not (isinstance(url, str) and may_name(issuer, url)):
            raise away(f"has a {name} without https")
        return url

    def needed(name: str) -> str:
        url = endpoint(name)
        if url is None:
            raise away(f"has no {name}")
        return url

    methods = content.get("token_endpoint_auth_methods_supported")
    return _Metadata(
        issuer=named,
        authorization_endpoint=needed("authorization_endpoint"),
        token_endpoint=needed("token_endpoint"),
        jwks_uri=needed("jwks_uri"),
        userinfo_endpoint=endpoint("userinfo_endpoint"),
        end_session_endpoint=endpoint("end_session_endpoint"),
        takes_secret_in_body=isinstance(methods, list) and "client_secret_post" in methods,
    )


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: that takes 30 ms."""
    return httpx.create_ssl_context()


def _asked(method: str, url: str, **how: Any) -> _Answer:
    """One request, without redirects; raises SignInRefused when no whole answer comes in time, or it is too long."""
    seconds = settings.OIDC_TIMEOUT_SECONDS
    deadline = time.monotonic() + seconds
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", **how.pop("headers", {})}
    body = b""
    try:
        with (
            httpx.Client(timeout=seconds, verify=_certificates()) as client,
            client.stream(method, url, headers=headers, **how) as response,
        ):
            for part in response.iter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise away("sends too long an answer")
                if time.monotonic() > deadline:
                    raise away("is too slow")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return _Answer(response.status_code, kind, body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise away(f"cannot be asked ({type(error).__name__})") from None


def forget() -> None:
    """Read everything anew at the next sign-in."""
    _metadata.clear()
    _keys.clear()
    _away.clear()
