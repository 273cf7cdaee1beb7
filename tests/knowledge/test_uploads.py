"""Uploads that wait: answered once the document can be searched, or with the reason why it never will be."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from accounts.models import User
from knowledge import editing, uploads
from knowledge.models import (
    Collection,
    Document,
)
from tests.knowledge import files as made
from tests.knowledge.conftest import EMBEDDINGS, found
from tests.knowledge.documents import AWAY, beside, is_whole, nothing_is_left
from tests.server import Server


@pytest.fixture(scope="module")
def _hasty(django_db_setup, django_db_blocker) -> Iterator[Server]:
    with django_db_blocker.unblock():
        server = Server(
            OPENGATE_UPLOAD_PATIENCE_SECONDS="0.3",
            OPENGATE_UPLOAD_WAIT_SECONDS="3",
            OPENGATE_MAX_HELD_BODY_BYTES="1048576",
        ).start()
    yield server
    server.stop()


@pytest.fixture
def hasty(_hasty: Server, ada: User, key_of, redis_client) -> Iterator[httpx.Client]:
    """A web process whose uploads wait three seconds at most, and for a model that is away less than one."""
    with _hasty.client(key_of(ada)) as client:
        yield client


@pytest.fixture
def at_work(ingest) -> Iterator[None]:
    """Somebody takes up whatever comes."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            ingest()

    thread = threading.Thread(target=lambda: beside(work))
    thread.start()
    yield
    ended.set()
    thread.join()


def post(client: httpx.Client, collection: Collection, content: bytes, name: str) -> httpx.Response:
    form = {"collection_id": str(collection.pk)}
    return client.post("/v1/documents", data=form, files={"file": (name, content, "application/octet-stream")})


def test_an_upload_is_answered_once_it_can_be_searched(hasty, collection, at_work):
    response = post(hasty, collection, b"The canteen opens at noon.", "notes.txt")
    assert response.status_code == 201, response.text
    (result,) = found(hasty, "When does the canteen open?")
    assert result["chunk"]["document_id"] == response.json()["id"]


def test_an_upload_that_cannot_be_read_is_answered_with_the_reason_and_taken_back(hasty, collection, at_work):
    response = post(hasty, collection, made.docx(), "notes.pdf")
    assert (response.status_code, response.json()["detail"]) == (422, "The file is not a PDF.")
    assert nothing_is_left()


def test_an_upload_whose_model_is_away_is_taken_back(hasty, collection, at_work, upstream):
    upstream.route(EMBEDDINGS, AWAY, status=503)
    response = post(hasty, collection, b"The canteen opens at noon.", "notes.txt")
    assert (response.status_code, response.json()["detail"]) == (500, "Vectorization failed: Overloaded.")
    assert nothing_is_left()


def test_a_model_that_is_away_for_a_moment_after_a_long_wait_takes_nothing_back(came, ingest, settings):
    settings.UPLOAD_PATIENCE_SECONDS = 2
    document = came("The canteen opens at noon.")

    def work() -> None:
        time.sleep(2.2)  # in the queue
        Document.objects.update(error="Overloaded.")
        time.sleep(0.5)
        ingest()

    thread = threading.Thread(target=lambda: beside(work))
    thread.start()
    assert asyncio.run(uploads.outcome(document.pk))
    thread.join()


def test_an_upload_that_takes_long_is_told_to_come_back(hasty, collection, ingest):
    response = post(hasty, collection, b"The canteen opens at noon.", "notes.txt")
    assert response.status_code == 202, response.text
    ingest()
    assert is_whole(Document.objects.get(id=response.json()["id"]))


@pytest.mark.parametrize("prefer", ["respond-async", "Respond-Async", "wait=5, respond-async", "respond-async; wait=5"])
def test_whoever_prefers_not_to_wait_does_not(hasty, collection, prefer):
    form = {"data": {"collection_id": str(collection.pk)}, "files": {"file": ("a.txt", b"words", "text/plain")}}
    began = time.monotonic()
    assert hasty.post("/v1/documents", **form, headers={"Prefer": prefer}).status_code == 202
    assert time.monotonic() - began < 2.5


def test_an_upload_that_is_deleted_meanwhile_is_not_found(hasty, collection):
    def delete() -> None:
        while not (document := Document.objects.first()):
            time.sleep(0.02)
        editing.delete_document(Document.objects.all(), document.pk)

    thread = threading.Thread(target=lambda: beside(delete))
    thread.start()
    response = post(hasty, collection, b"The canteen opens at noon.", "notes.txt")
    thread.join()
    assert (response.status_code, response.json()["detail"]) == (404, "Document not found.")


def test_an_upload_that_waits_takes_no_room_from_the_next(hasty, collection):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, hasty, collection, b"a" * 900_000, "first.txt")
        while not Document.objects.exists():
            time.sleep(0.01)
        while (second := post(hasty, collection, b"b" * 900_000, "second.txt")).status_code == 503:
            assert not waiting.done()  # its row is seen a moment before its room is free
        assert (second.status_code, waiting.result().status_code) == (202, 202)
