"""The way of a document into its collection: parse, split, embed, store. Each step may be taken twice without harm.

Whoever works on a document holds a lease. What is done is kept in drafts, so that another goes on where a worker died;
chunks and vectors come into the collection in one transaction, and only then can the document be found.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from accounts import principals
from accounts.errors import InvalidKey
from accounts.principals import Principal
from inference.errors import UnreadableAnswer
from knowledge import files, parsing, splitting
from knowledge.embedding import BATCH, Vector, embed, fitting, in_loop
from knowledge.errors import (
    CollectionModelGone,
    CollectionNotFound,
    DocumentNotFound,
    DocumentUnfinished,
    ModelAnswersOtherSize,
    NoChunks,
    NoEmbeddingModel,
    Unreadable,
    VectorizationFailed,
    may_heal,
)
from knowledge.kinds import Kind
from knowledge.models import Chunk, Collection, Document, Draft, DraftEmbedding, Space, Status, lease_time
from opengate.database import commit, in_thread
from opengate.errors import APIError, DatabaseAway

logger = logging.getLogger(__name__)

PARSED_SHARE = 0.3  # of the progress
ELDER_SECONDS = 1.0
STEPS = (Status.PENDING, Status.PARSING, Status.EMBEDDING)
LONGEST_PAUSE_SECONDS = 300.0
DEATHS = 10  # of its workers in a row that a document may cause
UNREADABLE_ANSWERS = 3


class _Lost(Exception):
    """The lease is another's, or the document is gone: whatever was meant to be done is none of ours."""


