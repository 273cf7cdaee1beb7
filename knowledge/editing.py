"""What the owner changes: chunks appended, and what is deleted. The collection is locked before what is in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db.models import QuerySet

from accounts.principals import Principal
from knowledge.embedding import embed, fitting
from knowledge.errors import (
    CollectionNotFound,
    DocumentNotFound,
    DocumentUnfinished,
    VectorizationFailed,
)
from knowledge.models import Chunk, Collection, CollectionQuerySet, Document, Space, Status
from knowledge.storing import Row, as_json, store
from knowledge.vectors import as_binary, space_of
from opengate.database import commit, in_thread
from opengate.errors import APIError, DatabaseAway


class NewChunk(NamedTuple):
    """A chunk to store, and its vector as Postgres takes it in binary."""

    content: str
    metadata: dict[str, Any] | None
    vector: bytes


async def append(principal: Principal, document: Document, chunks: Sequence[dict[str, Any]]) -> list[int]:
    """Embed chunks (`content`, `metadata`) on the caller's account and append them; their numbers.

    Raises VectorizationFailed, DocumentUnfinished, or DocumentNotFound when it was deleted meanwhile.
    """
    space = await in_thread(space_of)(document.collection)
    while True:
        made: list[NewChunk] = []
        try:
            while len(made) < len(chunks):
                texts = [chunk["content"] for chunk in chunks[len(made) :]]
                batch = chunks[len(made) :][: fitting(texts)]
                vectors = await embed(principal, space, texts[: len(batch)])
                pairs = zip(batch, as_binary(vectors), strict=True)
                made += [NewChunk(chunk["content"], chunk.get("metadata"), vector) for chunk, vector in pairs]
        except (DatabaseAway, VectorizationFailed):
            raise
        except APIError as error:
            raise VectorizationFailed(error) from error
        appended = await in_thread(_append)(document, space, made)
        if isinstance(appended, Space):  # the collection was given another model meanwhile
            space = appended
        else:
            return appended


def _append(document: Document, space: Space, chunks: Sequence[NewChunk]) -> list[int] | Space:
    def appended() -> list[int] | Space:
        collection = Collection.objects.locked(document.collection_id)
        locked = Document.objects.select_for_update(no_key=True).filter(id=document.pk).first()
        if locked is None or collection is None:
            raise DocumentNotFound
        if locked.status != Status.READY:
            raise DocumentUnfinished
        if collection.space_id not in (None, space.pk):
            return Space.objects.select_related("router").get(pk=collection.space_id)
        last = Chunk.objects.filter(document=document).order_by("-number").values_list("number", flat=True).first()
        first = 0 if last is None else last + 1
        rows = [Row(number, chunk.content, as_json(chunk.metadata)) for number, chunk in enumerate(chunks, first)]
        store(document, collection, space, rows, [chunk.vector for chunk in chunks])
        Document.objects.filter(id=document.pk).update(edited=True)
        return [row.number for row in rows]

    return commit(appended)


def delete_document(documents: QuerySet[Document], id: int) -> None:
    """Delete one of the documents; raises DocumentNotFound. Whoever works on it finds out."""

    def delete() -> None:
        if not _held(documents, id).delete()[0]:
            raise DocumentNotFound

    commit(delete)


def delete_chunk(documents: QuerySet[Document], document_id: int, number: int) -> None:
    """Delete a chunk of one of the documents, if there is one of that number; raises DocumentNotFound."""

    def delete() -> None:
        document = _held(documents, document_id)
        if Chunk.objects.filter(document=document_id, number=number).delete()[0]:
            document.update(edited=True)

    commit(delete)


def _held(documents: QuerySet[Document], id: int) -> QuerySet[Document]:
    """One of the documents, whose collection is locked; raises DocumentNotFound."""
    document = documents.filter(id=id).first()
    if document is None or Collection.objects.locked(document.collection_id) is None:
        raise DocumentNotFound
    return Document.objects.filter(id=id)


def delete_collection(collections: CollectionQuerySet, id: int) -> None:
    """Delete one of the collections with all that is in it; raises CollectionNotFound."""

    def delete() -> None:
        collection = collections.locked(id)
        if collection is None:
            raise CollectionNotFound
        collection.delete()

    commit(delete)
