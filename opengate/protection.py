"""What holds for every answer, whoever gives it: only hosts of ours are answered, and headers say what browsers may do.

It stands before everything else, the calls that pass Django by included, and asks for a dictionary and a few bytes.
"""

import logging
from collections.abc import Awaitable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from opengate import bodies
from opengate.bodies import Application, Receive, Send
from opengate.errors import APIError

logger = logging.getLogger(__name__)

Header = tuple[bytes, bytes]

# Whoever probes knows an address and no name. Nothing there makes a link of the host, and Django is told one of ours.
PROBED = frozenset({"/health", "/health/ready", "/metrics"})
LONGEST_HOST = 300
# Where an answer says nothing else. A browser shows, frames, guesses and keeps nothing of it.
EVERYWHERE: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
IN_DRAWINGS: Header = (  # SVG holds its own style
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
)
ON_PAGES: Header = (
    b"permissions-policy",
    b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
)


class ForeignHost(APIError):
    """The request is for a host that is none of ours."""

    status = 400

    def __init__(self) -> None:
        super().__init__("Invalid Host header.")


def protected(application: Application) -> Application:
    """The application behind both."""
    usual = (*EVERYWHERE, *_hsts())

    def behind(scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        def with_headers(message: Mapping[str, Any]) -> Any:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _completed(message.get("headers", ()), usual)}
            return send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if scope["path"] in PROBED:
            return application({**scope, "headers": _ours(scope["headers"])}, receive, with_headers)
        if len(hosts) == 1 and _is_ours(hosts[0]):
            return application(scope, receive, with_headers)
        return bodies.refuse(ForeignHost(), with_headers)

    return behind


def _completed(headers: Iterable[Header], usual: tuple[Header, ...]) -> list[Header]:
    """The headers and those of the usual ones that are not among them."""
    completed = list(headers)
    kind = b""
    for name, value in completed:
        if name.lower() == b"content-type":
            kind = value[:9]
    return [*completed, *_missing(tuple([name for name, _ in completed]), kind, usual)]


@lru_cache(maxsize=1024)
def _missing(names: tuple[bytes, ...], kind: bytes, usual: tuple[Header, ...]) -> tuple[Header, ...]:
    """Of the usual headers those without a name among these, for an answer whose type begins so."""
    said = {name.lower() for name in names}
    if kind == b"text/html":
        usual = (ON_PAGES, *usual)
    elif kind == b"image/svg":
        usual = (IN_DRAWINGS, *(header for header in usual if header[0] != IN_DRAWINGS[0]))
    return tuple(header for header in usual if header[0] not in said)


def _hsts() -> list[Header]:
    if not settings.SECURE_HSTS_SECONDS:
        return []
    subdomains = "; includeSubDomains" if settings.SECURE_HSTS_INCLUDE_SUBDOMAINS else ""
    return [(b"strict-transport-security", f"max-age={settings.SECURE_HSTS_SECONDS}{subdomains}".encode())]


@lru_cache(maxsize=1024)
def _is_ours(host: bytes) -> bool:
    """Whether ALLOWED_HOSTS has it, by Django's rules; those asked about last are remembered."""
    domain, _ = split_domain_port(host.decode("latin-1")) if len(host) <= LONGEST_HOST else ("", "")
    is_ours = bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)
    if not is_ours:
        logger.warning(
            "Refused a request for the host %r: OPENGATE_ALLOWED_HOSTS does not have it.", host[:100].decode("latin-1")
        )
    return is_ours


def _ours(headers: Iterable[Header]) -> list[Header]:
    """The headers with a host that Django answers."""
    named = next((host.lstrip(".") for host in settings.ALLOWED_HOSTS if host != "*"), "localhost")
    return [(b"host", named.encode()), *((name, value) for name, value in headers if name != b"host")]
