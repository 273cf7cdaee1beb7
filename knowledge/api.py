"""Collections, documents and chunks as rows, and the search in them, a call."""

import re
from collections.abc import Coroutine
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Router as Routes
from pydantic_core import to_json
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request

from accounts.authentication import HTTPBearer, caller
from accounts.models import Permission
from accounts.permissions import AnyKey
from accounts.principals import Principal
from accounts.serializers import CreatedSerializer
from inference.api import caller as caller_of_call
from inference.errors import FeatureNotEnabled
from inference.responses import CallError
from knowledge import editing, reembedding, search, uploads
from knowledge import serializers as shapes
from knowledge.errors import (
    ChunkNotFound,
    CollectionNotFound,
    DocumentNotFound,
    DocumentUnfinished,
    NoChunks,
    PublicCollectionForbidden,
    Unreadable,
    VectorizationFailed,
)
from knowledge.models import Chunk, Collection, Document, Space, Status, Visibility
from knowledge.responses import Searches
from knowledge.schemas import CreateSearch
from knowledge.tasks import ingest_document, reembed_collection, send
from opengate.database import commit, found
from opengate.errors import BodyTooLarge
from opengate.rows import Accepted, LargeJSONParser, RowView, WaitingView, listing, operation
from routing import snapshot
from routing.errors import ModelNotFound, WrongModelType
from routing.models import ModelType, Router
from usage import limits

CREATED = 1_772_500_000
COLLECTION = {"object": "collection", "id": 3, "name": "HR", "owner": "ada@example.org", "description": None}
COLLECTION |= {"visibility": "private", "created": CREATED, "updated": CREATED, "documents": 2}
COLLECTION |= {"model": "multilingual-e5-small", "next_model": None, "language": "english"}
DOCUMENT = {"object": "document", "id": 12, "name": "leave.pdf", "collection_id": 3, "created": CREATED, "chunks": 7}
DOCUMENT |= {"status": "ready", "progress": 1.0, "error": None}
CHUNK = {"object": "chunk", "id": 0, "collection_id": 3, "document_id": 12, "content": "Leave is asked for in writing."}
CHUNK |= {"metadata": {"page": 1, "year": 2026}, "created": CREATED}


def embedding_router_id(name: str, principal: Principal) -> int:
    """The model of that name that embeds; raises ModelNotFound, RouterClosed, or WrongModelType if it does not embed.

    Not inside a transaction: it waits for what other threads read.
    """

    async def resolved() -> int:
        router = (await snapshot.latest()).find(name)
        (await limits.grants()).of(principal.role_id, router)
        snapshot.require_type(router, {ModelType.TEXT_EMBEDDINGS_INFERENCE})
        return router.id

    return async_to_sync(resolved)()


def _router(id: int) -> Router:
    return found(Router.objects.all(), id, ModelNotFound)


def _check_visibility(principal: Principal, visibility: str | None) -> None:
    if visibility == Visibility.PUBLIC and not principal.grants(Permission.CREATE_PUBLIC_COLLECTION):
        raise PublicCollectionForbidden


class Collections(RowView):
    tag = "Collections"
    permission_classes = (AnyKey,)

    @operation(
        "Create a collection",
        id="create_collection",
        body=shapes.CollectionRequestSerializer,
        answer=CreatedSerializer,
        status=201,
        refusals=(PublicCollectionForbidden, ModelNotFound, WrongModelType),
        examples={"request": {"name": "HR", "visibility": "private"}, "response": {"id": 3}},
    )
    def post(self, request: Request, body: dict[str, Any]) -> Collection:
        """A place for documents, yours. A public one, which everybody can read and search, needs a permission."""
        principal = caller(request)
        _check_visibility(principal, body["visibility"])
        router_id = embedding_router_id(model, principal) if (model := body.pop("model")) else None
        language = body.pop("language") or settings.SEARCH_LANGUAGE

        def create() -> Collection:
            space = Space.objects.of(_router(router_id)) if router_id else Space.objects.default()
            return Collection.objects.create(owner_id=principal.user_id, space=space, language=language, **body)

        return commit(create)

    @listing(
        "List collections",
        id="list_collections",
        item=shapes.CollectionSerializer,
        name="Collections",
        query=shapes.CollectionQuery,
        example=COLLECTION,
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Collection]:
        """Your own, and those that are public."""
        rows = Collection.objects.visible_to(caller(request).user_id).described()
        return rows.filter(**{name: query[name] for name in ("name", "visibility") if name in query})


