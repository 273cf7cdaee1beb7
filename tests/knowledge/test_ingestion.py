"""The way of a document: every one ends, ready or with a sentence."""

import asyncio
import gc
import itertools
import json
import threading
from collections import Counter
from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.db import connection
from django.utils import timezone

from accounts.models import User
from knowledge import drafts, files, ingestion, tasks, tidying
from knowledge.models import (
    Chunk,
    Collection,
    DiscardedFile,
    Document,
    Lexemes,
    LostWords,
    Space,
    Status,
    Word,
)
from routing.models import Provider, Router
from tests.knowledge.conftest import DIMENSIONS, EMBEDDINGS, embedding, found
from tests.knowledge.documents import (
    AWAY,
    EACH,
    PARAGRAPHS,
    TEXT,
    Killed,
    asked,
    beside,
    contents,
    die,
    failure,
    interrupt,
    is_whole,
    nothing_is_left,
    time_passes,
)
from tests.upstream import Reply
from tests.usage.records import fund
from usage.models import Limit

# a model that is away, or answers nonsense


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_model_that_is_away_is_waited_for_and_the_owner_reads_why(add, ingest, upstream, status):
    upstream.route(EMBEDDINGS, AWAY, status=status)
    document = add(TEXT, **EACH)
    assert (document.status, document.error, document.tries) == (Status.EMBEDDING, "Overloaded.", 1)
    assert document.due > timezone.now()
    upstream.route(EMBEDDINGS, embedding)
    ingest()  # not due yet
    assert Document.objects.get().status == Status.EMBEDDING
    time_passes()
    ingest()
    assert is_whole(document)
    assert contents(document) == PARAGRAPHS


def test_a_model_that_is_too_slow_is_waited_for(add, ingest, upstream):
    Provider.objects.update(timeout=1)
    upstream.route(EMBEDDINGS, embedding, wait=3)
    document = add(TEXT, **EACH)
    assert (document.status, bool(document.error)) == (Status.EMBEDDING, True)
    upstream.route(EMBEDDINGS, embedding)
    time_passes()
    ingest()
    assert is_whole(document)


def test_a_slow_model_costs_nobody_the_lease(add, upstream, settings):
    settings.INGESTION_LEASE_SECONDS = 0.6
    upstream.route(EMBEDDINGS, embedding, wait=1)
    ended = threading.Event()
    due: list[Document] = []

    def look() -> None:
        while not ended.wait(0.05):
            due.extend(Document.objects.due(timezone.now()).filter(status=Status.EMBEDDING))

    thread = threading.Thread(target=lambda: beside(look))
    thread.start()
    document = add(TEXT, **EACH)
    ended.set()
    thread.join()
    assert is_whole(document)
    assert due == []


def test_a_model_that_stays_away_ends_it_with_the_reason(add, ingest, upstream, settings):
    settings.INGESTION_TRIES = 3
    upstream.route(EMBEDDINGS, AWAY, status=503)
    document = add(TEXT)
    for _ in range(2):
        time_passes()
        ingest()
    assert failure(document) == (Status.FAILED, 500, "Vectorization failed: Overloaded.")


def test_what_goes_on_between_two_outages_is_given_all_tries_again(came, ingest, upstream, settings):
    settings.INGESTION_TRIES = 2
    document = came(TEXT, **EACH)
    upstream.route(EMBEDDINGS, AWAY, status=503)
    ingest()
    calls = itertools.count()
    away = Reply([json.dumps(AWAY).encode()], status=503)
    upstream.route(EMBEDDINGS, lambda request: away if next(calls) else embedding(request))
    time_passes()
    ingest()
    document.refresh_from_db()
    assert (document.status, document.tries) == (Status.EMBEDDING, 1)
    upstream.route(EMBEDDINGS, embedding)
    time_passes()
    ingest()
    assert is_whole(document)


