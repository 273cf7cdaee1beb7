"""Search by each method, with filters, paging and thresholds; what it refuses, and what it is recorded as."""

import threading
from typing import Any

import pytest

from accounts.models import Organization, Role
from knowledge.models import Collection, Document, Space
from routing.models import Provider, Router
from tests.conftest import person
from tests.knowledge.conftest import EMBEDDINGS, METHODS, embeddings_router, found
from tests.upstream import Reply


def contents(results: list[dict[str, Any]]) -> list[str]:
    return [result["chunk"]["content"] for result in results]


@pytest.fixture
def notes(add) -> Document:
    """Five chunks with metadata of their own."""
    document: Document = add("The canteen opens at noon.")
    return document


@pytest.fixture
def append(as_ada, notes):
    def appended(*chunks: dict[str, Any]) -> None:
        response = as_ada.post(f"/v1/documents/{notes.pk}/chunks", json={"chunks": list(chunks)})
        assert response.status_code == 201, response.text

    return appended


def test_each_method_finds_a_document(as_ada, add):
    document = add("Leave is asked for in writing.\n\nThe canteen opens at noon.", chunk_size="40")
    for method in METHODS:
        first = found(as_ada, "When does the canteen open?", method=method)[0]
        assert first["method"] == method
        assert first["chunk"]["content"] == "The canteen opens at noon."
        assert first["chunk"]["document_id"] == document.pk


def test_scores_are_what_each_method_says(as_ada, notes, append):
    append({"content": "Nothing of the kind."})
    same = "The canteen opens at noon."
    semantic = found(as_ada, same)
    assert semantic[0]["score"] == pytest.approx(1, abs=0.001)
    assert all(0 <= result["score"] <= 1 for result in semantic)
    assert found(as_ada, "canteen", method="lexical")[0]["score"] > 0
    assert found(as_ada, same, method="hybrid")[0]["score"] == pytest.approx(2 / 61)
    assert found(as_ada, same, method="hybrid", rff_k=0)[0]["score"] == pytest.approx(2)


def test_pages_follow_each_other(as_ada, notes, append):
    append(*({"content": f"The canteen has dish number {number}."} for number in range(9)))
    for method in METHODS:
        whole = found(as_ada, "canteen dish", method=method, limit=10)
        pages = [found(as_ada, "canteen dish", method=method, limit=3, offset=offset) for offset in (0, 3, 6, 9)]
        assert contents([result for page in pages for result in page]) == contents(whole)
        assert found(as_ada, "canteen dish", method=method, offset=1000) == []


def test_a_threshold_equal_to_the_best_score_keeps_one(as_ada, notes, append):
    append({"content": "Another thing entirely."})
    best = found(as_ada, "canteen opens")[0]["score"]
    assert len(found(as_ada, "canteen opens", score_threshold=best)) == 1
    for method in ("lexical", "hybrid"):
        response = as_ada.post("/v1/search", json={"query": "x", "method": method, "score_threshold": 0.5})
        assert (response.status_code, response.json()["detail"]) == (
            *(400, "Score threshold is only available for semantic search method"),
        )


@pytest.mark.parametrize(
    ("filter", "names"),
    [
        ({"key": "kind", "type": "eq", "value": "a%b"}, "1"),
        ({"key": "kind", "type": "eq", "value": "%"}, ""),
        ({"key": "kind", "type": "sw", "value": "a"}, "123"),
        ({"key": "kind", "type": "sw", "value": "a_"}, "2"),
        ({"key": "kind", "type": "ew", "value": "b"}, "123"),
        ({"key": "kind", "type": "co", "value": "%"}, "1"),
        ({"key": "kind", "type": "co", "value": "\\"}, "3"),
        ({"key": "kind", "type": "co", "value": "A"}, ""),
        ({"key": "year", "type": "eq", "value": 2026}, "12"),
        ({"key": "year", "type": "eq", "value": "2026"}, "12"),
        ({"key": "year", "type": "sw", "value": 20}, "123"),
        ({"key": "open", "type": "eq", "value": True}, "1"),
        ({"key": "open", "type": "eq", "value": "true"}, "1"),
        ({"key": "share", "type": "eq", "value": 0.5}, "3"),
        ({"key": "nothing", "type": "eq", "value": "x"}, ""),
        ({"key": "' OR 1=1 --", "type": "co", "value": "' OR 1=1 --"}, ""),
        ({"key": "kin", "type": "eq", "value": "da%b"}, ""),
        ({"operator": "and", "filters": [{"key": "year", "type": "eq", "value": 2026}, {"key": "open", "type": "eq",
                                                                                      "value": False}]}, "2"),
        ({"operator": "or", "filters": [{"key": "share", "type": "eq", "value": 0.5}, {"key": "open", "type": "eq",
                                                                                     "value": True}]}, "13"),
    ],
    ids=str,
)  # fmt: skip
def test_filters_take_values_literally_and_as_text(as_ada, notes, append, filter, names):
    append(
        {"content": "canteen 1", "metadata": {"kind": "a%b", "year": 2026, "open": True}},
        {"content": "canteen 2", "metadata": {"kind": "a_b", "year": 2026, "open": False}},
        {"content": "canteen 3", "metadata": {"kind": "a\\b", "year": 2025, "share": 0.5}},
    )
    for method in METHODS:
        results = found(as_ada, "canteen", method=method, metadata_filters=filter)
        assert "".join(sorted(text[-1] for text in contents(results))) == names