class OneCollection(RowView):
    tag = "Collections"
    permission_classes = (AnyKey,)

    @operation(
        "Get a collection",
        id="get_collection",
        answer=shapes.CollectionSerializer,
        refusals=(CollectionNotFound,),
        examples={"response": COLLECTION},
    )
    def get(self, request: Request, collection_id: int) -> Collection:
        """One of your own, or one that is public."""
        rows = Collection.objects.visible_to(caller(request).user_id).described()
        return found(rows, collection_id, CollectionNotFound)

    @operation(
        "Change a collection",
        id="update_collection",
        body=shapes.CollectionUpdateRequestSerializer,
        refusals=(CollectionNotFound, PublicCollectionForbidden, ModelNotFound, WrongModelType),
        examples={"request": {"name": "Human resources"}},
    )
    def patch(self, request: Request, collection_id: int, body: dict[str, Any]) -> None:
        """One of your own. With another `model` it is embedded anew in the background, and searched all the while."""
        principal = caller(request)
        changes = {name: value for name, value in body.items() if value is not None}
        rows = Collection.objects.editable_by(principal.user_id)
        found(rows, collection_id, CollectionNotFound)
        _check_visibility(principal, changes.get("visibility"))
        router_id = embedding_router_id(model, principal) if (model := changes.pop("model", None)) else None

        def change() -> None:
            collection = rows.locked(collection_id)
            if collection is None:
                raise CollectionNotFound
            for name, value in changes.items():
                setattr(collection, name, value)
            collection.save()
            if router_id and reembedding.begin(collection, _router(router_id)):
                transaction.on_commit(partial(send, reembed_collection, collection.pk))

        commit(change)

    @operation("Delete a collection", id="delete_collection", refusals=(CollectionNotFound,))
    def delete(self, request: Request, collection_id: int) -> None:
        """One of your own, with all that is in it."""
        editing.delete_collection(Collection.objects.editable_by(caller(request).user_id), collection_id)


class Documents(WaitingView):
    tag = "Documents"
    permission_classes = (AnyKey,)
    parser_classes = (MultiPartParser,)

    @operation(
        "Add a document",
        id="create_document",
        body=shapes.DocumentFormSerializer,
        answer=CreatedSerializer,
        status=201,
        refusals=(
            CollectionNotFound,
            FeatureNotEnabled,
            partial(Unreadable, "Parsing document failed."),
            partial(BodyTooLarge, "File size limit exceeded (max: 20971520 bytes)."),
            NoChunks,
            partial(VectorizationFailed, "Model is temporarily unavailable, please try again later."),
        ),
        examples={"response": {"id": 12}},
        may_accept=True,
    )
    def post(self, request: Request, body: dict[str, Any]) -> Coroutine[Any, Any, Any] | Accepted | Document:
        """Read a file into one of your collections: parse, split, embed. Answered when the document can be searched;
        with `Prefer: respond-async` at once, with 202, and `GET /v1/documents/{id}` tells how far it is. Without a file
        the document is empty, and takes chunks."""
        rows = Collection.objects.editable_by(caller(request).user_id).select_related("space__router")
        collection = found(rows, body["collection_id"], CollectionNotFound)
        file = body.get("file")
        if file is None:
            empty = {"name": body["name"], "metadata": body["metadata"], "status": Status.READY, "progress": 1}
            return commit(lambda: Document.objects.create(collection=collection, **empty))
        document = uploads.receive(
            collection,
            file,
            body["options"],
            name=body.get("name", ""),
            metadata=body["metadata"],
            queue=partial(send, ingest_document),
        )
        if "respond-async" in re.split(r"[\s,;]+", request.headers.get("Prefer", "").lower()):
            return Accepted(document)
        return _searchable(document)

    @listing(
        "List documents",
        id="list_documents",
        item=shapes.DocumentSerializer,
        name="Documents",
        query=shapes.DocumentQuery,
        example=DOCUMENT,
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Document]:
        """Those of your own collections, and of public ones."""
        rows = Document.objects.visible_to(caller(request).user_id).described()
        return rows.filter(**{name: query[name] for name in ("name", "collection_id", "status") if name in query})


async def _searchable(document: Document) -> Any:
    return document if await uploads.outcome(document.pk) else Accepted(document)


class OneDocument(RowView):
    tag = "Documents"
    permission_classes = (AnyKey,)

    @operation(
        "Get a document",
        id="get_document",
        answer=shapes.DocumentSerializer,
        refusals=(DocumentNotFound,),
        examples={"response": DOCUMENT},
    )
    def get(self, request: Request, document_id: int) -> Document:
        """One of your own collections, or of a public one."""
        rows = Document.objects.visible_to(caller(request).user_id).described()
        return found(rows, document_id, DocumentNotFound)

    @operation("Delete a document", id="delete_document", refusals=(DocumentNotFound,))
    def delete(self, request: Request, document_id: int) -> None:
        """One of your own, with its chunks."""
        editing.delete_document(Document.objects.editable_by(caller(request).user_id), document_id)


