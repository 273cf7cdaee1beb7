"""A world for the management API: one row of each kind, made through the API itself."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from accounts.models import User
from tests.conftest import PASSWORD
from tests.server import Server
from tests.upstream import Upstream

MODEL = "upstream-name"


def model_list(**more: Any) -> dict[str, Any]:
    """What an upstream answers to `GET /v1/models`."""
    return {"object": "list", "data": [{"id": "another"}, {"id": MODEL, "object": "model"} | more]}


@pytest.fixture
def as_admin(gateway: Server, admin: User, key_of: Callable[..., str]) -> Iterator[httpx.Client]:
    with gateway.client(key_of(admin)) as client:
        yield client


@dataclass
class World:
    """Ids by kind of row, and how to call."""

    client: httpx.Client
    upstream: Upstream
    admin: User
    ids: dict[str, int] = field(default_factory=dict)

    def make(self, kind: str, **fields: Any) -> int:
        """Create a row of the kind through the API; answers its id."""
        if kind == "provider":
            self.upstream.reply(model_list())
        path = "/v1/me/keys" if kind == "key" else f"/v1/admin/{kind}s"
        response = self.client.post(path, json=self.body(kind) | fields)
        assert response.status_code == 201, response.text
        id: int = response.json()["id"]
        self.ids.setdefault(kind, id)
        return id

    def body(self, kind: str) -> dict[str, Any]:
        """The least a row of the kind needs."""
        router, role, user = (self.ids.get(name, 0) for name in ("router", "role", "user"))
        bodies: dict[str, dict[str, Any]] = {
            "organization": {"name": "Ministry of Rows"},
            "router": {"name": "rows", "type": "text-generation"},
            "provider": {"router": router, "type": "vllm", "url": self.upstream.url, "model_name": MODEL},
            "role": {"name": "clerks"},
            "user": {"email": "clerk@example.org", "password": PASSWORD, "role": role},
            "token": {"name": "theirs", "user": user},
            "key": {"name": "mine"},
        }
        return bodies[kind]

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        response = self.client.get(path, params=query)
        assert response.status_code == status, response.text
        return response.json()

    def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        """Status and detail of a refusal."""
        response = self.client.request(method, path, json=body, params=query)
        assert response.status_code >= 400, response.text
        return response.status_code, response.json()["detail"]

    def done(self, method: str, path: str, body: Any = None) -> Any:
        """What a call answers that must not fail."""
        response = self.client.request(method, path, json=body)
        assert response.status_code < 300, response.text
        return response.json() if response.content else None


KINDS = ("organization", "router", "provider", "role", "user", "token", "key")


@pytest.fixture
def world(as_admin: httpx.Client, upstream: Upstream, admin: User) -> World:
    found = World(as_admin, upstream, admin)
    for kind in KINDS:
        found.make(kind)
    return found


@pytest.fixture
def tomorrow() -> int:
    return int(time.time()) + 86_400
