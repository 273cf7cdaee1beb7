"""Collections, documents and chunks through the API: who may read and write them, and what they take."""

import json
import socket
import threading
import time
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.models import Permission, User
from knowledge import editing, storing, uploads, vectors
from knowledge.embedding import BATCH
from knowledge.errors import CollectionNotFound, ModelAnswersOtherSize
from knowledge.models import Chunk, Collection, Document, Language, Space, Status
from knowledge.splitting import Options
from routing.models import Provider, Router
from tests.knowledge.conftest import DIMENSIONS, EMBEDDINGS, embedding, embeddings_router, found, upload
from tests.knowledge.documents import beside, interrupt
from tests.upstream import Reply


@pytest.fixture
def as_ben(gateway, ben, key_of):
    with gateway.client(key_of(ben)) as client:
        yield client


def publish(collection: Collection) -> None:
    Collection.objects.filter(id=collection.pk).update(visibility="public")


def permit(user: User, *permissions: str) -> None:
    user.role.permissions = list(permissions)
    user.role.save()


# Collections


def test_a_collection_is_made_read_changed_and_deleted(as_ada, embeddings):
    made = as_ada.post("/v1/collections", json={"name": " HR ", "description": "Leave.", "language": "french"})
    assert (made.status_code, set(made.json())) == (201, {"id"})
    path = f"/v1/collections/{made.json()['id']}"
    read = as_ada.get(path).json()
    assert (read["object"], read["name"], read["description"], read["visibility"]) == (
        *("collection", "HR", "Leave.", "private"),
    )
    assert (read["owner"], read["documents"], read["model"], read["next_model"], read["language"]) == (
        *("ada@example.org", 0, "embeddings", None, "french"),
    )
    assert as_ada.patch(path, json={"name": "People", "description": None}).status_code == 204
    changed = as_ada.get(path).json()
    assert (changed["name"], changed["description"]) == ("People", "Leave.")
    assert as_ada.delete(path).status_code == 204
    assert as_ada.get(path).json() == {"detail": "Collection not found."}


