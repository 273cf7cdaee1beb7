"""The way of a document into its collection: parse, split, embed, store. Each step may be taken twice without harm.

Whoever works on a document holds a lease. What took long is kept in drafts, so that another goes on where a worker
died; chunks and vectors come into the collection in one transaction, and only then can the document be found.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from accounts import principals
from accounts.errors import InvalidKey
from inference.errors import UnreadableAnswer
from knowledge import files, parsing, splitting
from knowledge.drafts import Drafts, Lost, forget, keep
from knowledge.embedding import embed, fitting
from knowledge.errors import (
    NoChunks,
    StorageAway,
    Unreadable,
    VectorizationFailed,
    may_heal,
    sentence_of,
)
from knowledge.kinds import Kind
from knowledge.models import Collection, Document, Space, Status
from knowledge.storing import as_json, store
from knowledge.vectors import space_of
from opengate.database import commit, in_thread
from opengate.errors import APIError, DatabaseAway
from opengate.loops import in_loop

logger = logging.getLogger(__name__)

PARSED_SHARE = 0.3  # of the progress
ELDER_SECONDS = 1.0
STEPS = (Status.PENDING, Status.PARSING, Status.EMBEDDING)
LONGEST_PAUSE_SECONDS = 300.0
DEATHS = 10  # of its workers in a row that a document may cause
UNREADABLE_ANSWERS = 3
READ_AHEAD = 512  # texts at once


class _PutOff(Exception):
    """Nothing can be done for a while; `reason` is what the owner reads meanwhile."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.reason = reason


def ingest(id: int) -> None:
    """Bring a document as far as it gets: to `ready`, to `failed` with a sentence, or to its next try.

    Does nothing for one that is gone, finished, not due, or in the hands of another.
    """
    document = Document.objects.claim(id, timezone.now())
    if document is None:
        return
    try:
        _bring_on(document, Drafts(document))
    except Lost:
        logger.info("Document %s is gone, or another works on it.", id)


def _bring_on(document: Document, drafts: Drafts) -> None:
    try:
        collection = _collection(document)
        if document.deaths > DEATHS:
            raise Unreadable(f"Its worker died {DEATHS} times in a row.")
        if not (document.status == Status.EMBEDDING and drafts.take_up()) and not _has_twin(document, drafts):
            _parse(document, drafts)
        if drafts.are_in_tables:
            collection = _collection(document)  # it took its time
        space = space_of(collection)
        total, numbers = drafts.missing(space)
        if numbers:
            in_loop(_embed(drafts, space, total, numbers))
        _store(document, drafts, space)
    except Lost:
        raise
    except _PutOff as pause:
        _put_off(document, drafts, pause)
    except (OperationalError, InterfaceError, DatabaseAway):
        raise  # nobody can be told; the lease runs out
    except (Unreadable, NoChunks) as error:
        _fail(document, error)
    except APIError as error:
        _fail_or_wait(document, drafts, error)
    except Exception:
        logger.exception("Document %s cannot be ingested.", document.pk)
        _fail(document, APIError("An unexpected error occurred."))


def _fail_or_wait(document: Document, drafts: Drafts, error: APIError) -> None:
    """What a model answered: try again later what may heal."""
    if isinstance(error, InvalidKey):
        _fail(document, Unreadable("The account of the collection's owner is closed."))
        return
    tries = UNREADABLE_ANSWERS if isinstance(error, UnreadableAnswer) else settings.INGESTION_TRIES
    if may_heal(error) and document.tries + 1 < tries:
        _put_off(document, drafts, _PutOff(min(2.0**document.tries, LONGEST_PAUSE_SECONDS), sentence_of(error)))
    else:
        is_told = isinstance(error, VectorizationFailed | StorageAway)
        _fail(document, error if is_told else VectorizationFailed(error))


def _fail(document: Document, error: APIError) -> None:
    with transaction.atomic():
        failed = {"status": Status.FAILED, "error": sentence_of(error), "failure": error.status}
        if Document.objects.release(document, **failed):
            forget(document)


def _put_off(document: Document, drafts: Drafts, pause: _PutOff) -> None:
    if drafts.has_more_than_tables:
        drafts.keep()
    tries = document.tries + bool(pause.reason)
    due = timezone.now() + timedelta(seconds=pause.seconds)
    Document.objects.release(document, due=due, tries=tries, deaths=0, error=pause.reason)


def _collection(document: Document) -> Collection:
    """The document's, as it is now, with its space and model."""
    collection = Collection.objects.select_related("space__router").filter(id=document.collection_id).first()
    if collection is None:
        raise Lost
    document.collection = collection
    return collection


# the same file


