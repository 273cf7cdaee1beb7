"""A model that embeds, collections, and the way of a document without a worker."""

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from django.utils import timezone

from accounts.models import Role, User
from knowledge import ingestion
from knowledge.models import Collection, Document, Space
from routing.models import Provider, Router
from tests.upstream import Received, Upstream
from usage.models import Limit

DIMENSIONS = 64
METHODS = ("semantic", "lexical", "hybrid")
EMBEDDINGS = "/v1/embeddings"


def vector_of(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Texts with words in common are near each other."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % dimensions] += 1
    length = math.hypot(*vector)
    return [number / length for number in vector] if length else [1.0, *vector[1:]]


def embedding(request: Received, dimensions: int = DIMENSIONS) -> dict[str, Any]:
    given = request.json["input"]
    texts = [given] if isinstance(given, str) else given
    rows = [
        {"object": "embedding", "index": index, "embedding": vector_of(text, dimensions)}
        for index, text in enumerate(texts)
    ]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": "upstream-name", "data": rows, "usage": usage}


def embeddings_router(upstream: Upstream, *roles: Role, name: str = "embeddings", **fields: Any) -> Router:
    router = Router.objects.create(name=name, type="text-embeddings-inference", **fields)
    Provider.objects.create(router=router, type="openai", url=upstream.url, model_name=name, timeout=5)
    for role in roles:
        Limit.objects.open_router(role, router)
    return router


@pytest.fixture
def embeddings(role: Role, upstream: Upstream) -> Router:
    """`embeddings`, served by the scripted upstream, open without limits to ada and ben."""
    upstream.route(EMBEDDINGS, embedding)
    return embeddings_router(upstream, role)


@pytest.fixture
def collection(ada: User, embeddings: Router) -> Collection:
    """Ada's own, private."""
    space = Space.objects.of(embeddings)
    return Collection.objects.create(name="adas", owner=ada, space=space, language="english")


def ingest_all() -> None:
    """What a worker does: bring all documents that are due as far as they get."""
    for id in Document.objects.due(timezone.now()).order_by("id").values_list("id", flat=True):
        ingestion.ingest(id)


@pytest.fixture
def ingest() -> Callable[[], None]:
    return ingest_all


def upload(
    client: httpx.Client, collection: Collection | int, content: bytes | str, name: str = "notes.txt", **fields: Any
) -> httpx.Response:
    """Post a document without waiting for it."""
    raw = content if isinstance(content, bytes) else content.encode()
    id = collection if isinstance(collection, int) else collection.pk
    return client.post(
        "/v1/documents",
        data={"collection_id": str(id), **fields},
        files={"file": (name, raw, "application/octet-stream")},
        headers={"Prefer": "respond-async"},
    )


def add_to(
    client: httpx.Client, collection: Collection, content: bytes | str, name: str = "notes.txt", **fields: Any
) -> Document:
    """A document, brought as far as it gets."""
    response = upload(client, collection, content, name, **fields)
    assert response.status_code == 202, response.text
    ingest_all()
    return Document.objects.get(id=response.json()["id"])


@pytest.fixture
def add(as_ada: httpx.Client, collection: Collection) -> Callable[..., Document]:
    """A document of ada's: `add(content, name, **fields)`."""

    def added(content: bytes | str, name: str = "notes.txt", **fields: Any) -> Document:
        return add_to(as_ada, fields.pop("collection", collection), content, name, **fields)

    return added


@pytest.fixture
def came(as_ada: httpx.Client, collection: Collection) -> Callable[..., Document]:
    """A document of ada's that nobody has taken up yet: `came(content, name, **fields)`."""

    def uploaded(content: bytes | str, name: str = "notes.txt", **fields: Any) -> Document:
        response = upload(as_ada, collection, content, name, **fields)
        assert response.status_code == 202, response.text
        return Document.objects.get(id=response.json()["id"])

    return uploaded


def found(client: httpx.Client, query: str, **fields: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/search", json={"query": query, **fields})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["data"]
    return results