def test_a_model_that_stays_away_is_asked_every_few_minutes(add, upstream, settings):
    settings.INGESTION_TRIES = 100
    upstream.route(EMBEDDINGS, AWAY, status=503)
    document = add(TEXT)
    for tries, least, most in ((3, 7, 8), (60, 299, 300)):
        time_passes()
        Document.objects.update(tries=tries)
        ingestion.ingest(document.pk)
        document.refresh_from_db()
        assert (document.status, document.tries) == (Status.EMBEDDING, tries + 1)
        assert timedelta(seconds=least) < document.due - timezone.now() <= timedelta(seconds=most)


def test_a_model_that_is_away_is_no_death_of_a_worker(came, ingest, upstream):
    document = came(TEXT)
    Document.objects.update(deaths=ingestion.DEATHS - 1)
    upstream.route(EMBEDDINGS, AWAY, status=503)
    for _ in range(2):
        time_passes()
        ingest()
    document.refresh_from_db()
    assert (document.status, document.error) == (Status.EMBEDDING, "Overloaded.")


def test_a_call_for_vectors_has_at_most_16384_characters(add, upstream):
    document = add(" ".join(["canteen"] * 4000), chunk_size="6000")
    assert is_whole(document)
    calls = [[len(text) for text in call.json["input"]] for call in upstream.received if call.path == EMBEDDINGS]
    assert [len(texts) for texts in calls] == [2, 2, 2]
    assert max(sum(texts) for texts in calls) <= 16_384


def test_vectors_of_another_size_are_refused(add, upstream):
    add("First of all.")
    upstream.route(EMBEDDINGS, lambda request: embedding(request, DIMENSIONS // 2))
    sentence = "Vectorization failed: The model answers vectors of 32 numbers; those of the collection have 64."
    assert failure(add(TEXT)) == (Status.FAILED, 500, sentence)


def test_vectors_of_two_sizes_in_one_document_are_refused(add, upstream):
    sizes = iter([64, 32, 64])
    upstream.route(EMBEDDINGS, lambda request: embedding(request, next(sizes)))
    status, code, error = failure(add(TEXT, **EACH))
    assert (status, code) == (Status.FAILED, 500)
    assert error.startswith("Vectorization failed: The model answers vectors of ")
    assert Space.objects.get().dimensions is None


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        ([0.0] * DIMENSIONS, "Vectorization failed: The model answered a vector without a direction."),
        ([float("nan")] * DIMENSIONS, "Vectorization failed: Response formatting failed."),
    ],
)
def test_what_is_no_vector_is_refused(add, ingest, upstream, vector, sentence):
    row = {"object": "embedding", "index": 0, "embedding": vector}
    upstream.route(EMBEDDINGS, {"object": "list", "model": "m", "data": [row]})
    document = add("A text.")
    for _ in range(ingestion.UNREADABLE_ANSWERS - 1):
        time_passes()
        ingest()
    assert failure(document) == (Status.FAILED, 500, sentence)


def test_a_model_that_is_deleted_ends_it_with_the_reason(came, ingest):
    document = came(TEXT, **EACH)
    Router.objects.all().delete()
    ingest()
    sentence = "Vectorization failed: The model of the collection is gone: give it another."
    assert failure(document) == (Status.FAILED, 500, sentence)


# the owner's account


def test_an_owner_who_may_not_use_the_model_reads_so(came, ingest):
    document = came(TEXT, **EACH)
    Limit.objects.update(value=0)
    ingest()
    sentence = "Vectorization failed: Insufficient permissions to access the model."
    assert failure(document) == (Status.FAILED, 500, sentence)


def test_an_owner_whose_account_is_closed_pays_for_nothing(came, ingest, ada, upstream):
    document = came(TEXT, **EACH)
    User.objects.filter(id=ada.id).update(expires=timezone.now() - timedelta(seconds=1))
    ingest()
    assert failure(document) == (Status.FAILED, 422, "The account of the collection's owner is closed.")
    assert asked(upstream) == []


