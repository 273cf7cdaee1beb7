"""The console's pages of documents, and the command that changes models."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from knowledge import indexing
from knowledge.admin import CollectionAdmin
from knowledge.models import Chunk, Collection, Document, Embedding, Space
from tests.knowledge.conftest import embeddings_router, ingest_all, upload
from tests.knowledge.documents import interrupt


@pytest.fixture
def console(admin, client: Client) -> Client:
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    return client


@pytest.fixture
def document(add) -> Document:
    made: Document = add("Leave is asked for in writing.", "leave.txt", metadata='{"year": 2026}')
    return made


def test_every_page_opens(console, document, collection):
    chunk = Chunk.objects.get()
    for path, words in (
        ("collection/", ["adas", "ada@example.org", "embeddings"]),
        (
            f"collection/{collection.pk}/change/",
            ["adas", "english", f"/admin/knowledge/document/?collection__id__exact={collection.pk}"],
        ),
        ("document/", ["leave.txt", "ready", "30"]),
        ("document/?q=adas", ["leave.txt"]),
        (f"document/?collection__id__exact={collection.pk}", ["leave.txt"]),
        (f"document/{document.pk}/change/", ["leave.txt", "chunk_size"]),
        ("chunk/", ["Leave is asked"]),
        (f"chunk/?document__id__exact={document.pk}", ["Leave is asked"]),
        (f"chunk/{chunk.pk}/change/", ["Leave is asked", "2026"]),
        ("space/", ["embeddings", "64", "compared one by one", "100 %"]),
    ):
        response = console.get(f"/admin/knowledge/{path}")
        assert response.status_code == 200, path
        for word in words:
            assert word in response.content.decode(), (path, word)


def test_what_failed_is_tried_again(console, as_ada, collection):
    upload(as_ada, collection, b"\x00\x01\x02", "binary.txt")
    ingest_all()
    document = Document.objects.get()
    assert (document.status, document.error) == ("failed", "The file is not text.")
    page = console.post(
        "/admin/knowledge/document/", {"action": "retry", "_selected_action": [document.pk]}, follow=True
    )
    assert "1 documents begin anew" in page.content.decode()
    document.refresh_from_db()
    assert (document.status, document.error, document.failure) == ("pending", "", None)


def test_a_document_is_deleted_there_with_all_it_has(console, document):
    page = console.post(f"/admin/knowledge/document/{document.pk}/delete/", {"post": "yes"})
    assert page.status_code == 302
    assert not Chunk.objects.exists()
    assert not Embedding.objects.exists()


def test_what_a_collection_becomes_while_it_is_edited_there_stays(console, document, collection, ada, monkeypatch):
    def chunks_come() -> None:
        Collection.objects.update(chunks=7, words=70)

    interrupt(monkeypatch, CollectionAdmin, "save_model", chunks_come)
    form = {"name": "renamed", "owner": ada.pk, "visibility": "public", "description": ""}
    page = console.post(f"/admin/knowledge/collection/{collection.pk}/change/", form)
    assert page.status_code == 302
    collection.refresh_from_db()
    assert (collection.name, collection.visibility, collection.chunks, collection.words) == ("renamed", "public", 7, 70)


def test_a_collection_is_made_by_its_owner_only(console):
    assert console.get("/admin/knowledge/collection/add/").status_code == 403


def test_the_recall_is_measured_and_shown(console, document, monkeypatch):
    monkeypatch.setattr(indexing, "INDEXED_ROWS", 1)
    space = Space.objects.get()
    assert indexing.index_grown() == [space]
    page = console.post("/admin/knowledge/space/", {"action": "probe", "_selected_action": [space.pk]}, follow=True)
    assert "100.0% of the nearest 10 are found" in page.content.decode()
    space.refresh_from_db()
    assert (space.recall, space.probed is not None) == (1, True)
    assert indexing.index_grown() == []
    document.delete()
    assert indexing.index_grown() == []
    assert indexing.state_of(space) is None


def reembed(*words: str) -> str:
    out = StringIO()
    call_command("reembed", *words, stdout=out, stderr=out)
    return out.getvalue()


def test_a_collection_gets_another_model_by_command(document, collection, role, upstream):
    embeddings_router(upstream, role, name="other")
    assert "switched" in reembed(str(collection.pk), "--model", "other")
    collection.refresh_from_db()
    assert (str(collection.space.router), collection.next_space) == ("other", None)
    assert "nothing to do" in reembed(str(collection.pk))


def test_a_model_that_changed_under_its_name_gets_a_new_space(document, collection):
    before = Collection.objects.get().space_id
    assert "switched" in reembed("--all", "--fresh")
    assert Collection.objects.get().space_id != before
    assert reembed() == ""  # nobody is on the way any more


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["999999"], "Collection 999999 not found."),
        (["--model", "embeddings"], "Say which collections, or --all."),
        (["--all", "--model", "nowhere"], "There is no model nowhere that embeds."),
    ],
)
def test_the_command_says_what_it_cannot_do(document, words, told):
    with pytest.raises(CommandError, match=told):
        reembed(*words)


def test_a_model_that_the_owner_may_not_use_is_told(document, collection, upstream):
    embeddings_router(upstream, name="closed")
    with pytest.raises(CommandError, match=f"Not done: {collection.pk}"):
        reembed(str(collection.pk), "--model", "closed")
    assert Collection.objects.filter(space__router__name="embeddings").exists()