def test_a_change_is_dated(as_ada, collection):
    Collection.objects.update(updated="2020-01-01T00:00Z")
    as_ada.patch(f"/v1/collections/{collection.pk}", json={"name": "new"})
    read = as_ada.get(f"/v1/collections/{collection.pk}").json()
    assert read["updated"] >= read["created"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "  "},
        {},
        {"name": 1},
        {"name": "x" * 256},
        {"name": "nul\x00"},
        {"visibility": "secret"},
        {"language": "klingon"},
        {"description": 5},
        {"model": ""},
        {"description": "x" * 10_001},
    ],
    ids=str,
)
def test_a_bad_collection_is_a_422(as_ada, embeddings, fields):
    body = fields if "name" in fields or not fields else {"name": "x"} | fields
    response = as_ada.post("/v1/collections", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", next(iter(fields), "name")]


def test_a_public_collection_asks_for_a_permission(as_ada, ada, collection):
    refused = as_ada.post("/v1/collections", json={"name": "x", "visibility": "public"})
    assert (refused.status_code, refused.json()["detail"]) == (
        *(403, "Missing permission to update collection visibility to public."),
    )
    path = f"/v1/collections/{collection.pk}"
    assert as_ada.patch(path, json={"visibility": "public"}).json() == refused.json()
    permit(ada, Permission.CREATE_PUBLIC_COLLECTION)
    assert as_ada.post("/v1/collections", json={"name": "x", "visibility": "public"}).status_code == 201
    assert as_ada.patch(path, json={"visibility": "public"}).status_code == 204


def test_a_model_is_named_or_the_first(as_ada, role, upstream, embeddings):
    embeddings_router(upstream, role, name="other")
    for body, model in (({}, "embeddings"), ({"model": "other"}, "other")):
        made = as_ada.post("/v1/collections", json={"name": "x"} | body).json()
        assert as_ada.get(f"/v1/collections/{made['id']}").json()["model"] == model


def test_a_model_must_be_open_and_embed(as_ada, embeddings, router, upstream):
    embeddings_router(upstream, name="closed")
    for model, status, detail in (
        ("nowhere", 404, "Model not found."),
        ("closed", 404, "Model not found."),
        ("model", 422, "Wrong model type."),
    ):
        response = as_ada.post("/v1/collections", json={"name": "x", "model": model})
        assert (response.status_code, response.json()["detail"]) == (status, detail)


def test_without_a_model_collections_are_made_and_documents_are_not(as_ada, ada):
    made = as_ada.post("/v1/collections", json={"name": "x"}).json()
    assert as_ada.get(f"/v1/collections/{made['id']}").json()["model"] is None
    response = upload(as_ada, made["id"], "text")
    assert (response.status_code, response.json()["detail"]) == (
        *(403, "Feature not enabled, please contact an administrator."),
    )
    assert Document.objects.count() == 0


def test_a_collection_without_a_model_takes_the_first_that_comes(as_ada, role, upstream, ingest):
    made = as_ada.post("/v1/collections", json={"name": "x"}).json()
    upstream.route(EMBEDDINGS, embedding)
    embeddings_router(upstream, role)
    assert upload(as_ada, made["id"], "The canteen opens at noon.").status_code == 202
    ingest()
    assert as_ada.get(f"/v1/collections/{made['id']}").json()["model"] == "embeddings"
    assert found(as_ada, "canteen")


def test_the_default_model_is_that_of_the_setting_else_the_first_that_somebody_serves(role, upstream, settings):
    Router.objects.create(name="unserved", type="text-embeddings-inference")
    first, second = (embeddings_router(upstream, role, name=name) for name in ("first", "second"))
    for name, router in ((None, first), ("second", second)):
        settings.EMBEDDING_MODEL = name
        assert Space.objects.default() == Space.objects.of(router)
    settings.EMBEDDING_MODEL = "nowhere"
    assert Space.objects.default() is None


def test_the_list_has_ones_own_and_what_is_public(as_ada, as_ben, ada, ben, embeddings):
    space = Space.objects.of(embeddings)
    for owner, name, visibility in (
        (ada, "a", "private"),
        (ada, "b", "public"),
        (ben, "c", "private"),
        (ben, "d", "public"),
    ):
        Collection.objects.create(owner=owner, name=name, visibility=visibility, space=space, language="english")

    def names(**query: Any) -> str:
        answer = as_ada.get("/v1/collections", params=query).json()
        assert answer["total"] == len(answer["data"])
        return "".join(row["name"] for row in answer["data"])

    assert names() == "abd"
    assert names(visibility="public") == "bd"
    assert names(visibility="private") == "a"
    assert names(name="d") == "d"
    assert names(order_by="name", order_direction="desc") == "dba"
    assert as_ada.get("/v1/collections", params={"visibility": "x"}).status_code == 422


# Who may do what


def test_what_is_private_is_hidden_from_a_neighbour(as_ben, collection, add):
    document = add("Ada's own words.")
    paths = [f"/v1/collections/{collection.pk}", f"/v1/documents/{document.pk}", f"/v1/documents/{document.pk}/chunks"]
    paths += [f"/v1/documents/{document.pk}/chunks/0", f"/v1/chunks/{document.pk}", f"/v1/chunks/{document.pk}/0"]
    for path in paths:
        assert as_ben.get(path).status_code == 404, path
    for query in ({}, {"collection_id": collection.pk}, {"name": "notes.txt"}):
        assert as_ben.get("/v1/documents", params=query).json()["data"] == []


def test_what_is_public_is_read_and_not_written(as_ben, collection, add):
    document = add("Words for all.")
    publish(collection)
    assert as_ben.get(f"/v1/documents/{document.pk}").json()["name"] == "notes.txt"
    assert as_ben.get(f"/v1/documents/{document.pk}/chunks").json()["data"][0]["content"] == "Words for all."
    chunks = {"chunks": [{"content": "mine"}]}
    for method, path, body, detail in (
        ("PATCH", f"/v1/collections/{collection.pk}", {"name": "x"}, "Collection not found."),
        ("DELETE", f"/v1/collections/{collection.pk}", None, "Collection not found."),
        ("DELETE", f"/v1/documents/{document.pk}", None, "Document not found."),
        ("POST", f"/v1/documents/{document.pk}/chunks", chunks, "Document not found."),
        ("DELETE", f"/v1/documents/{document.pk}/chunks/0", None, "Document not found."),
    ):
        response = as_ben.request(method, path, json=body)
        assert (response.status_code, response.json()["detail"]) == (404, detail), path
    assert upload(as_ben, collection, "mine").json()["detail"] == "Collection not found."


# Documents


def test_a_document_tells_how_far_it_is(as_ada, collection, ingest):
    id = upload(as_ada, collection, "Some words.", metadata='{"year": 2026}').json()["id"]
    document = as_ada.get(f"/v1/documents/{id}").json()
    assert (document["status"], document["progress"], document["error"], document["chunks"]) == ("pending", 0, None, 0)
    assert [row["id"] for row in as_ada.get("/v1/documents", params={"status": "pending"}).json()["data"]] == [id]
    ingest()
    document = as_ada.get(f"/v1/documents/{id}").json()
    assert set(document) == {
        *("object", "id", "name", "collection_id", "created", "chunks", "status", "progress", "error"),
    }
    assert (document["status"], document["progress"], document["error"], document["chunks"]) == ("ready", 1, None, 1)
    chunk = as_ada.get(f"/v1/documents/{id}/chunks/0").json()
    assert (chunk["object"], chunk["id"], chunk["content"], chunk["metadata"]) == (
        *("chunk", 0, "Some words.", {"year": 2026}),
    )


def test_a_document_without_a_file_takes_chunks(as_ada, collection):
    made = as_ada.post("/v1/documents", files={"name": (None, "mine"), "collection": (None, str(collection.pk))})
    assert made.status_code == 201
    path = f"/v1/documents/{made.json()['id']}/chunks"
    chunks = {"chunks": [{"content": " First. ", "metadata": {"a": 1}}, {"content": "Second."}]}
    appended = as_ada.post(path, json=chunks)
    assert (appended.status_code, appended.json()) == (201, {"document_id": made.json()["id"], "ids": [0, 1]})
    rows = as_ada.get(path).json()["data"]
    assert [(row["content"], row["metadata"]) for row in rows] == [("First.", {"a": 1}), ("Second.", None)]
    assert found(as_ada, "second", method="lexical")[0]["chunk"]["id"] == 1


def test_chunks_are_numbered_on_from_the_last(as_ada, add):
    document = add("One.\n\nTwo.\n\nThree.", chunk_size="8")
    path = f"/v1/documents/{document.pk}/chunks"
    assert as_ada.delete(f"{path}/1").status_code == 204
    assert as_ada.delete(f"{path}/1").status_code == 204  # there is none any more
    assert as_ada.post(path, json={"chunks": [{"content": "Four."}]}).json()["ids"] == [3]
    assert [row["id"] for row in as_ada.get(path).json()["data"]] == [0, 2, 3]
    assert as_ada.get(f"{path}/1").json()["detail"] == "Chunk not found."
    assert as_ada.get(f"/v1/chunks/{document.pk}/3").json()["content"] == "Four."


def test_two_who_append_at_once_are_numbered_one_after_the_other(add, monkeypatch):
    document = add("One.")
    space, made = Space.objects.get(), [editing.NewChunk("More.", None, vectors.as_binary([[1.0] * DIMENSIONS])[0])]
    numbers: list[Any] = []
    other = threading.Thread(target=lambda: beside(lambda: numbers.append(editing._append(document, space, made))))

    def overtake() -> None:
        other.start()
        time.sleep(0.2)

    interrupt(monkeypatch, storing, "store_vectors", overtake)  # between the chunks and their vectors
    numbers.append(editing._append(document, space, made))
    other.join()
    assert sorted(numbers) == [[1], [2]]


def test_chunks_whose_model_is_away_are_not_there_and_may_come_again(as_ada, add):
    document = add("words")
    for provider in Provider.objects.all():
        provider.url = "http://127.0.0.1:9/"
        provider.save()
    refused = as_ada.post(f"/v1/documents/{document.pk}/chunks", json={"chunks": [{"content": "more words"}]})
    assert (refused.status_code, "Retry-After" in refused.headers) == (500, True)
    assert refused.json()["detail"].startswith("Vectorization failed: ")
    assert document.chunks.count() == 1


def test_of_chunks_whose_vectors_are_of_different_sizes_none_is_stored(as_ada, collection, upstream):
    sizes = iter((DIMENSIONS, DIMENSIONS + 1))
    upstream.route(EMBEDDINGS, lambda request: Reply([json.dumps(embedding(request, next(sizes))).encode()]))
    document = Document.objects.create(collection=collection, name="notes", status=Status.READY)
    chunks = [{"content": f"Note {number}."} for number in range(BATCH + 1)]
    refused = as_ada.post(f"/v1/documents/{document.pk}/chunks", json={"chunks": chunks})
    assert (refused.status_code, refused.json()["detail"]) == (
        500,
        ModelAnswersOtherSize(DIMENSIONS + 1, DIMENSIONS).detail,
    )
    assert not document.chunks.exists()


def test_an_unfinished_document_takes_no_chunks(as_ada, collection):
    id = upload(as_ada, collection, "words").json()["id"]
    response = as_ada.post(f"/v1/documents/{id}/chunks", json={"chunks": [{"content": "x"}]})
    assert (response.status_code, response.json()["detail"]) == (409, "The document is not ready: see its status.")


def test_a_deleted_document_is_gone_from_everywhere(as_ada, add, collection):
    document = add("Transient words.")
    assert found(as_ada, "transient")
    assert as_ada.delete(f"/v1/documents/{document.pk}").status_code == 204
    for method in ("semantic", "lexical", "hybrid"):
        assert found(as_ada, "transient", method=method) == []
    assert as_ada.get(f"/v1/documents/{document.pk}/chunks").json()["detail"] == "Document not found."
    assert Chunk.objects.count() == 0
    assert as_ada.get(f"/v1/collections/{collection.pk}").json()["documents"] == 0


METADATA = [
    "{}",
    "[]",
    "null",
    "{",
    '"x"',
    '{"a": null}',
    '{"a": [1]}',
    '{"a": {"b": 1}}',
    '{"": 1}',
    '{" ": 1}',
    '{"a": ""}',
    '{"a": "' + "x" * 256 + '"}',
    '{"' + "k" * 256 + '": 1}',
    '{"a": 10000000000000000}',
    '{"a": 1e300}',
    '{"a": NaN}',
    '{"a": "\\u0000"}',
    '{"a": "\\ud800"}',
    "[" * 100_000,
    json.dumps({str(number): 1 for number in range(11)}),
]


def test_the_most_metadata_is_taken_without_white_space_around_it(as_ada, add):
    metadata = {f" {number} ".ljust(255): " x".ljust(255) for number in range(10)}
    document = add("words", metadata=json.dumps(metadata))
    (chunk,) = as_ada.get(f"/v1/documents/{document.pk}/chunks").json()["data"]
    assert chunk["metadata"] == {str(number): "x" for number in range(10)}
    longest = {"k" * 255: "v" * 255, "most": 9_999_999_999_999_999, "least": -9_999_999_999_999_999}
    chunks = {"chunks": [{"content": "x", "metadata": longest}] * 64}
    assert as_ada.post(f"/v1/documents/{document.pk}/chunks", json=chunks).json()["ids"] == list(range(1, 65))


@pytest.mark.parametrize("metadata", METADATA, ids=lambda text: text[:20])
def test_bad_metadata_is_a_422(as_ada, collection, metadata):
    response = upload(as_ada, collection, "words", metadata=metadata)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "metadata"]
    assert Document.objects.count() == 0


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"collection_id": "x"}, "collection_id"),
        ({"collection_id": "0"}, "collection_id"),
        ({"collection_id": str(2**63)}, "collection_id"),
        ({"chunk_size": "-1"}, "chunk_size"),
        ({"chunk_size": "1.5"}, "chunk_size"),
        ({"chunk_overlap": "x"}, "chunk_overlap"),
        ({"disable_chunking": "maybe"}, "disable_chunking"),
        ({"preset_separators": "klingon"}, "preset_separators"),
        ({"metadata": "["}, "metadata"),
    ],
    ids=str,
)
def test_a_bad_field_of_the_form_is_a_422(as_ada, collection, fields, place):
    response = upload(as_ada, collection, "words", **fields)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", place]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chunk_size": "0"}, "chunk_size must be greater than 0."),
        ({"chunk_size": "10", "chunk_overlap": "10"}, "chunk_overlap must be smaller than chunk_size."),
        ({"separators": "(a)|(b)", "is_separator_regex": "true"}, "separators must have no groups that capture"),
        ({"separators": "(?i)a", "is_separator_regex": "true"}, "separators must be regular expressions"),
        ({"separators": "(", "is_separator_regex": "true"}, "separators must be regular expressions"),
    ],
    ids=str,
)
def test_options_that_cannot_be_followed_are_a_422(as_ada, collection, fields, words):
    response = upload(as_ada, collection, "words", **fields)
    assert response.status_code == 422
    assert words in response.json()["detail"][0]["msg"]


