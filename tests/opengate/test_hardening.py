"""What holds for every answer: hosts that are ours, and what headers say to browsers."""

import re
import socket
from typing import Any

import pytest

from opengate.asgi import CONSUMERS
from opengate.loops import in_loop
from opengate.protection import PROBED, protected
from tests.conftest import CHAT, PASSWORD
from tests.flows.test_routes import routes
from tests.server import SERVER_NAME

SAID = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
STATIC = {"/static/admin/css/base.css", "/static/admin/img/calendar-icons.svg"}


def paths() -> list[str]:
    """Every path there is, with a number for each parameter, and some that are not there."""
    found = {re.sub(r"<[^>]+>", "1", path) for path, _ in routes()} | set(CONSUMERS)
    found = {path for path in found if not re.search(r"[\\^$()]", path)}
    assert len(found) > 100
    return sorted(found | STATIC | {"/static/nowhere.css", "/nowhere", "/v1/nowhere", "/admin/%00"})


def test_every_answer_says_what_browsers_may_not_do(gateway):
    with gateway.client() as client:
        for path in paths():
            answer = client.get(path)
            said = answer.headers
            assert {name: said.get(name) for name in SAID} == SAID, path
            assert "frame-ancestors 'none'" in said["content-security-policy"], path
            assert ("no-store" in said["cache-control"]) is (path not in STATIC), path
            assert ("camera=()" in said.get("permissions-policy", "")) is said["content-type"].startswith("text/html")
            assert said.get("server") == SERVER_NAME, path
            assert len(said.get_list("x-frame-options")) == len(said.get_list("cache-control")) == 1, path


def test_pages_and_secrets_of_people_who_are_signed_in_are_kept_nowhere(gateway, router, ada, key_of, admin, chat):
    with gateway.client(key_of(ada)) as client:
        login = client.post("/v1/auth/login", json={"email": ada.email, "password": PASSWORD})
        made = client.post("/v1/me/keys", json={"name": "mine"})
        answers = [login, made, chat(client), chat(client, model="nowhere")]
        stream = chat(client, stream=True)
    with gateway.client() as client:
        client.get("/admin/login/")
        form = {"csrfmiddlewaretoken": client.cookies["csrftoken"], "username": admin.email, "password": PASSWORD}
        client.post("/admin/login/", data=form)
        answers += [
            client.get(path) for path in ("/admin/", "/admin/accounts/user/", "/playground", "/playground/keys")
        ]
    assert [answer.status_code for answer in answers] == [200, 201, 200, 404, 200, 200, 200, 200]
    assert all("no-store" in answer.headers["cache-control"] for answer in answers)
    assert {name: stream.headers.get(name) for name in SAID} == SAID


def test_every_path_is_closed_to_other_hosts_but_those_that_probes_ask(gateway):
    with gateway.client() as client:
        refused = {path: client.get(path, headers={"Host": "evil.example"}) for path in paths()}
    assert {path for path, answer in refused.items() if answer.status_code != 400} == PROBED
    for path in refused.keys() - PROBED:
        assert refused[path].json()["detail"] == "Invalid Host header."
        assert refused[path].headers["x-content-type-options"] == "nosniff"
    assert refused["/health/ready"].json()["status"] == "ok"


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["127.0.0.1:1"], 200),
        (["LOCALHOST."], 200),
        (["[::1]:80"], 200),
        ([], 400),
        ([""], 400),
        (["localhost", "localhost"], 400),
        (["localhost", "evil.example"], 400),
        (["localhost, evil.example"], 400),
        (["evil.example#localhost"], 400),
        (["localhost@evil.example"], 400),
        (["localhost:80:80"], 400),
        (["localhost/"], 400),
        (["x" * 5000], 400),
    ],
)
def test_one_host_of_ours_and_nothing_else_opens_a_call(gateway, router, ada, key_of, upstream, hosts, status):
    head = ["POST /v1/chat/completions HTTP/1.1", f"Authorization: Bearer {key_of(ada)}", "Connection: close"]
    head += [*(f"Host: {host}" for host in hosts), "X-Forwarded-Host: localhost"]
    body = str(CHAT).replace("'", '"').encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
        connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body)
        assert connection.recv(65536).split(b" ")[1] == str(status).encode()
    assert len(upstream.received) == (status == 200)


def test_browsers_are_told_to_come_by_https_alone_where_people_do(settings):
    settings.SECURE_HSTS_SECONDS, settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = 3600, True
    sent: list[Any] = []

    async def empty(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def note(message):
        sent.append(message)

    async def nothing():
        return {}

    async def answer():
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"host", b"localhost")]}
        await protected(empty)(scope, nothing, note)

    in_loop(answer())
    assert (b"strict-transport-security", b"max-age=3600; includeSubDomains") in sent[0]["headers"]