class _PutOff(Exception):
    """Nothing can be done for a while; `reason` is what the owner reads meanwhile."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.reason = reason


class NewChunk(NamedTuple):
    """A chunk to store, and its vector."""

    content: str
    metadata: dict[str, Any] | None
    vector: Vector


def ingest(id: int) -> None:
    """Bring a document as far as it gets: to `ready`, to `failed` with a sentence, or to its next try.

    Does nothing for one that is gone, finished, not due, or in the hands of another.
    """
    document = Document.objects.claim(id, timezone.now())
    if document is None:
        return
    try:
        if document.deaths > DEATHS:
            raise Unreadable(f"Its worker died {DEATHS} times in a row.")
        if document.status != Status.EMBEDDING and not _has_twin(document):
            _parse(document)
        in_loop(_embed(document))
        _store(document)
    except _Lost:
        logger.info("Document %s is gone, or another works on it.", id)
    except _PutOff as pause:
        _put_off(document, pause)
    except (OperationalError, InterfaceError, DatabaseAway):
        raise  # nobody can be told; the lease runs out
    except (Unreadable, NoChunks) as error:
        _fail(document, error)
    except APIError as error:
        _fail_or_wait(document, error)
    except Exception:
        logger.exception("Document %s cannot be ingested.", id)
        _fail(document, APIError("An unexpected error occurred."))


def _fail_or_wait(document: Document, error: APIError) -> None:
    """What a model answered: try again later what may heal."""
    if isinstance(error, InvalidKey):
        _fail(document, Unreadable("The account of the collection's owner is closed."))
        return
    tries = UNREADABLE_ANSWERS if isinstance(error, UnreadableAnswer) else settings.INGESTION_TRIES
    if may_heal(error) and document.tries + 1 < tries:
        _put_off(document, _PutOff(min(2.0**document.tries, LONGEST_PAUSE_SECONDS), _sentence(error)))
    else:
        _fail(document, error if isinstance(error, VectorizationFailed) else VectorizationFailed(_sentence(error)))


def _sentence(error: APIError) -> str:
    detail = error.detail
    for name in ("error", "message", "detail"):  # as providers nest them
        if isinstance(detail, dict) and name in detail:
            detail = detail[name]
    return str(detail)[:1000].replace("\x00", "")


def _fail(document: Document, error: APIError) -> None:
    with transaction.atomic():
        failed = {"status": Status.FAILED, "error": _sentence(error), "failure": error.status}
        if Document.objects.held(document).update(**failed, lease=None, lease_expires=None):
            _forget_drafts(document)


def _put_off(document: Document, pause: _PutOff) -> None:
    tries = document.tries + bool(pause.reason)
    due = timezone.now() + timedelta(seconds=pause.seconds)
    Document.objects.held(document).update(
        due=due, tries=tries, deaths=0, error=pause.reason, lease=None, lease_expires=None
    )


def _keep(document: Document, **changes: Any) -> None:
    """Store changes and renew the lease; raises _Lost."""
    if not Document.objects.keep(document, **changes):
        raise _Lost


def _keep_for(document: Document, seconds: float) -> None:
    """Renew the lease for so long; raises _Lost."""
    expires = timezone.now() + timedelta(seconds=seconds) + lease_time()
    if not Document.objects.held(document).update(lease_expires=expires):
        raise _Lost


# the same file


def _has_twin(document: Document) -> bool:
    """Draft the chunks and vectors of a document of the same collection, file and options, if there is one.

    One that is further on its way, or came first, is waited for: what is the same is read and paid for once.
    """
    same = Document.objects.filter(collection=document.collection_id, fingerprint=document.fingerprint, edited=False)
    if not document.fingerprint:
        return False
    further = STEPS[STEPS.index(Status(document.status)) + 1 :]
    if same.filter(Q(status__in=further) | Q(status=document.status, id__lt=document.pk)).exists():
        raise _PutOff(ELDER_SECONDS)
    twins = same.filter(
        Q(metadata__isnull=True) | ~Q(metadata__has_any_keys=["page", "last_page"])
    )  # else the page is the owner's word
    twins = twins.filter(status=Status.READY).exclude(id=document.pk).order_by("id")
    twin = twins.first()
    if twin is None:
        return False
    with transaction.atomic():
        _keep(document, status=Status.EMBEDDING, progress=PARSED_SHARE)
        if twins.filter(id=twin.pk).select_for_update(no_key=True).first() is None:
            raise _PutOff(0)  # edited or deleted meanwhile; from here on it stays as it is
        _forget_drafts(document)
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO knowledge_draft (document_id, number, content, metadata)
                SELECT %(id)s, number, content, nullif(
                  jsonb_strip_nulls(
                    jsonb_build_object('page', metadata -> 'page', 'last_page', metadata -> 'last_page')
                  ) || coalesce((SELECT metadata FROM knowledge_document WHERE id = %(id)s), '{}'), '{}')
                FROM knowledge_chunk WHERE document_id = %(twin)s
                """,
                {"id": document.pk, "twin": twin.pk},
            )
            cursor.execute(
                """
                INSERT INTO knowledge_draftembedding (document_id, number, space_id, embedding)
                SELECT %(id)s, chunk.number, embedding.space_id, embedding.embedding
                FROM knowledge_chunk chunk JOIN knowledge_embedding embedding ON embedding.chunk_id = chunk.id
                WHERE chunk.document_id = %(twin)s AND embedding.space_id = %(space)s
                """,
                {"id": document.pk, "twin": twin.pk, "space": document.collection.space_id},
            )
    return True


# parse and split


def _parse(document: Document) -> None:
    """File to drafts."""
    _keep(document, status=Status.PARSING, progress=0, error="")
    last = timezone.now()

    def on_page(share: float) -> None:
        nonlocal last
        if (timezone.now() - last).total_seconds() >= 1:
            last = timezone.now()
            _keep(document, progress=share * PARSED_SHARE)

    try:
        file = files.opened(document.file)
    except FileNotFoundError:
        raise Unreadable("The file is gone.") from None
    with file:
        pages = parsing.pages(file, Kind(document.kind), on_page=on_page)
    options = splitting.Options.stored(document.options)
    _keep(document)
    if options.separators and options.is_separator_regex:  # which may take its time, and nothing else runs meanwhile
        _keep_for(document, splitting.SECONDS)
    pieces = splitting.split(pages, options)
    if not pieces:
        raise NoChunks
    with transaction.atomic():
        _keep(document, status=Status.EMBEDDING, progress=PARSED_SHARE)
        _forget_drafts(document)
        rows = (
            Draft(document_id=document.pk, number=number, content=piece.content, metadata=_metadata(document, piece))
            for number, piece in enumerate(pieces)
        )
        Draft.objects.bulk_create(rows, batch_size=1000)