def test_a_field_that_is_empty_has_its_default(as_ada, collection):
    assert upload(as_ada, collection, "words", disable_chunking="", metadata="").status_code == 202


def test_what_the_form_lacks_is_a_422(as_ada, collection):
    without_name = as_ada.post("/v1/documents", files={"collection_id": (None, str(collection.pk))})
    long = as_ada.post("/v1/documents", files={"name": (None, "x" * 256), "collection_id": (None, "1")})
    assert long.json()["detail"][0]["loc"] == ["body", "name"]
    assert "name is required when file is not provided" in without_name.text
    without_collection = as_ada.post("/v1/documents", files={"name": (None, "x")})
    assert without_collection.json()["detail"][0]["loc"] == ["body", "collection_id"]
    for response in (without_name, without_collection):
        assert response.status_code == 422


def test_no_form_is_a_clear_refusal(as_ada, collection):
    assert as_ada.post("/v1/documents", json={"name": "x"}).status_code in (400, 415, 422)
    broken = {"Content-Type": "multipart/form-data"}
    assert as_ada.post("/v1/documents", content=b"x", headers=broken).status_code in (400, 415, 422)


@pytest.mark.parametrize(
    ("name", "content", "detail"),
    [
        ("a.xyz", b"x", "Unsupported file type."),
        ("noextension", b"x", "Unsupported file type."),
        ("a.txt", b"", "The file is empty."),
    ],
)
def test_what_can_be_told_of_a_file_is_told_at_once(as_ada, collection, name, content, detail):
    response = upload(as_ada, collection, content, name)
    assert (response.status_code, response.json()["detail"]) == (422, detail)
    assert Document.objects.count() == 0


