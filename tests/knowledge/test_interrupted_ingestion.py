"""Workers that die, documents that are deleted, and others that overtake: nothing is doubled, lost or left."""

import json
import threading
import time
from collections import Counter
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.utils import timezone

from knowledge import drafts, ingestion, parsing, splitting, storing
from knowledge.drafts import Drafts
from knowledge.errors import Unreadable
from knowledge.models import (
    Chunk,
    DiscardedFile,
    Document,
    DraftEmbedding,
    Status,
)
from opengate.errors import APIError
from tests.flows.worker import Worker
from tests.knowledge.conftest import EMBEDDINGS, embedding, found
from tests.knowledge.documents import (
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
from tests.upstream import Received, Reply

STEPS = [
    (parsing, "pages"),
    (splitting, "split"),
    (ingestion, "embed"),
    (ingestion, "_store_locked"),
    (storing, "store_vectors"),  # in the middle of the transaction that stores
]


@pytest.fixture
def careful(monkeypatch):
    """Each step is kept, as if it had taken long."""
    monkeypatch.setattr(drafts, "KEEP_SECONDS", 0)


# a worker that dies


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(("place", "name"), STEPS)
def test_a_document_goes_on_where_its_worker_died(came, ingest, as_ada, upstream, monkeypatch, place, name, is_kept):
    if is_kept:
        monkeypatch.setattr(drafts, "KEEP_SECONDS", 0)
    document = came(TEXT, **EACH)
    with monkeypatch.context() as patch:
        interrupt(patch, place, name, die)
        with pytest.raises(Killed):
            ingest()
    ingest()  # the dead one's lease holds
    assert not Document.objects.get().is_finished
    assert found(as_ada, "Paragraph number 1") == []
    time_passes()
    ingest()
    assert is_whole(document)
    assert contents(document) == PARAGRAPHS
    embedded = [text for text in asked(upstream) if text in PARAGRAPHS]
    assert embedded == PARAGRAPHS * (1 if is_kept or place not in (ingestion, storing) or name == "embed" else 2)


@pytest.mark.usefixtures("careful")
def test_what_was_embedded_is_not_embedded_again_nor_the_file_read_again(came, ingest, upstream, monkeypatch):
    document = came(TEXT, **EACH)
    with monkeypatch.context() as patch:
        interrupt(patch, ingestion, "embed", die, nth=3)
        with pytest.raises(Killed):
            ingest()
    assert asked(upstream) == PARAGRAPHS[:64]
    interrupt(monkeypatch, parsing, "pages", die)
    time_passes()
    ingest()
    assert is_whole(document)
    assert asked(upstream) == PARAGRAPHS


def test_vectors_that_a_model_gave_before_it_was_away_are_not_asked_for_again(came, ingest, upstream, monkeypatch):
    document = came(TEXT, **EACH)

    def refuse() -> None:
        raise APIError("Overloaded.", status=503)

    with monkeypatch.context() as patch:
        interrupt(patch, ingestion, "embed", refuse, nth=3)
        ingest()
    document.refresh_from_db()
    assert (document.status, document.tries) == (Status.EMBEDDING, 1)
    time_passes()
    ingest()
    assert is_whole(document)
    assert asked(upstream) == PARAGRAPHS


def test_vectors_of_a_long_document_do_not_all_wait_in_memory(came, ingest, monkeypatch):
    monkeypatch.setattr(drafts, "MAX_VECTORS", 40)
    monkeypatch.setattr(drafts, "ROWS_AT_A_TIME", 30)
    kept: list[int] = []
    interrupt(monkeypatch, ingestion, "_store_locked", lambda: kept.append(DraftEmbedding.objects.count()))
    document = came(TEXT, **EACH)
    ingest()
    assert kept == [70]
    assert is_whole(document)
    assert contents(document) == PARAGRAPHS


@pytest.mark.usefixtures("careful")
def test_vectors_that_were_not_kept_are_asked_for_again(came, ingest, upstream, monkeypatch):
    document = came(TEXT, **EACH)
    with monkeypatch.context() as patch:
        interrupt(patch, Drafts, "keep", die, nth=3)
        with pytest.raises(Killed):
            ingest()
    time_passes()
    ingest()
    assert is_whole(document)
    assert Counter(asked(upstream)) == Counter(PARAGRAPHS + PARAGRAPHS[32:64])


def test_a_document_that_kills_each_worker_ends(came, ingest, monkeypatch):
    document = came(TEXT, **EACH)
    monkeypatch.setattr(parsing, "pages", lambda *args, **how: die())
    for _ in range(ingestion.DEATHS):
        with pytest.raises(Killed):
            ingest()
        time_passes()
    ingest()
    assert failure(document) == (Status.FAILED, 422, "Its worker died 10 times in a row.")


@pytest.mark.usefixtures("careful")
def test_a_document_that_gets_further_each_time_does_not(came, ingest, monkeypatch):
    document = came(TEXT, **EACH)
    Document.objects.update(deaths=ingestion.DEATHS - 1)
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt(patch, ingestion, "embed", die, nth=2)
            with pytest.raises(Killed):
                ingest()
        time_passes()
    ingest()
    assert is_whole(document)


def test_a_database_that_goes_away_fails_no_document(came, ingest, monkeypatch):
    document = came(TEXT, **EACH)

    def leave() -> None:
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        interrupt(patch, splitting, "split", leave)
        with pytest.raises(OperationalError):
            ingest()
    assert not Document.objects.get().is_finished
    time_passes()
    ingest()
    assert is_whole(document)


def test_who_reads_a_long_book_keeps_the_lease_and_tells_how_far_it_is(came, ingest, monkeypatch):
    document = came(TEXT, **EACH)
    whole, seen = parsing.pages, []

    def slowly(*args, on_page):
        Document.objects.update(lease_expires=timezone.now())  # it is about to run out
        time.sleep(1)
        on_page(0.5)
        seen.append(Document.objects.get())
        return whole(*args, on_page=on_page)

    monkeypatch.setattr(parsing, "pages", slowly)
    ingest()
    assert is_whole(document)
    assert seen[0].progress == ingestion.PARSED_SHARE / 2
    assert seen[0].lease_expires is not None
    assert seen[0].lease_expires > timezone.now()


# deleted meanwhile


@pytest.mark.parametrize(("place", "name"), STEPS[:-1])
@pytest.mark.parametrize("what", ["documents", "collections"])
def test_what_is_deleted_meanwhile_is_gone(came, ingest, as_ada, collection, monkeypatch, caplog, what, place, name):
    document = came(TEXT, **EACH)
    id = document.pk if what == "documents" else collection.pk

    def delete() -> None:
        assert as_ada.delete(f"/v1/{what}/{id}").status_code == 204

    interrupt(monkeypatch, place, name, delete)
    ingest()
    assert nothing_is_left()
    assert DiscardedFile.objects.get().file == document.file
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# two workers


@pytest.mark.parametrize(("place", "name"), STEPS[:-1])
def test_of_two_workers_the_slower_one_stores_nothing(came, ingest, monkeypatch, place, name):
    document = came(TEXT, **EACH)
    stored: list[int] = []

    def overtake() -> None:
        time_passes()
        ingestion.ingest(document.pk)
        stored.extend(Chunk.objects.values_list("id", flat=True))

    interrupt(monkeypatch, place, name, lambda: beside(overtake))
    ingest()
    assert is_whole(document)
    assert contents(document) == PARAGRAPHS
    assert sorted(Chunk.objects.values_list("id", flat=True)) == sorted(stored)


def test_splitting_by_an_expression_of_ones_own_costs_nobody_the_lease(came, ingest, monkeypatch, settings):
    settings.INGESTION_LEASE_SECONDS = 0.2
    document = came(TEXT, **EACH, separators=r"\n+", is_separator_regex="true")
    due: list[int] = []

    def look() -> None:
        time.sleep(0.4)
        due.extend(Document.objects.due(timezone.now()).values_list("id", flat=True))

    interrupt(monkeypatch, splitting, "split", lambda: beside(look))
    ingest()
    assert is_whole(document)
    assert due == []


@pytest.mark.parametrize(
    "error", [Unreadable("Too much."), APIError("Overloaded.", status=503), RuntimeError("Nobody expected it.")]
)
def test_of_two_workers_the_slower_one_spoils_nothing_when_it_fails(came, ingest, monkeypatch, error):
    document = came(TEXT, **EACH)

    def overtake() -> None:
        time_passes()
        ingestion.ingest(document.pk)

    def fail() -> None:
        beside(overtake)
        raise error

    interrupt(monkeypatch, ingestion, "embed", fail)
    ingest()
    assert is_whole(document)
    assert contents(document) == PARAGRAPHS


def test_who_loses_the_lease_waits_for_no_model_any_more(came, ingest, upstream, settings):
    settings.INGESTION_LEASE_SECONDS = 0.3
    document = came(TEXT, **EACH)
    upstream.route(EMBEDDINGS, embedding, wait=4)

    def take_over() -> None:
        while not asked(upstream):
            time.sleep(0.02)
        Document.objects.update(lease=uuid4())

    other = threading.Thread(target=lambda: beside(take_over))
    other.start()
    began = time.monotonic()
    ingest()
    assert time.monotonic() - began < 3
    other.join()
    document.refresh_from_db()
    assert (document.status, document.error) == (Status.EMBEDDING, "")


def test_a_worker_that_is_told_to_end_finishes_what_it_has(came, upstream, tmp_path):
    began = threading.Event()

    def slow(request: Received) -> Reply:
        began.set()
        return Reply([json.dumps(embedding(request)).encode()], wait=2)

    upstream.route(EMBEDDINGS, slow)
    document = came("A letter to the council.")
    worker = Worker(tmp_path).start()
    try:
        assert began.wait(30)
        assert worker.process is not None
        worker.process.terminate()
        assert worker.process.wait(30) == 0
    finally:
        worker.kill()
    document.refresh_from_db()
    assert (document.status, document.lease) == (Status.READY, None)