def _has_twin(document: Document, drafts: Drafts) -> bool:
    """Draft the chunks and vectors of a document of the same collection, file and options, if there is one.

    One that is further on its way, or came first, is waited for: what is the same is read and paid for once.
    """
    if not document.fingerprint:
        return False
    same = Document.objects.filter(collection=document.collection_id, fingerprint=document.fingerprint, edited=False)
    others = same.exclude(id=document.pk).values_list("id", "status")
    found = list(others.order_by("id"))
    if not found:
        return False  # as nearly always
    further = STEPS[STEPS.index(Status(document.status)) + 1 :]
    if any(status in further or (status == document.status and id < document.pk) for id, status in found):
        raise _PutOff(ELDER_SECONDS)
    twins = same.filter(
        Q(metadata__isnull=True) | ~Q(metadata__has_any_keys=["page", "last_page"])
    )  # else the page is the owner's word
    twins = twins.filter(status=Status.READY).exclude(id=document.pk).order_by("id")
    twin = twins.first()
    if twin is None:
        return False
    with transaction.atomic():
        keep(document, status=Status.EMBEDDING, progress=PARSED_SHARE)
        if twins.filter(id=twin.pk).select_for_update(no_key=True).first() is None:
            raise _PutOff(0)  # edited or deleted meanwhile; from here on it stays as it is
        forget(document)
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO knowledge_draft (document_id, number, content, metadata, language, length, lexemes)
                SELECT %(id)s, number, content, nullif(
                  jsonb_strip_nulls(
                    jsonb_build_object('page', metadata -> 'page', 'last_page', metadata -> 'last_page')
                  ) || coalesce((SELECT metadata FROM knowledge_document WHERE id = %(id)s), '{}'), '{}'),
                  lexemes.language, lexemes.length, lexemes.lexemes
                FROM knowledge_chunk chunk JOIN knowledge_lexemes lexemes ON lexemes.chunk_id = chunk.id
                WHERE document_id = %(twin)s
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
    return drafts.take_up()


# parse and split


def _parse(document: Document, drafts: Drafts) -> None:
    """File to drafts."""
    keep(document, status=Status.PARSING, progress=0, error="")
    last = timezone.now()

    def on_page(share: float) -> None:
        nonlocal last
        if (timezone.now() - last).total_seconds() >= 1:
            last = timezone.now()
            keep(document, progress=share * PARSED_SHARE)

    try:
        file = files.opened(document.file)
    except FileNotFoundError:
        raise Unreadable("The file is gone.") from None
    with file:
        pages = parsing.pages(file, Kind(document.kind), on_page=on_page)
    options = splitting.Options.stored(document.options)
    if options.separators and options.is_separator_regex:  # it may take its time, and nothing else runs meanwhile
        keep(document, seconds=splitting.SECONDS)
    pieces = splitting.split(pages, options)
    if not pieces:
        raise NoChunks
    described = [(piece.content, as_json(_metadata(document, piece))) for piece in pieces]
    drafts.begin(document.collection.language, described)
    changes: dict[str, Any] = {"status": Status.EMBEDDING, "progress": PARSED_SHARE}
    if drafts.are_much_to_lose():
        drafts.keep(**changes)
    else:
        keep(document, **changes)


def _metadata(document: Document, piece: splitting.Piece) -> dict[str, Any] | None:
    owns = document.metadata or {}
    pages: dict[str, Any] = {} if piece.page is None or "page" in owns else {"page": piece.page}
    if pages and piece.last_page != piece.page:
        pages["last_page"] = piece.last_page
    return pages | owns or None


# embed


async def _embed(drafts: Drafts, space: Space, total: int, numbers: Sequence[int]) -> None:
    """A vector in the space for each of those drafts; there are `total` in all."""
    done = total - len(numbers)
    async with _kept(drafts.document):
        principal = await principals.of_user(drafts.document.collection.owner_id)
        for start in range(0, len(numbers), READ_AHEAD):
            ahead = numbers[start : start + READ_AHEAD]
            texts = await drafts.texts(ahead)
            while texts:
                count = fitting(texts)
                vectors = await embed(principal, space, texts[:count])
                done += count
                await drafts.add(ahead[:count], vectors, PARSED_SHARE + (1 - PARSED_SHARE) * done / total)
                ahead, texts = ahead[count:], texts[count:]


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
            raise Lost from None
        raise
    finally:
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)


# store


def _store(document: Document, drafts: Drafts, space: Space) -> None:
    """Drafts to chunks and vectors, in one transaction."""
    if drafts.are_in_tables and drafts.has_more_than_tables:
        drafts.keep()
    if not commit(lambda: _store_locked(document, drafts, space)):
        raise _PutOff(0)


def _store_locked(document: Document, drafts: Drafts, space: Space) -> bool:
    """False when the collection was given another space meanwhile: there is more to embed."""
    collection = Collection.objects.locked(document.collection_id)
    if collection is None:
        raise Lost
    if collection.space_id != space.pk or drafts.missing(space)[1]:
        return False
    if not Document.objects.release(document, status=Status.READY, progress=1, error="", edited=False):
        raise Lost
    for rows, vectors in drafts.whole(collection.language):
        store(document, collection, space, rows, vectors)
    if drafts.are_in_tables:
        forget(document)
    return True