def test_a_collection_that_goes_while_a_file_comes_is_not_found(collection, monkeypatch):
    gone, file = Collection.objects.all(), SimpleUploadedFile("notes.txt", b"words")
    interrupt(monkeypatch, vectors, "space_of", lambda: editing.delete_collection(gone, collection.pk))
    with pytest.raises(CollectionNotFound):
        uploads.receive(collection, file, Options(), queue=lambda id: None)
    assert Document.objects.count() == 0


def test_a_file_of_20_mib_is_taken_and_one_byte_more_is_not(as_ada, collection):
    most = 20 * 1024 * 1024
    assert upload(as_ada, collection, b"x" * most).status_code == 202
    response = upload(as_ada, collection, b"x" * (most + 1))
    assert (response.status_code, response.json()["detail"]) == (413, "File size limit exceeded (max: 20971520 bytes).")


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [{}],
        [{"content": ""}],
        [{"content": " "}],
        [{"content": 1}],
        [{"content": "x", "metadata": {}}],
        [{"content": "x", "metadata": {"a": None}}],
        [{"content": "x"}] * 65,
        "x",
        [None],
    ],
    ids=lambda chunks: str(chunks)[:40],
)
def test_bad_chunks_are_a_422(as_ada, add, chunks):
    document = add("words")
    response = as_ada.post(f"/v1/documents/{document.pk}/chunks", json={"chunks": chunks})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["body", "chunks"]