def test_an_account_that_closes_between_two_documents_pays_for_nothing_more(add, came, ingest, ada, upstream):
    assert is_whole(add("A first text."))
    document = came("A second text.")
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    ingest()
    assert failure(document) == (Status.FAILED, 422, "The account of the collection's owner is closed.")
    assert asked(upstream) == ["A first text."]


def test_an_owner_without_a_budget_reads_so(came, ingest, ada, embeddings):
    Router.objects.filter(id=embeddings.pk).update(cost_prompt_tokens=1_000_000)
    document = came(TEXT, **EACH)
    fund(ada, 1)
    ingest()
    assert failure(document) == (Status.FAILED, 500, "Vectorization failed: Insufficient budget.")


def test_the_owner_pays_for_each_call(add, ada, embeddings, records):
    add(TEXT, **EACH)
    found = records(3)
    assert {(record.user_id, record.endpoint, record.router_id) for record in found} == {
        (ada.pk, EMBEDDINGS, embeddings.pk)
    }
    assert sum(record.prompt_tokens for record in found) == len(TEXT.split())


# again, and away


def test_documents_that_nobody_took_up_are_queued_again_as_far_as_there_is_room(
    came, add, redis_client, settings, monkeypatch
):
    add("Ready.")
    waiting = [came(text).pk for text in ("One.", "Two.")]
    redis_client.delete(settings.DOCUMENTS_QUEUE)
    tasks.feed_ingestion()
    queued = [
        json.loads(message)["headers"]["argsrepr"] for message in redis_client.lrange(settings.DOCUMENTS_QUEUE, 0, -1)
    ]
    assert sorted(queued) == [f"({id},)" for id in waiting]
    monkeypatch.setattr(tasks, "QUEUED", 3)
    for _ in range(2):
        tasks.feed_ingestion()
    assert redis_client.llen(settings.DOCUMENTS_QUEUE) == 3


def test_a_document_that_failed_can_be_tried_again(add, ingest, upstream):
    upstream.route(EMBEDDINGS, AWAY, status=400)
    document = add(TEXT, **EACH)
    assert failure(document) == (Status.FAILED, 500, "Vectorization failed: Overloaded.")
    upstream.route(EMBEDDINGS, embedding)
    ingest()  # by itself it is not
    document.refresh_from_db()
    assert document.status == Status.FAILED
    Document.objects.filter(id=document.pk).retry()
    ingest()
    assert is_whole(document)
    assert document.failure is None


def test_the_file_of_a_deleted_document_is_deleted(add, as_ada):
    document = add("A text.")
    assert files.storage().exists(document.file)
    as_ada.delete(f"/v1/documents/{document.pk}")
    assert files.delete_discarded() == 1
    assert not files.storage().exists(document.file)
    assert nothing_is_left()


def test_the_file_of_an_upload_that_was_taken_back_is_deleted_some_day(as_ada, collection, monkeypatch):
    kept: list[str] = []

    def fails(file: str) -> None:
        kept.append(file)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.keep(ContentFile(b"A text."), "notes.txt", collection.pk, fails)
    assert files.delete_discarded() == 0  # an upload may still be under way
    assert files.storage().exists(kept[0])
    DiscardedFile.objects.update(due=timezone.now())
    assert files.delete_discarded() == 1
    assert not files.storage().exists(kept[0])


def test_a_file_that_cannot_be_deleted_keeps_no_other(collection, monkeypatch):
    names = [f"{collection.pk}/{letter}.txt" for letter in "ab"]
    for name in names:
        files.storage().save(name, ContentFile(b"x"))
        DiscardedFile.objects.create(file=name)
    whole = type(files.storage()).delete

    def delete(storage, name: str) -> None:
        if name == names[0]:
            raise PermissionError(name)
        whole(storage, name)

    with monkeypatch.context() as patch:
        patch.setattr(type(files.storage()), "delete", delete)
        assert files.delete_discarded() == 1
    assert [files.storage().exists(name) for name in names] == [True, False]
    DiscardedFile.objects.update(due=timezone.now())
    assert files.delete_discarded() == 1
    assert not files.storage().exists(names[0])


