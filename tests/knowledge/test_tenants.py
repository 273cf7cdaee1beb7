"""Two tenants and a canary: nothing that one owns is shown to the other, by any route, in any way."""

import json
import re
from typing import Any

import pytest

from accounts.models import Organization, Permission, Role
from knowledge.models import Collection, Space
from opengate.asgi import CONSUMERS
from opengate.rows import RowView
from tests.conftest import CHAT, person
from tests.flows.test_routes import operations, routes
from tests.knowledge.conftest import METHODS, add_to, upload
from tests.upstream import completion
from usage.models import Limit

CANARY = "xylophagous"  # a word, and a name, that nobody else uses


@pytest.fixture
def mallory(embeddings, router, key_of, gateway):
    """A stranger who may use the same models, with a collection of her own."""
    role = Role.objects.create(name="others", permissions=[Permission.CREATE_PUBLIC_COLLECTION])
    for model in (embeddings, router):
        Limit.objects.open_router(role, model)
    user = person("mallory@example.org", role, organization=Organization.objects.create(name="others"))
    own = Collection.objects.create(name="own", owner=user, language="english", space=Space.objects.of(embeddings))
    with gateway.client(key_of(user)) as client:
        yield client, own


@pytest.fixture
def secret(add, collection):
    Collection.objects.filter(id=collection.pk).update(name=CANARY, description=CANARY)
    return add(f"The {CANARY} beetle.", f"{CANARY}.txt", metadata=json.dumps({CANARY: CANARY}))


def calls() -> set[tuple[str, str]]:
    """Method and path of everything under /v1."""
    found = {(method, path) for path, operation in operations() for method in operation.methods}
    found |= {(consumer.method, path) for path, consumer in CONSUMERS.items()}
    for path, view in routes():
        row_view: Any = getattr(view, "cls", object)
        if path.startswith("/v1/") and issubclass(row_view, RowView):
            found |= {(method.upper(), path) for method in row_view.http_method_names if hasattr(row_view, method)}
    return found


def test_no_route_shows_the_canary(mallory, secret, collection, upstream):
    as_mallory, _ = mallory
    upstream.route("/v1/chat/completions", lambda request: completion(json.dumps(request.json)))
    ids = {"collection_id": collection.pk, "document_id": secret.pk, "document": secret.pk}
    walked = sorted(calls())
    assert {("POST", "/v1/search"), ("DELETE", "/v1/collections/<str:collection_id>")} <= set(walked)
    for method, path in walked:
        address = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: str(ids.get(match[1], 0)), path)
        body: Any = CHAT | {"query": CANARY[:5], "tools": [{"type": "search"}], "name": "x", "input": "x"}
        body |= {"chunks": [{"content": "x"}], "documents": ["x"], "collection_ids": [collection.pk]}
        for sent in (body, body | {"collection_ids": []}):
            assert CANARY not in as_mallory.request(method, address, json=sent).text, (method, path)
    assert secret.chunks.count() == 1
    assert Collection.objects.get(id=collection.pk).name == CANARY


def test_no_search_finds_counts_or_ranks_by_it(mallory, secret, collection):
    as_mallory, own = mallory
    add_to(as_mallory, own, "A common beetle.\n\nAnother common beetle.", chunk_size="30")
    for method in METHODS:
        for fields in (
            {},
            {"document_ids": [secret.pk]},
            {"metadata_filters": {"key": CANARY, "type": "eq", "value": CANARY}},
            {"limit": 100, "offset": 0},
        ):
            response = as_mallory.post("/v1/search", json={"query": f"{CANARY} beetle", "method": method} | fields)
            assert response.status_code == 200
            assert CANARY not in response.text
            is_own = not {"document_ids", "metadata_filters"}.intersection(fields)
            assert {row["chunk"]["collection_id"] for row in response.json()["data"]} == ({own.pk} if is_own else set())


def test_scores_do_not_tell_what_others_have(mallory, collection, as_ada, secret):
    as_mallory, own = mallory
    add_to(as_mallory, own, "A common beetle.\n\nA common moth.", chunk_size="20")

    def scores() -> list[Any]:
        found = [as_mallory.post("/v1/search", json={"query": "common beetles", "method": m}) for m in METHODS]
        return [[row["score"] for row in response.json()["data"]] for response in found]

    before = scores()
    for number in range(5):
        add_to(as_ada, collection, f"Beetle and beetle and common, {number}.")
    assert scores() == before


def test_a_misspelt_word_is_not_corrected_by_what_others_have(mallory, secret):
    as_mallory, own = mallory
    add_to(as_mallory, own, "Something else.")
    response = as_mallory.post("/v1/search", json={"query": "xylophagus", "method": "lexical"})
    assert response.json()["data"] == []


def test_words_of_others_do_not_stand_before_ones_own(mallory, collection, as_ada):
    as_mallory, own = mallory
    add_to(as_ada, collection, "Zebrinx, zebriny and zebrinz.")
    add_to(as_mallory, own, "The zebranu.")
    response = as_mallory.post("/v1/search", json={"query": "zebrino", "method": "lexical"})
    assert [row["chunk"]["content"] for row in response.json()["data"]] == ["The zebranu."]


def test_a_misspelt_word_is_corrected_though_others_write_it_so(mallory, secret):
    as_mallory, own = mallory
    add_to(as_mallory, own, "The xylophagus beetle.")
    response = as_mallory.post("/v1/search", json={"query": CANARY, "method": "lexical"})
    assert [row["chunk"]["collection_id"] for row in response.json()["data"]] == [own.pk]


def test_refusals_are_the_same_for_what_is_hidden_and_what_is_not_there(mallory, secret, collection):
    as_mallory, _ = mallory
    for path in ("/v1/collections/{}", "/v1/documents/{}", "/v1/documents/{}/chunks", "/v1/chunks/{}"):
        id = collection.pk if "collections" in path else secret.pk
        hidden, missing = as_mallory.get(path.format(id)), as_mallory.get(path.format(10**12))
        assert (hidden.status_code, hidden.json()) == (missing.status_code, missing.json())
    for id in (collection.pk, 10**12):
        for answer in (upload(as_mallory, id, "x"), as_mallory.delete(f"/v1/collections/{id}")):
            assert (answer.status_code, answer.json()["detail"]) == (404, "Collection not found.")
        search = as_mallory.post("/v1/search", json={"query": "x", "collection_ids": [id]})
        assert (search.status_code, search.json()["detail"]) == (404, f"Collection {id} not found.")


def test_what_was_public_is_hidden_at_once(mallory, secret, collection, as_ada):
    as_mallory, _ = mallory
    Collection.objects.filter(id=collection.pk).update(visibility="public")
    for method in METHODS:
        assert CANARY in as_mallory.post("/v1/search", json={"query": CANARY, "method": method}).text
    assert as_ada.patch(f"/v1/collections/{collection.pk}", json={"visibility": "private"}).status_code == 204
    for method in METHODS:
        assert as_mallory.post("/v1/search", json={"query": CANARY, "method": method}).json()["data"] == []


def test_the_list_counts_only_what_one_may_read(mallory, secret):
    as_mallory, _ = mallory
    assert as_mallory.get("/v1/documents").json()["total"] == 0
    assert as_mallory.get("/v1/collections").json()["total"] == 1
    for query in ({"name": CANARY}, {"name": f"{CANARY}.txt"}, {"collection_id": secret.collection_id}):
        assert as_mallory.get("/v1/documents", params=query).json()["total"] == 0