def test_chunks_of_more_than_20_mib_are_refused(as_ada, add):
    document = add("words")
    chunks = [{"content": "x" * (11 * 1024 * 1024)}] * 2
    response = as_ada.post(f"/v1/documents/{document.pk}/chunks", json={"chunks": chunks})
    assert response.status_code == 422
    assert "Chunks content total size exceeds 20MB" in response.text


def test_unknown_fields_do_no_harm(as_ada, collection):
    response = upload(as_ada, collection, "words", output_format="markdown", force_ocr="true", chunker="x", owner="1")
    assert response.status_code == 202


@pytest.mark.parametrize("id", ["x", "1.0", "٣"])
@pytest.mark.parametrize("path", ["collections/{}", "documents/{}", "documents/{}/chunks", "documents/1/chunks/{}"])
def test_an_id_that_is_none_is_a_422(as_ada, id, path):
    assert as_ada.get("/v1/" + path.format(id)).status_code == 422


@pytest.mark.parametrize("id", [0, -1, 2**63, 10**30])
@pytest.mark.parametrize("path", ["collections/{}", "documents/{}", "documents/{}/chunks", "documents/1/chunks/{}"])
def test_an_id_of_no_row_is_a_404(as_ada, id, path):
    response = as_ada.get("/v1/" + path.format(id))
    assert (response.status_code, response.json()["detail"].endswith("not found.")) == (404, True)


