"""Where the gateway may call: the networks that providers may be in, asked at each new connection.

The address that is asked about is the one that is connected to, after names are resolved: a name that answers
differently each time (DNS rebinding) is no way around, and neither is an address written in another way.
"""

import logging
import socket
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from django.conf import settings

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What the words of OPENGATE_PROVIDER_NETWORKS stand for.
WORDS: dict[str, tuple[str, ...]] = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
    "none": (),
    "only": (),
}
# No model is there, whatever the setting says; nor at `::` and other IPv4 in a form long out of use, all but ::1.
NEVER: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this machine, by another name
            "169.254.0.0/16",  # link-local: the metadata of most clouds
            "100.100.100.200/32",  # metadata: Alibaba
            "168.63.129.16/32",  # metadata: Azure
            "192.0.0.192/32",  # metadata: Oracle
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "64:ff9b:1::/48",  # translated to IPv4 by rules that only its network knows
            "2001::/32",  # Teredo: tunnelled to any IPv4
            "fd00:ec2::/32",  # metadata: Amazon
            "fd20:ce::254/128",  # metadata: Google
            "fe80::/10",  # link-local
            "fec0::/10",
            "ff00::/8",  # multicast
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
METADATA_NAMES = frozenset(
    {"metadata", "metadata.goog", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)

NEVER_THERE = "Providers are never at link-local, metadata, multicast or reserved addresses."
NOT_LISTED = "OPENGATE_PROVIDER_NETWORKS does not list the network of this address."
ODD = "Write the address in its usual form."


class AddressRefused(OSError):
    """A connection that was not made. All say the same, so that whoever tries several addresses passes it on."""

    def __init__(self) -> None:
        super().__init__("Providers may not be at this address.")


@dataclass(frozen=True, slots=True)
class _Rules:
    networks: tuple[Network, ...]
    is_public_allowed: bool


@lru_cache(maxsize=8)
def _rules(words: tuple[str, ...]) -> _Rules:
    networks: list[Network] = []
    for word in words:
        try:
            networks += [ip_network(network) for network in WORDS.get(word) or ((word,) if word not in WORDS else ())]
        except ValueError:
            pass  # opens nothing; the system check says so
    return _Rules(tuple(networks), "only" not in words)


def faults_of(words: list[str]) -> list[str]:
    """What is wrong with a value of OPENGATE_PROVIDER_NETWORKS, a sentence each."""
    faults = []
    for word in words:
        if word in WORDS:
            continue
        try:
            network = ip_network(word)
        except ValueError:
            faults.append(f"{word} is neither a network like 10.2.0.0/16 nor one of {', '.join(WORDS)}.")
        else:
            if any(network.version == never.version and network.subnet_of(never) for never in NEVER):  # type: ignore[arg-type]
                faults.append(f"{word} is a network where providers never are.")
    return faults


def refusal(address: Address) -> str | None:
    """Why no provider may be at the address, or None where one may."""
    address = _reached(address)
    if any(address in network for network in NEVER) or (address.version == 6 and 1 != int(address) < 2**32):
        return NEVER_THERE
    rules = _rules(tuple(settings.PROVIDER_NETWORKS))
    if any(address in network for network in rules.networks) or (rules.is_public_allowed and address.is_global):
        return None
    return NOT_LISTED


def _reached(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is mapped, translated (NAT64) or tunnelled (6to4) to; else itself."""
    if isinstance(address, IPv4Address):
        return address
    translated = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
    return address.ipv4_mapped or address.sixtofour or translated or address


def refusal_of_host(host: str) -> str | None:
    """Why a URL with this host cannot be a provider's, as far as that shows without asking for the name."""
    name = host.lower().strip("[]").rstrip(".")
    try:
        return refusal(ip_address(name))
    except ValueError:
        pass
    if name in METADATA_NAMES:
        return NEVER_THERE
    if name == "localhost" or name.endswith(".localhost"):
        return refusal(IPv4Address("127.0.0.1"))
    try:
        socket.inet_aton(name)  # reads 2852039166, 0xa9fea9fe and 169.254.43518, too
    except (OSError, ValueError):
        return None
    return ODD


def open_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for one address out of `getaddrinfo`; raises AddressRefused. What an HTTP client calls to connect."""
    family, kind, protocol, _, where = info
    reason = refusal(ip_address(where[0]))
    if reason is not None:
        logger.warning("No connection to a provider at %s: %s", where[0], reason)
        raise AddressRefused
    return socket.socket(family, kind, protocol)