def test_a_file_that_is_gone_ends_it_in_a_sentence(came, ingest):
    document = came(TEXT, **EACH)
    files.storage().delete(document.file)
    ingest()
    assert failure(document) == (Status.FAILED, 422, "The file is gone.")


def test_words_of_deleted_chunks_are_forgotten(add, as_ada):
    add("The canteen opens at noon.")
    document = add("The library closes.")
    as_ada.delete(f"/v1/documents/{document.pk}")
    assert "librari" in set(Word.objects.values_list("word", flat=True))
    tidying.forget_words()
    words = set(Word.objects.values_list("word", flat=True))
    assert "librari" not in words
    assert "canteen" in words


def test_counters_follow_what_comes_and_goes(add, as_ada, collection):
    def counted() -> tuple[int, int]:
        collection.refresh_from_db()
        lengths = list(Lexemes.objects.filter(collection=collection).values_list("length", flat=True))
        assert (collection.chunks, collection.words) == (len(lengths), sum(lengths))
        return collection.chunks, collection.words

    add("The canteen opens at noon.")
    before = counted()
    document = add(TEXT, **EACH)
    assert counted()[0] == before[0] + len(PARAGRAPHS)
    as_ada.delete(f"/v1/documents/{document.pk}/chunks/3")
    assert counted()[0] == before[0] + len(PARAGRAPHS) - 1
    as_ada.delete(f"/v1/documents/{document.pk}")
    assert counted() == before


def test_a_word_that_another_collection_still_uses_is_kept_and_resembles_nothing_here(add, as_ada, ada, collection):
    other = Collection.objects.create(name="other", owner=ada, space=collection.space, language="english")
    add("The library closes.", collection=other)
    document = add("The library opens.")
    as_ada.delete(f"/v1/documents/{document.pk}")
    tidying.forget_words()
    assert set(Word.objects.values_list("language", "word")) == {("english", "librari"), ("english", "close")}
    for id, count in ((collection.pk, 0), (other.pk, 1)):
        assert len(found(as_ada, "libbrary", method="lexical", collection_ids=[id])) == count


def test_a_word_that_was_forgotten_is_learned_again(add, as_ada):
    for _ in range(2):
        document = add("The library closes.")
        assert len(found(as_ada, "libbrary", method="lexical")) == 1
        as_ada.delete(f"/v1/documents/{document.pk}")
        tidying.forget_words()
        assert not Word.objects.exists()


def test_words_of_a_document_under_way_are_kept_and_of_one_that_failed_forgotten(came, ingest, monkeypatch):
    monkeypatch.setattr(drafts, "KEEP_SECONDS", 0)
    came("The library closes.")
    with monkeypatch.context() as patch:
        interrupt(patch, ingestion, "embed", die)
        with pytest.raises(Killed):
            ingest()
    LostWords.objects.create(language="english")
    tidying.forget_words()
    assert Word.objects.filter(word="librari").exists()
    Document.objects.all().delete()
    tidying.forget_words()
    assert not Word.objects.exists()


def test_of_a_chunk_with_more_words_than_can_be_kept_the_first_are_found(collection):
    document = Document.objects.create(collection=collection, name="x", status=Status.READY)
    content = " ".join(f"{number:x}{'z' * 60}" for number in range(30_000))
    Chunk.objects.create(document=document, collection=collection, number=0, content=content)
    lexemes = Lexemes.objects.get()
    assert 0 < lexemes.length < 30_000
    assert content.split()[0] in lexemes.lexemes


def test_a_document_leaves_neither_an_event_loop_nor_classes_in_the_memory_of_its_worker(add):
    def kept() -> Counter[str]:
        gc.collect()
        everything = gc.get_objects()
        loops = sum(issubclass(type(one), asyncio.BaseEventLoop) for one in everything)
        return Counter(loops=loops, classes=sum(issubclass(type(one), type) for one in everything))

    add("The first one.")
    before = kept()
    for number in range(3):
        connection.close()  # as after each task
        add(f"Number {number}.")
    assert kept() == before