def _metadata(document: Document, piece: splitting.Piece) -> dict[str, Any] | None:
    owns = document.metadata or {}
    pages: dict[str, Any] = {} if piece.page is None or "page" in owns else {"page": piece.page}
    if pages and piece.last_page != piece.page:
        pages["last_page"] = piece.last_page
    return pages | owns or None


def _forget_drafts(document: Document) -> None:
    Draft.objects.filter(document=document).delete()
    DraftEmbedding.objects.filter(document=document).delete()


# embed


async def _embed(document: Document) -> None:
    """A vector for each draft that has none in the collection's space."""
    space = await in_thread(_space)(document)
    total, drafts = await in_thread(_missing)(document, space)
    if not drafts:
        return
    principal = await principals.of_user(document.collection.owner_id)
    done = total - len(drafts)
    async with _kept(document):
        while drafts:
            texts = await in_thread(_texts)(document, drafts[:BATCH])
            count = fitting(texts)
            numbers, drafts = drafts[:count], drafts[count:]
            vectors = await embed(principal, space, texts[:count])
            done += count
            share = PARSED_SHARE + (1 - PARSED_SHARE) * done / total
            await in_thread(_draft_vectors)(document, space, numbers, vectors, share)


def _space(document: Document) -> Space:
    """The space of the collection as it is now."""
    collection = Collection.objects.select_related("space__router").filter(id=document.collection_id).first()
    if collection is None:
        raise _Lost
    return space_of(collection)


def space_of(collection: Collection) -> Space:
    """The collection's space; one without gets the default. Raises NoEmbeddingModel."""
    if collection.space is None:
        space = Space.objects.default()
        if space is None:
            raise NoEmbeddingModel
        Collection.objects.filter(id=collection.pk, space=None).update(space=space)
        collection.refresh_from_db(fields=["space"])
    assert collection.space is not None  # it has one now
    return collection.space


def _missing(document: Document, space: Space) -> tuple[int, list[int]]:
    """How many drafts there are, and the numbers of those without a vector in the space."""
    DraftEmbedding.objects.filter(document=document).exclude(space=space).delete()
    numbers = set(Draft.objects.filter(document=document).values_list("number", flat=True))
    if not numbers:
        raise NoChunks
    embedded = DraftEmbedding.objects.filter(document=document).values_list("number", flat=True)
    return len(numbers), sorted(numbers.difference(embedded))


def _texts(document: Document, numbers: Sequence[int]) -> list[str]:
    drafts = Draft.objects.filter(document=document, number__in=numbers).order_by("number")
    texts = list(drafts.values_list("content", flat=True))
    if len(texts) != len(numbers):
        raise _Lost
    return texts


def _draft_vectors(
    document: Document, space: Space, numbers: Sequence[int], vectors: Sequence[Vector], share: float
) -> None:
    document.tries = 0
    with transaction.atomic():
        _keep(document, progress=share, error="", tries=0, deaths=0)
        rows = ((document.pk, number, space.pk, vector) for number, vector in zip(numbers, vectors, strict=True))
        copy_vectors("knowledge_draftembedding (document_id, number, space_id, embedding)", "int8 int4 int8", rows)


