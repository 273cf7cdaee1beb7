"""Who calls, and by https or not, as the proxies before us say: those of OPENGATE_TRUSTED_PROXIES, under any server."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, ip_network
from typing import Any, cast

from django.conf import settings
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from opengate.bodies import Application


def behind_proxies(application: Application) -> Application:
    """The application, told by `X-Forwarded-For` and `X-Forwarded-Proto` where one of ours sends them."""
    if not settings.TRUSTED_PROXIES:
        return application
    trusted = list(_as_seen(settings.TRUSTED_PROXIES))
    return cast(Application, ProxyHeadersMiddleware(cast(Any, application), trusted))


def _as_seen(networks: Iterable[str]) -> Iterator[str]:
    """The networks, and those of IPv4 also as a socket of IPv6 sees them."""
    for named in networks:
        yield named
        network = ip_network(named)
        if isinstance(network, IPv4Network):
            yield f"::ffff:{network.network_address}/{96 + network.prefixlen}"