@pytest.mark.parametrize("id", [1, -1, 2**31, 2**63, 10**30])
def test_a_number_of_no_chunk_is_a_404_and_there_is_nothing_to_delete(as_ada, add, id):
    path = f"/v1/documents/{add('words').pk}/chunks/{id}"
    response = as_ada.get(path)
    assert (response.status_code, response.json()["detail"]) == (404, "Chunk not found.")
    assert as_ada.delete(path).status_code == 204
    assert Chunk.objects.count() == 1


def test_a_user_takes_collections_along(as_ada, ada, add, collection):
    add("words")
    ada.delete()
    assert not Collection.objects.exists()
    assert not Document.objects.exists()
    assert not Chunk.objects.exists()


def test_every_language_has_its_words(ada, embeddings):
    for language in Language.values:
        collection = Collection.objects.create(
            name="x", owner=ada, language=language, space=Space.objects.of(embeddings)
        )
        document = Document.objects.create(collection=collection, name="x", status="ready")
        Chunk.objects.create(document=document, collection=collection, number=0, content="Été 2026 à Zürich")
        assert "zuri" in Chunk.objects.get(document=document).lexemes.lexemes


def test_more_strangers_than_threads_stop_nobody(gateway, as_ada, collection):
    """A view waits for a look at its key, which takes a thread, too: were they of one pool, all would wait for ever."""
    body = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nn\r\n--x--\r\n'
    sockets = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(40)]
    for number, connection in enumerate(sockets):
        head = f"POST /v1/documents HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-{number:043}\r\n"
        head += f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-1])
    for connection in sockets:
        connection.send(body[-1:])
    assert as_ada.get("/v1/collections").status_code == 200
    for connection in sockets:
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
        connection.close()