def test_documents_and_collections_narrow_a_search(as_ada, add, collection, ada, embeddings):
    other = Collection.objects.create(name="b", owner=ada, space=collection.space, language="english")
    first, second = add("canteen one"), add("canteen two", collection=other)
    for method in METHODS:
        assert len(found(as_ada, "canteen", method=method)) == 2
        for fields, text in (
            ({"collection_ids": [other.pk]}, "canteen two"),
            ({"collections": [collection.pk]}, "canteen one"),
            ({"document_ids": [first.pk]}, "canteen one"),
            ({"collection_ids": [other.pk], "document_ids": [second.pk, 10**12]}, "canteen two"),
        ):
            assert contents(found(as_ada, "canteen", method=method, **fields)) == [text]
        assert found(as_ada, "canteen", method=method, collection_ids=[other.pk], document_ids=[first.pk]) == []


def test_a_collection_that_one_may_not_read_is_unknown(as_eve, as_ada, add, collection):
    add("canteen")
    for id in (collection.pk, 10**15):
        response = as_eve.post("/v1/search", json={"query": "canteen", "collection_ids": [id]})
        assert (response.status_code, response.json()["detail"]) == (404, f"Collection {id} not found.")


def test_who_can_read_nothing_finds_nothing(as_eve, as_ada, add):
    add("canteen")
    for method in METHODS:
        assert found(as_eve, "canteen", method=method) == []


@pytest.mark.parametrize(
    "body",
    [
        {"query": ""},
        {"query": "  "},
        {"query": 1},
        {"query": "x" * 100_001},
        {"prompt": ""},
        {"query": "x", "limit": 0},
        {"query": "x", "limit": 101},
        {"query": "x", "offset": -1},
        {"query": "x", "offset": 10**30},
        {"query": "x", "method": "magic"},
        {"query": "x", "rff_k": -1},
        {"query": "x", "rff_k": 16385},
        {"query": "x", "score_threshold": 1.1},
        {"query": "x", "collection_ids": [0]},
        {"query": "x", "collection_ids": ["1"]},
        {"query": "x", "collection_ids": [1] * 101},
        {"query": "x", "collection_ids": [2**63]},
        {"query": "x", "document_ids": [True]},
        {"query": "x", "metadata_filters": {"key": "", "type": "eq", "value": "x"}},
        {"query": "x", "metadata_filters": {"key": "k", "type": "eq", "value": ""}},
        {"query": "x", "metadata_filters": {"key": "k", "type": "like", "value": "x"}},
        {"query": "x", "metadata_filters": {"key": "k", "type": "eq", "value": None}},
        {"query": "x", "metadata_filters": {"key": "k", "type": "eq", "value": 10**16}},
        {"query": "x", "metadata_filters": {"key": "k\x00", "type": "eq", "value": "x"}},
        {"query": "x", "metadata_filters": {"operator": "and", "filters": []}},
        {"query": "x", "metadata_filters": {"operator": "and", "filters": [{"operator": "or", "filters": []}] * 2}},
    ],
    ids=lambda body: str(body)[:80],
)
def test_a_bad_search_is_a_422(as_ada, collection, body):
    response = as_ada.post("/v1/search", json=body)
    assert response.status_code == 422, response.text
    assert all(fault["loc"][0] == "body" for fault in response.json()["detail"])


def test_a_search_without_a_query_says_so(as_ada, collection):
    response = as_ada.post("/v1/search", json={})
    assert response.status_code == 422
    assert "query or prompt must be provided" in response.text


@pytest.mark.parametrize(
    "query",
    [
        "the of and",
        "& | ! ( ) <-> :* ''",
        "'; DROP TABLE knowledge_chunk; --",
        "canteen & !noon | (",
        "%%% ___ \\\\",
        "قاعة الطعام",
        "\u202ecanteen\u202c",
        "🥗🍽",
        "x" * 5000,
        " ".join(f"word{number}" for number in range(20_000))[:100_000],
        "a\x00b",
    ],
    ids=lambda text: text[:16].replace("\x00", "NUL"),
)
def test_odd_queries_are_only_words(as_ada, notes, query):
    for method in METHODS:
        response = as_ada.post("/v1/search", json={"query": query, "method": method})
        assert response.status_code in ((422,) if "\x00" in query else (200,)), response.text


def test_the_older_names_still_work(as_ada, notes, collection):
    response = as_ada.post("/v1/search", json={"prompt": "canteen", "collections": [collection.pk]})
    assert contents(response.json()["data"]) == ["The canteen opens at noon."]