def _chunks(request: Request, document_id: int) -> QuerySet[Chunk]:
    """The chunks of a document that the caller may read, in order; raises DocumentNotFound."""
    document = found(Document.objects.visible_to(caller(request).user_id), document_id, DocumentNotFound)
    return Chunk.objects.filter(document=document)


def _chunk(request: Request, document_id: int, number: int) -> Chunk:
    chunk = _chunks(request, document_id).filter(number=number).first()
    if chunk is None:
        raise ChunkNotFound
    return chunk


class Chunks(WaitingView):
    tag = "Chunks"
    permission_classes = (AnyKey,)
    parser_classes = (LargeJSONParser,)

    @operation(
        "Append chunks",
        id="create_chunks",
        body=shapes.CreateChunksSerializer,
        answer=shapes.CreatedChunksSerializer,
        status=201,
        refusals=(
            DocumentNotFound,
            FeatureNotEnabled,
            DocumentUnfinished,
            partial(VectorizationFailed, "Model is temporarily unavailable, please try again later."),
        ),
        examples={
            "request": {"chunks": [{"content": CHUNK["content"], "metadata": {"year": 2026}}]},
            "response": {"document_id": 12, "ids": [7]},
        },
    )
    def post(self, request: Request, document_id: int, body: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """Texts of your own for one of your documents, embedded as they come, on your account."""
        rows = Document.objects.editable_by(caller(request).user_id).select_related("collection__space__router")
        document = found(rows, document_id, DocumentNotFound)
        if document.status != Status.READY:
            raise DocumentUnfinished
        return _appended(caller(request), document, body["chunks"])

    @listing(
        "List chunks",
        id="list_chunks",
        item=shapes.ChunkSerializer,
        name="Chunks",
        refusals=(DocumentNotFound,),
        example=CHUNK,
    )
    def get(self, request: Request, document_id: int, query: dict[str, Any]) -> QuerySet[Chunk]:
        """In the order of the document."""
        return _chunks(request, document_id)


async def _appended(principal: Principal, document: Document, chunks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"document_id": document.pk, "ids": await editing.append(principal, document, chunks)}


class OneChunk(RowView):
    tag = "Chunks"
    permission_classes = (AnyKey,)

    @operation(
        "Get a chunk",
        id="get_chunk",
        answer=shapes.ChunkSerializer,
        refusals=(DocumentNotFound, ChunkNotFound),
        examples={"response": CHUNK},
    )
    def get(self, request: Request, document_id: int, chunk_id: int) -> Chunk:
        """By its number inside the document."""
        return _chunk(request, document_id, chunk_id)

    @operation("Delete a chunk", id="delete_chunk", refusals=(DocumentNotFound,))
    def delete(self, request: Request, document_id: int, chunk_id: int) -> None:
        """By its number, of one of your documents; none of that number is no fault."""
        editing.delete_chunk(Document.objects.editable_by(caller(request).user_id), document_id, chunk_id)


class OldChunks(RowView):
    tag = "Chunks"
    permission_classes = (AnyKey,)

    @listing(
        "List chunks",
        id="list_chunks_deprecated",
        item=shapes.ChunkSerializer,
        name="Chunks",
        refusals=(DocumentNotFound,),
        example=CHUNK,
        deprecated=True,
    )
    def get(self, request: Request, document: int, query: dict[str, Any]) -> QuerySet[Chunk]:
        """Use `GET /v1/documents/{document_id}/chunks`."""
        return _chunks(request, document)


class OldChunk(RowView):
    tag = "Chunks"
    permission_classes = (AnyKey,)

    @operation(
        "Get a chunk",
        id="get_chunk_deprecated",
        answer=shapes.ChunkSerializer,
        refusals=(DocumentNotFound, ChunkNotFound),
        examples={"response": CHUNK},
        deprecated=True,
    )
    def get(self, request: Request, document: int, chunk: int) -> Chunk:
        """Use `GET /v1/documents/{document_id}/chunks/{chunk_id}`."""
        return _chunk(request, document, chunk)


routes = Routes(auth=HTTPBearer())


@routes.post(
    "/search",
    response={200: Searches, **dict.fromkeys((400, 401, 403, 404, 413, 422, 429, 500, 503), CallError)},
    summary="Search documents",
    operation_id="search",
    tags=["Search"],
)
async def create_search(request: HttpRequest, body: CreateSearch) -> HttpResponse:
    """Chunks that fit the query, best first, out of what you may read."""
    request_id: str = request.id  # type: ignore[attr-defined]
    results, usage = await search.find(caller_of_call(request), body.query_for(body.query), request_id)
    content = {"object": "list", "data": [result.as_search() for result in results], "usage": usage}
    return HttpResponse(to_json(content, inf_nan_mode="null"), content_type="application/json")
