"""Where providers may be: what is refused when an address is given, and what when it is connected to."""

import asyncio
import socket
from ipaddress import ip_address
from threading import Event
from typing import Any

import pytest

from inference.errors import AddressNotAllowed, UpstreamFailed
from inference.upstream import http
from inference.upstream.names import Names
from opengate import egress
from opengate.loops import in_loop
from routing.models import Provider
from routing.snapshot import provider_of

NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1%eth0",
    "ff02::1",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]
LOOPBACK, PRIVATE = ["127.0.0.1", "::1", "::ffff:127.0.0.1"], ["10.1.2.3", "192.168.0.1", "100.64.0.1", "fd12::1"]
PUBLIC = ["93.184.215.14", "2606:4700::1111", "64:ff9b::5db8:d70e"]


def allowed(addresses: list[str]) -> list[str]:
    return [address for address in addresses if egress.refusal(ip_address(address)) is None]


@pytest.mark.parametrize(
    ("networks", "open_ones"),
    [
        (["loopback", "private"], [*LOOPBACK, *PRIVATE, *PUBLIC]),
        (["private"], [*PRIVATE, *PUBLIC]),
        (["none"], PUBLIC),
        (["10.1.0.0/16"], ["10.1.2.3", *PUBLIC]),
        (["only", "10.1.0.0/16"], ["10.1.2.3"]),
        (["only"], []),
        (["0.0.0.0/0", "::/0"], [*LOOPBACK, *PRIVATE, *PUBLIC]),
        (["lopback", "10.1.0.0/99"], PUBLIC),
    ],
    ids=",".join,
)
def test_the_setting_says_where_providers_may_be_and_never_opens_what_none_may(settings, networks, open_ones):
    settings.PROVIDER_NETWORKS = networks
    assert allowed([*LOOPBACK, *PRIVATE, *PUBLIC, *NEVER]) == open_ones


def asked(url: str) -> str:
    """What comes of a call to a provider at the address."""

    async def ask() -> str:
        try:
            await http.get(provider_of(Provider(type="openai", url=url, timeout=2, model_name="m")), "v1/models")
        except UpstreamFailed as error:
            return type(error).__name__
        return "answered"

    return in_loop(ask())


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "0xa9fea9fe"],
)
def test_no_connection_is_made_to_metadata_however_its_address_is_written(redis_client, host):
    assert asked(f"http://{host}/") == AddressNotAllowed.__name__


def test_a_name_counts_as_what_it_resolves_to_when_it_is_connected_to(redis_client, settings, upstream):
    upstream.route("/v1/models", {"data": []})
    by_name = f"http://localhost:{upstream.port}/"
    assert asked(by_name) == "answered"
    settings.PROVIDER_NETWORKS = ["private"]
    assert (asked(by_name), asked(upstream.url)) == (AddressNotAllowed.__name__,) * 2
    assert len(upstream.received) == 1


def test_with_https_only_nothing_goes_out_by_http(redis_client, settings, upstream):
    settings.PROVIDER_SCHEMES = ("https://",)
    assert asked(upstream.url) == AddressNotAllowed.__name__
    assert upstream.received == []


def test_neither_a_redirect_nor_a_proxy_of_the_environment_is_followed(redis_client, upstream, monkeypatch):
    upstream.reply(b"", status=302, headers={"Location": "/v1/elsewhere"})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert asked(upstream.url) == "UpstreamFailed"
    assert [request.path for request in upstream.received] == ["/v1/models"]


def test_the_api_refuses_an_address_where_no_provider_may_be(gateway, admin, key_of, router, upstream):
    with gateway.client(key_of(admin)) as client:
        for url in (
            "http://169.254.169.254/latest/",
            "http://[fd00:ec2::254]/",
            "http://metadata.google.internal/",
            "http://2852039166/",
            "http://ada:secret@vllm:8000/",
            "gopher://vllm:8000/",
        ):
            body = {"router": router.id, "type": "vllm", "url": url, "model_name": "m"}
            response = client.post("/v1/admin/providers", json=body)
            assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "url"]), url
    assert upstream.received == []


def test_a_stored_address_where_no_provider_may_be_is_not_called(as_ada, router, chat):
    provider = router.providers.get()
    provider.url = "http://169.254.169.254/"
    provider.save()
    response = chat(as_ada)
    assert response.status_code == 503
    assert response.json()["detail"] == "The model's address is not one that providers may have."


def test_a_name_whose_dns_is_silent_holds_up_no_other(redis_client, monkeypatch):
    silent, look_up = Event(), socket.getaddrinfo

    def slow(host: str, *args: Any, **how: Any) -> Any:
        if host.startswith("silent"):
            silent.wait(30)
        return look_up("127.0.0.1", *args, **how)

    async def answers() -> int:
        names = Names()
        waiting = [asyncio.create_task(names.resolve(f"silent{number}.example", 80)) for number in range(20)]
        found = await asyncio.wait_for(names.resolve("other.example", 80), 5)
        silent.set()
        await asyncio.gather(*waiting)
        return len(found)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    assert asyncio.run(answers())