def test_a_search_is_recorded_with_what_its_model_used(as_ada, notes, records):
    before = len(records(1))
    usage = as_ada.post("/v1/search", json={"query": "two words"}).json()["usage"]
    as_ada.post("/v1/search", json={"query": "two words", "method": "lexical"})
    semantic, lexical = records(before + 2)[before:]
    assert (semantic.endpoint, semantic.router_name, semantic.prompt_tokens) == ("/v1/search", "embeddings", 2)
    assert (usage["prompt_tokens"], usage["total_tokens"], usage["requests"]) == (2, 2, 1)
    assert (lexical.endpoint, lexical.prompt_tokens, lexical.total_tokens) == ("/v1/search", 0, 0)


def test_each_model_that_is_asked_is_recorded(as_ada, ada, add, role, upstream, embeddings, records):
    second = Space.objects.of(embeddings_router(upstream, role, name="second"))
    add("canteen two", collection=Collection.objects.create(name="b", owner=ada, space=second, language="english"))
    add("canteen one")
    before = len(records(2))
    usage = as_ada.post("/v1/search", json={"query": "two words"}).json()["usage"]
    rows = records(before + 2)[before:]
    assert sorted((row.endpoint, row.router_name, row.prompt_tokens) for row in rows) == [
        ("/v1/search", "embeddings", 2),
        ("/v1/search", "second", 2),
    ]
    assert (usage["prompt_tokens"], usage["requests"]) == (4, 2)


def test_of_a_long_query_a_model_reads_the_beginning(as_ada, notes, upstream):
    found(as_ada, "canteen " * 2000)
    assert [len(text) for text in upstream.received[-1].json["input"]] == [8192]


def test_a_model_that_is_away_stops_a_search_by_meaning_and_no_other(as_ada, notes, upstream):
    upstream.route(EMBEDDINGS, lambda request: Reply([b"{}"], status=503))
    assert as_ada.post("/v1/search", json={"query": "canteen"}).status_code == 503
    assert as_ada.post("/v1/search", json={"query": "canteen", "method": "hybrid"}).status_code == 503
    assert found(as_ada, "canteen", method="lexical")


def test_spaces_are_searched_apart_and_shown_together(as_ada, ada, add, role, upstream, embeddings):
    second = Space.objects.of(embeddings_router(upstream, role, name="second"))
    other = Collection.objects.create(name="b", owner=ada, space=second, language="english")
    add("canteen one")
    add("canteen two", collection=other)
    asked = len(upstream.received)
    assert sorted(contents(found(as_ada, "canteen"))) == ["canteen one", "canteen two"]
    assert {request.json["model"] for request in upstream.received[asked:]} == {"embeddings", "second"}


def test_a_model_closed_to_the_caller_takes_its_collections_out(gateway, key_of, add, collection, upstream, ada):
    add("canteen one")
    role = Role.objects.create(name="guests")
    guest = person("guest@example.org", role, organization=Organization.objects.create(name="guests"))
    open_space = Space.objects.of(embeddings_router(upstream, role, ada.role, name="open"))
    Collection.objects.update(visibility="public")
    other = Collection.objects.create(name="b", owner=ada, space=open_space, language="english", visibility="public")
    add("canteen two", collection=other)
    with gateway.client(key_of(guest)) as as_guest:
        assert contents(found(as_guest, "canteen")) == ["canteen two"]
        named = as_guest.post("/v1/search", json={"query": "canteen", "collection_ids": [collection.pk]})
        assert (named.status_code, named.json()["detail"]) == (404, "Model not found.")
        both = {"query": "canteen", "collection_ids": [other.pk, collection.pk]}
        assert as_guest.post("/v1/search", json=both).json()["detail"] == "Model not found."
        assert len(found(as_guest, "canteen", method="lexical")) == 2


def test_a_model_that_changed_its_size_is_noticed(as_ada, notes, upstream):
    upstream.route(EMBEDDINGS, {"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
    response = as_ada.post("/v1/search", json={"query": "canteen"})
    assert response.status_code == 500
    assert "vectors of 2 numbers" in response.json()["detail"]


def test_a_deleted_model_is_told(as_ada, notes):
    Provider.objects.all().delete()
    assert as_ada.post("/v1/search", json={"query": "canteen"}).json()["detail"] == "Model not found."
    Router.objects.filter(name="embeddings").delete()
    response = as_ada.post("/v1/search", json={"query": "canteen"})
    assert (response.status_code, response.json()["detail"]) == (
        *(404, "The model of the collection is gone: give it another."),
    )


def test_collections_may_go_while_they_are_searched(as_ada, ada, add, collection, embeddings):
    space = collection.space
    stop = threading.Event()
    answers: list[tuple[int, Any]] = []

    def search(method: str) -> None:
        while not stop.is_set():
            response = as_ada.post("/v1/search", json={"query": "canteen", "method": method})
            answers.append((response.status_code, response.text))

    threads = [threading.Thread(target=search, args=[method]) for method in METHODS]
    for thread in threads:
        thread.start()
    for number in range(4):
        passing = Collection.objects.create(name=str(number), owner=ada, space=space, language="french")
        add("canteen", collection=passing)
        assert as_ada.delete(f"/v1/collections/{passing.pk}").status_code == 204
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert any("canteen" in text for _, text in answers)