def copy_vectors(table: str, types: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY of rows that end with a vector; `table` names the columns, `types` all but the last."""
    connection.ensure_connection()
    raw = connection.connection
    if raw.adapters.types.get("halfvec") is None:
        register_vector(raw)
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types([*types.split(), "halfvec"])
        for *values, vector in rows:
            copy.write_row((*values, HalfVector(vector)))


@asynccontextmanager
async def _kept(document: Document) -> AsyncIterator[None]:
    """Renew the lease while a model takes its time; when it is lost, whatever runs inside is broken off."""
    worker = asyncio.current_task()
    assert worker is not None
    lost = False

    async def beat() -> None:
        nonlocal lost
        while True:
            await asyncio.sleep(settings.INGESTION_LEASE_SECONDS / 3)
            try:
                if not await in_thread(Document.objects.keep)(document):
                    lost = True
                    worker.cancel()
                    return
            except DatabaseAway:
                pass  # the next step finds out

    heart = asyncio.ensure_future(beat())
    try:
        yield
    except asyncio.CancelledError:
        if lost:
            worker.uncancel()
            raise _Lost from None
        raise
    finally:
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)


# store


def _store(document: Document) -> None:
    """Drafts to chunks and vectors, in one transaction, in place of any there were."""
    stored = commit(lambda: _store_locked(document))
    if not stored:
        raise _PutOff(0)


def _store_locked(document: Document) -> bool:
    """False when the collection was given another space meanwhile, or lacks a vector: there is more to embed."""
    space = _locked(document.collection_id).space
    held = Document.objects.held(document).select_for_update(no_key=True).first()
    if held is None or space is None:
        raise _Lost
    drafts = Draft.objects.filter(document=document).count()
    if not drafts:
        raise NoChunks
    if DraftEmbedding.objects.filter(document=document, space=space).count() != drafts:
        return False
    Chunk.objects.filter(document=document).delete()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO knowledge_chunk (document_id, collection_id, number, content, metadata, created)
            SELECT document_id, %s, number, content, metadata, now() FROM knowledge_draft
            WHERE document_id = %s ORDER BY number
            """,
            [document.collection_id, document.pk],
        )
        cursor.execute(
            """
            INSERT INTO knowledge_embedding (chunk_id, space_id, collection_id, embedding)
            SELECT chunk.id, draft.space_id, chunk.collection_id, draft.embedding
            FROM knowledge_chunk chunk JOIN knowledge_draftembedding draft USING (document_id, number)
            WHERE document_id = %s ORDER BY number RETURNING vector_dims(embedding)
            """,
            [document.pk],
        )
        take_dimensions(space, {row[0] for row in cursor.fetchall()})
    _forget_drafts(document)
    Document.objects.held(document).update(
        status=Status.READY, progress=1, error="", edited=False, lease=None, lease_expires=None
    )
    return True


def _locked(collection_id: int) -> Collection:
    """The collection, locked before any of its documents: so two transactions never wait for each other."""
    locked = Collection.objects.select_for_update(no_key=True, of=("self",)).select_related("space__router")
    collection = locked.filter(id=collection_id).first()
    if collection is None:
        raise _Lost
    return collection


def take_dimensions(space: Space, found: set[int]) -> None:
    """The first vectors of a space say how long all are; raises ModelAnswersOtherSize for others."""
    Space.objects.filter(id=space.pk, dimensions=None).update(dimensions=min(found))
    expected = Space.objects.values_list("dimensions", flat=True).get(id=space.pk)
    for size in found - {expected}:
        raise ModelAnswersOtherSize(size, expected or 0)


# who waits for it


