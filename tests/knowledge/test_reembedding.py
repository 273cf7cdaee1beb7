"""A collection gets another model: searched all the while, in the former space until every chunk is in the next."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from accounts import principals
from accounts.models import Role, User
from inference.errors import UpstreamTrouble
from knowledge import editing, ingestion, reembedding, tasks, tidying
from knowledge.models import Chunk, Collection, Document, Embedding, Space
from opengate.loops import in_loop
from routing.models import Router
from tests.knowledge.conftest import DIMENSIONS, EMBEDDINGS, embedding, embeddings_router, found
from tests.knowledge.documents import (
    AWAY,
    EACH,
    PARAGRAPHS,
    TEXT,
    Killed,
    beside,
    die,
    interrupt,
    is_whole,
    time_passes,
)
from tests.upstream import Received, Upstream

LARGE = 96
SECONDS = 30


def by_model(request: Received) -> dict[str, Any]:
    return embedding(request, LARGE if request.json["model"] == "large" else DIMENSIONS)


@pytest.fixture
def large(embeddings: Router, role: Role, upstream: Upstream) -> Router:
    """`large`, whose vectors are longer than those of `embeddings`."""
    upstream.route(EMBEDDINGS, by_model)
    return embeddings_router(upstream, role, name="large")


@pytest.fixture
def change(as_ada: httpx.Client, collection: Collection, large: Router) -> Callable[..., None]:
    def changed(model: str = "large") -> None:
        response = as_ada.patch(f"/v1/collections/{collection.pk}", json={"model": model})
        assert response.status_code == 204, response.text

    return changed


def dimensions(collection: Collection) -> Counter[int]:
    """How many vectors of which length the collection has."""
    vectors = Embedding.objects.filter(collection=collection).values_list("embedding", flat=True)
    return Counter(len(vector) for vector in vectors)


def has_switched(collection: Collection, large: Router) -> bool:
    """Whether it is searched by the large model, with one of its vectors for each chunk."""
    collection.refresh_from_db()
    chunks = sorted(Chunk.objects.filter(collection=collection).values_list("id", flat=True))
    space = collection.space
    assert space is not None
    vectors = Embedding.objects.filter(collection=collection, space=space).values_list("chunk_id", flat=True)
    return (
        space.router == large
        and collection.next_space is None
        and sorted(vectors) == chunks
        and dimensions(collection)[LARGE] == len(chunks) == collection.chunks
    )


def models_asked(upstream: Upstream) -> list[str]:
    return [call.json["model"] for call in upstream.received if call.path == EMBEDDINGS]


def test_searches_answer_from_the_former_space_until_the_next_is_full(
    add, as_ada, collection, large, change, upstream, monkeypatch
):
    add(TEXT, **EACH)
    change()
    one = as_ada.get(f"/v1/collections/{collection.pk}").json()
    assert (one["model"], one["next_model"]) == ("embeddings", "large")
    searched: list[str] = []

    def search() -> None:
        upstream.received.clear()
        assert found(as_ada, PARAGRAPHS[5], limit=1)[0]["chunk"]["content"] == PARAGRAPHS[5]
        searched.extend(models_asked(upstream))

    search()
    with monkeypatch.context() as patch:
        interrupt(patch, reembedding, "embed", search, nth=3)
        assert reembedding.reembed(collection.pk)
    search()
    assert searched == ["embeddings", "embeddings", "large"]
    assert has_switched(collection, large)
    one = as_ada.get(f"/v1/collections/{collection.pk}").json()
    assert (one["model"], one["next_model"]) == ("large", None)


def test_who_fills_it_tells_how_far_it_is(add, collection, change):
    add(TEXT, **EACH)
    change()
    told: list[tuple[int, int]] = []
    assert reembedding.waiting(Collection.objects.all()) == [collection.pk]
    reembedding.reembed(collection.pk, lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70), (70, 70)]
    assert reembedding.waiting(Collection.objects.all()) == []


def test_an_empty_collection_is_there_at_once(collection, large, change):
    change()
    assert has_switched(collection, large)


def test_the_same_model_again_changes_nothing(add, collection, change, upstream):
    add(TEXT, **EACH)
    change("embeddings")
    upstream.received.clear()
    assert not reembedding.reembed(collection.pk)
    assert models_asked(upstream) == []


def test_one_model_that_is_no_longer_what_it_was_gets_another_space(add, as_ada, collection, embeddings, upstream):
    add(TEXT, **EACH)
    upstream.route(EMBEDDINGS, lambda request: embedding(request, LARGE))
    former = collection.space
    collection.refresh_from_db()
    assert reembedding.begin(collection, embeddings, fresh=True)
    assert reembedding.reembed(collection.pk)
    assert has_switched(collection, embeddings)
    assert collection.space != former == Space.objects.order_by("id").first()
    assert Space.objects.of(embeddings) == collection.space  # where new collections go
    assert found(as_ada, PARAGRAPHS[5], limit=1)[0]["chunk"]["content"] == PARAGRAPHS[5]


# what comes and goes meanwhile


def test_chunks_that_are_appended_meanwhile_are_in_the_next_space(add, as_ada, collection, large, change, monkeypatch):
    document = add(TEXT, **EACH)
    change()

    def append() -> None:
        body = {"chunks": [{"content": "The canteen opens at noon."}]}
        assert as_ada.post(f"/v1/documents/{document.pk}/chunks", json=body).status_code == 201

    interrupt(monkeypatch, reembedding, "embed", append, nth=3)
    assert reembedding.reembed(collection.pk)
    append()
    assert has_switched(collection, large)
    assert found(as_ada, "When does the canteen open?", limit=1)[0]["chunk"]["id"] in {70, 71}


def test_chunks_that_are_appended_as_it_switches_are_in_the_new_space(add, ada: User, collection, large, monkeypatch):
    add("The canteen opens at noon.")
    document = Document.objects.select_related("collection__space__router").get()

    async def append() -> list[int]:
        principal = await principals.of_user(ada.pk)
        return await editing.append(principal, document, [{"content": "The library closes."}])

    interrupt(monkeypatch, editing, "_append", lambda: beside(lambda: switch(collection, large)))
    assert in_loop(append()) == [1]
    assert has_switched(collection, large)
    assert dimensions(collection) == {DIMENSIONS: 1, LARGE: 2}


def test_documents_that_are_read_meanwhile_are_in_the_next_space(
    add, came, ingest, collection, large, change, monkeypatch
):
    add(TEXT, **EACH)
    change()
    document = came("The canteen opens at noon.")
    interrupt(monkeypatch, reembedding, "embed", lambda: beside(ingest), nth=3)
    assert reembedding.reembed(collection.pk)
    assert is_whole_in_both(document)
    assert has_switched(collection, large)


def is_whole_in_both(document: Document) -> bool:
    """Whether each of its chunks has a vector in the former space and in the next."""
    vectors = Embedding.objects.filter(chunk__document=document).values_list("embedding", flat=True)
    return sorted(len(vector) for vector in vectors) == [DIMENSIONS, LARGE]


def test_a_document_on_its_way_when_the_model_changes_arrives_in_the_next_space(
    add, came, ingest, collection, large, change, monkeypatch
):
    add("The canteen opens at noon.")
    document = came(TEXT, **EACH)
    with monkeypatch.context() as patch:
        interrupt(patch, ingestion, "_store_locked", lambda: beside(lambda: switch(collection, large)))
        ingest()
    time_passes()
    ingest()
    assert is_whole(document)
    assert has_switched(collection, large)
    assert dimensions(collection) == {DIMENSIONS: 1, LARGE: 71}


def switch(collection: Collection, router: Router) -> None:
    collection.refresh_from_db()
    reembedding.begin(collection, router)
    assert reembedding.reembed(collection.pk)


@pytest.mark.parametrize("path", ["documents/{document}/chunks/3", "documents/{document}"])
def test_what_is_deleted_meanwhile_stays_deleted(add, as_ada, collection, large, change, monkeypatch, path):
    document = add("\n\n".join(PARAGRAPHS[:20]), **EACH)  # all of them in one call
    add("The canteen opens at noon.")
    change()

    def delete() -> None:
        assert as_ada.delete("/v1/" + path.format(document=document.pk)).status_code == 204

    interrupt(monkeypatch, reembedding, "embed", delete)
    assert reembedding.reembed(collection.pk)
    assert has_switched(collection, large)


def test_the_last_chunk_may_go_meanwhile(add, as_ada, collection, large, change, monkeypatch):
    document = add(TEXT, **EACH)
    change()
    interrupt(monkeypatch, reembedding, "embed", lambda: as_ada.delete(f"/v1/documents/{document.pk}"))
    assert reembedding.reembed(collection.pk)
    assert has_switched(collection, large)


def test_the_collection_may_go_meanwhile(add, as_ada, collection, change, monkeypatch):
    add(TEXT, **EACH)
    change()
    interrupt(monkeypatch, reembedding, "embed", lambda: as_ada.delete(f"/v1/collections/{collection.pk}"))
    assert not reembedding.reembed(collection.pk)
    assert not Embedding.objects.exists()


def test_the_same_file_again_is_copied_with_the_vectors_that_are_searched(add, collection, large, change, upstream):
    add(TEXT, **EACH)
    change()
    assert reembedding.reembed(collection.pk)
    upstream.received.clear()
    assert is_whole(add(TEXT, **EACH))
    assert has_switched(collection, large)
    assert models_asked(upstream) == []


# broken off, overtaken, changed again


def test_who_fills_it_renews_the_lease_with_each_call(add, collection, change, monkeypatch):
    add(TEXT, **EACH)
    change()
    waiting: list[list[int]] = []

    def run_out() -> None:
        Collection.objects.update(lease_expires=timezone.now() - timedelta(seconds=1))

    def look() -> None:
        waiting.append(reembedding.waiting(Collection.objects.all()))

    interrupt(monkeypatch, reembedding, "embed", lambda: beside(run_out))
    interrupt(monkeypatch, reembedding, "embed", lambda: beside(look), nth=2)
    assert reembedding.reembed(collection.pk)
    assert waiting == [[]]


def test_a_collection_whose_model_is_away_rests_a_while(add, collection, change, upstream):
    add(TEXT, **EACH)
    change()
    upstream.route(EMBEDDINGS, AWAY, status=503)
    tasks.reembed_collection(collection.pk)
    assert reembedding.waiting(Collection.objects.all()) == []
    upstream.route(EMBEDDINGS, by_model)
    Collection.objects.update(lease_expires=timezone.now() - timedelta(seconds=1))
    assert reembedding.waiting(Collection.objects.all()) == [collection.pk]
    tasks.reembed_collection(collection.pk)
    collection.refresh_from_db()
    assert collection.next_space is None


def test_whoever_goes_on_embeds_only_what_is_missing(add, collection, large, change, upstream, monkeypatch):
    add(TEXT, **EACH)
    change()
    upstream.received.clear()
    with monkeypatch.context() as patch:
        interrupt(patch, reembedding, "embed", die, nth=3)
        with pytest.raises(Killed):
            reembedding.reembed(collection.pk)
    rows = Collection.objects.filter(id=collection.pk)
    rows.update(lease_expires=timezone.now() + timedelta(seconds=60))  # as the dead leave it
    assert not reembedding.reembed(collection.pk)
    rows.update(lease_expires=timezone.now() - timedelta(seconds=1))
    assert reembedding.reembed(collection.pk)
    assert has_switched(collection, large)
    assert [text for call in upstream.received for text in call.json["input"]] == PARAGRAPHS


def test_two_who_fill_it_do_no_harm(add, collection, large, change, monkeypatch):
    add(TEXT, **EACH)
    change()

    def overtake() -> None:
        Collection.objects.update(lease_expires=timezone.now() - timedelta(seconds=1))
        assert reembedding.reembed(collection.pk)

    interrupt(monkeypatch, reembedding, "embed", lambda: beside(overtake), nth=2)
    reembedding.reembed(collection.pk)
    assert has_switched(collection, large)
    assert dimensions(collection) == {DIMENSIONS: 70, LARGE: 70}


def test_a_model_that_is_away_leaves_everything_as_it_was(add, as_ada, collection, large, change, upstream):
    add(TEXT, **EACH)
    change()
    upstream.route(EMBEDDINGS, AWAY, status=503)
    with pytest.raises(UpstreamTrouble):
        reembedding.reembed(collection.pk)
    assert reembedding.waiting(Collection.objects.all()) == [collection.pk]
    upstream.route(EMBEDDINGS, by_model)
    assert found(as_ada, PARAGRAPHS[5], limit=1)[0]["chunk"]["content"] == PARAGRAPHS[5]
    assert reembedding.reembed(collection.pk)
    assert has_switched(collection, large)


def test_one_may_change_ones_mind_on_the_way(add, collection, large, change, monkeypatch):
    add(TEXT, **EACH)
    change()
    interrupt(monkeypatch, reembedding, "embed", lambda: change("embeddings"), nth=2)
    assert not reembedding.reembed(collection.pk)
    collection.refresh_from_db()
    assert (collection.space.router.name, collection.next_space) == ("embeddings", None)
    Collection.objects.update(switched=timezone.now() - 2 * tidying.SEARCHED_AT_LAST)
    tidying.delete_former_vectors()
    assert dimensions(collection) == {DIMENSIONS: 70}


def test_former_vectors_are_kept_as_long_as_a_search_may_need_them(add, collection, large, change, monkeypatch):
    monkeypatch.setattr(tidying, "ROWS_AT_A_TIME", 32)
    add(TEXT, **EACH)
    change()
    reembedding.reembed(collection.pk)
    tidying.delete_former_vectors()
    assert dimensions(collection) == {DIMENSIONS: 70, LARGE: 70}
    Collection.objects.update(switched=timezone.now() - 2 * tidying.SEARCHED_AT_LAST)
    tidying.delete_former_vectors()
    assert dimensions(collection) == {LARGE: 70}
    collection.refresh_from_db()
    assert collection.previous_space is None


def test_who_goes_back_finds_the_former_vectors_still_there(add, collection, change, upstream):
    add(TEXT, **EACH)
    change()
    assert reembedding.reembed(collection.pk)
    change("embeddings")
    Collection.objects.update(switched=timezone.now() - 2 * tidying.SEARCHED_AT_LAST)
    tidying.delete_former_vectors()
    upstream.received.clear()
    assert reembedding.reembed(collection.pk)
    assert models_asked(upstream) == []


def test_there_and_back_again_loses_nothing(add, as_ada, collection, change):
    add(TEXT, **EACH)
    for model in ("large", "embeddings", "large"):
        change(model)
        assert reembedding.reembed(collection.pk)
        assert found(as_ada, PARAGRAPHS[5], limit=1)[0]["chunk"]["content"] == PARAGRAPHS[5]
    assert dimensions(collection) == {DIMENSIONS: 70, LARGE: 70}


# under load


def test_nobody_who_searches_notices(add, gateway, ada, key_of, collection, large, change, upstream):
    add(TEXT, **EACH)
    key, ended = key_of(ada), threading.Event()
    answers: list[tuple[int, str]] = []

    def search(method: str) -> None:
        with gateway.client(key) as client:
            while not ended.is_set():
                query = {"query": PARAGRAPHS[5], "method": method, "collection_ids": [collection.pk], "limit": 1}
                answer = client.post("/v1/search", json=query)
                first = answer.json()["data"][:1] if answer.status_code == 200 else answer.text
                answers.append((answer.status_code, first[0]["chunk"]["content"] if first else "nothing"))

    threads = [threading.Thread(target=search, args=(method,)) for method in ("semantic", "hybrid") * 2]
    for thread in threads:
        thread.start()
    try:
        for model in ("large", "embeddings", "large", "embeddings", "large"):
            before, deadline = len(answers), time.monotonic() + SECONDS
            change(model)
            assert reembedding.reembed(collection.pk)
            while len(answers) < before + 20:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    print(f"\n{len(answers)} searches while the model changed five times")
    assert set(answers) == {(200, PARAGRAPHS[5])}
    assert has_switched(collection, large)
