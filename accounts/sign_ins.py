"""What is known of single sign-on without asking: whether it is set up, who tries, and who somebody is.

`accounts.identity_provider`, which asks, loads ten MiB, and few installations need it.
"""

import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings


@dataclass(frozen=True, slots=True)
class Attempt:
    """The secrets of one sign-in: they tie the answer to the browser that began it."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls) -> "Attempt":
        return cls(*(secrets.token_urlsafe(32) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class Identity:
    """A person as the provider knows them; `iss` and `sub` are for ever, all else may change."""

    iss: str
    sub: str
    email: str | None
    is_verified: bool  # the e-mail
    name: str | None
    groups: tuple[str, ...]


def is_configured() -> bool:
    return bool(settings.OIDC_ISSUER and settings.OIDC_CLIENT_ID) and is_secure(settings.OIDC_ISSUER)


def is_secure(url: str) -> bool:
    """Whether it is https, or on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)))


def may_name(issuer: str, url: str) -> bool:
    """Whether an issuer may send us there: one that is far away names no ports of this machine."""
    return is_secure(url) and (urlsplit(url).scheme == "https" or urlsplit(issuer).scheme == "http")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