async def outcome(id: int) -> bool:
    """Wait until the document can be searched; False when that takes longer than UPLOAD_WAIT_SECONDS.

    Raises why it failed, or DocumentNotFound when it is gone. Whoever waits keeps the file: a document that fails, or
    whose model is away for UPLOAD_PATIENCE_SECONDS, is taken back.
    """
    started, pause = time.monotonic(), 0.05
    troubled: float | None = None
    while (now := time.monotonic()) - started < settings.UPLOAD_WAIT_SECONDS:
        document = await in_thread(Document.objects.filter(id=id).first)()
        if document is None:
            raise DocumentNotFound
        if document.status == Status.READY:
            return True
        if document.status == Status.FAILED:
            await in_thread(delete_document)(Document.objects.all(), id)
            raise APIError(document.error, status=document.failure)
        troubled = (troubled or now) if document.error else None
        if troubled is not None and now - troubled > settings.UPLOAD_PATIENCE_SECONDS:
            await in_thread(delete_document)(Document.objects.all(), id)
            raise VectorizationFailed(document.error)
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.5)
    return False


# chunks of the owner's own


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
                pairs = zip(batch, vectors, strict=True)
                made += [NewChunk(chunk["content"], chunk.get("metadata"), vector) for chunk, vector in pairs]
        except (CollectionModelGone, ModelAnswersOtherSize, UnreadableAnswer) as error:
            raise VectorizationFailed(_sentence(error)) from error
        appended = await in_thread(_append)(document, space, made)
        if isinstance(appended, Space):  # the collection was given another model meanwhile
            space = appended
        else:
            return appended


def _append(document: Document, space: Space, chunks: Sequence[NewChunk]) -> list[int] | Space:
    def appended() -> list[int] | Space:
        collection = _locked(document.collection_id)
        locked = Document.objects.select_for_update(no_key=True).filter(id=document.pk).first()
        if locked is None:
            raise DocumentNotFound
        if locked.status != Status.READY:
            raise DocumentUnfinished
        if collection.space is not None and collection.space != space:
            return collection.space
        last = Chunk.objects.filter(document=document).order_by("-number").values_list("number", flat=True).first()
        first = 0 if last is None else last + 1
        rows = [
            Chunk(
                document_id=document.pk,
                collection_id=document.collection_id,
                number=number,
                content=chunk.content,
                metadata=chunk.metadata,
            )
            for number, chunk in enumerate(chunks, first)
        ]
        Chunk.objects.bulk_create(rows)
        take_dimensions(space, {len(chunk.vector) for chunk in chunks})
        vectors = ((row.pk, space.pk, row.collection_id, chunk.vector) for row, chunk in zip(rows, chunks, strict=True))
        copy_vectors("knowledge_embedding (chunk_id, space_id, collection_id, embedding)", "int8 int8 int8", vectors)
        Document.objects.filter(id=document.pk).update(edited=True)
        return [row.number for row in rows]

    try:
        return commit(appended)
    except _Lost:
        raise DocumentNotFound from None


# deletion


def delete_document(documents: QuerySet[Document], id: int) -> None:
    """Delete one of the documents; raises DocumentNotFound. Whoever works on it finds out."""

    def delete() -> None:
        document = documents.filter(id=id).first()
        if document is None:
            raise DocumentNotFound
        _locked(document.collection_id)
        if not Document.objects.filter(id=id).delete()[0]:
            raise DocumentNotFound

    _without_loss(delete, DocumentNotFound)


def delete_chunk(documents: QuerySet[Document], document_id: int, number: int) -> None:
    """Delete a chunk of one of the documents, if there is one of that number; raises DocumentNotFound."""

    def delete() -> None:
        document = documents.filter(id=document_id).first()
        if document is None:
            raise DocumentNotFound
        _locked(document.collection_id)
        if Chunk.objects.filter(document=document, number=number).delete()[0]:
            Document.objects.filter(id=document_id).update(edited=True)

    _without_loss(delete, DocumentNotFound)


def delete_collection(collections: QuerySet[Collection], id: int) -> None:
    """Delete one of the collections with all that is in it; raises CollectionNotFound."""

    def delete() -> None:
        if not collections.filter(id=id).exists():
            raise CollectionNotFound
        _locked(id).delete()

    _without_loss(delete, CollectionNotFound)


def _without_loss(work: Callable[[], None], missing: type[APIError]) -> None:
    try:
        commit(work)
    except _Lost:
        raise missing from None
