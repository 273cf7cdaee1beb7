"""The way of a document into its collection: parse, split, embed, store. Each step may be taken twice without harm.

Whoever works on a document holds a lease. What is done is kept in drafts, so that another goes on where a worker died;
chunks and vectors come into the collection in one transaction, and only then can the document be found.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from accounts import principals
from accounts.errors import InvalidKey
from inference.errors import UnreadableAnswer
from knowledge import files, parsing, splitting, words
from knowledge.embedding import Vector, embed, fitting
from knowledge.errors import (
    NoChunks,
    StorageAway,
    Unreadable,
    VectorizationFailed,
    may_heal,
    sentence_of,
)
from knowledge.kinds import Kind
from knowledge.models import Chunk, Collection, Document, Draft, Space, Status
from knowledge.vectors import copy_rows, copy_vectors, space_of, take_dimensions
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


class _Lost(Exception):
    """The lease is another's, or the document is gone: whatever was meant to be done is none of ours."""


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
        if document.deaths > DEATHS:
            raise Unreadable(f"Its worker died {DEATHS} times in a row.")
        if document.status != Status.EMBEDDING and not _has_twin(document):
            _parse(document)
        space = _space(document)
        total, drafts = _missing(document, space)
        if drafts:
            in_loop(_embed(document, space, total, drafts))
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
        _put_off(document, _PutOff(min(2.0**document.tries, LONGEST_PAUSE_SECONDS), sentence_of(error)))
    else:
        is_told = isinstance(error, VectorizationFailed | StorageAway)
        _fail(document, error if is_told else VectorizationFailed(error))


def _fail(document: Document, error: APIError) -> None:
    with transaction.atomic():
        failed = {"status": Status.FAILED, "error": sentence_of(error), "failure": error.status}
        if Document.objects.held(document).update(**failed, lease=None, lease_expires=None):
            _forget_drafts(document)


def _put_off(document: Document, pause: _PutOff) -> None:
    tries = document.tries + bool(pause.reason)
    due = timezone.now() + timedelta(seconds=pause.seconds)
    Document.objects.held(document).update(
        due=due, tries=tries, deaths=0, error=pause.reason, lease=None, lease_expires=None
    )


def _keep(document: Document, *, seconds: float = 0, **changes: Any) -> None:
    """Store changes and renew the lease, for work of `seconds`; raises _Lost."""
    if not Document.objects.keep(document, seconds=seconds, **changes):
        raise _Lost


# the same file


def _has_twin(document: Document) -> bool:
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
        _keep(document, status=Status.EMBEDDING, progress=PARSED_SHARE)
        if twins.filter(id=twin.pk).select_for_update(no_key=True).first() is None:
            raise _PutOff(0)  # edited or deleted meanwhile; from here on it stays as it is
        _forget_drafts(document)
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
    # An expression of the caller's may take its time, and nothing else runs meanwhile.
    _keep(document, seconds=splitting.SECONDS if options.separators and options.is_separator_regex else 0)
    pieces = splitting.split(pages, options)
    if not pieces:
        raise NoChunks
    _draft(document, pieces)


def _draft(document: Document, pieces: Sequence[splitting.Piece]) -> None:
    """Keep the pieces, and the words of each, which its collection's language learns."""
    language = document.collection.language
    readings, lexemes = words.read(language, [piece.content for piece in pieces])
    with transaction.atomic(), drafting():
        _keep(document, status=Status.EMBEDDING, progress=PARSED_SHARE)
        _forget_drafts(document)
        words.learn(language, lexemes)
        copy_rows(
            "knowledge_draft (document_id, number, content, metadata, language, length, lexemes)",
            "int8 int4 text bytea text int4 bytea",
            (
                (document.pk, number, piece.content, _json(_metadata(document, piece)), language, *reading)
                for number, (piece, reading) in enumerate(zip(pieces, readings, strict=True))
            ),
        )


@contextmanager
def drafting() -> Iterator[None]:
    """Nobody waits for the disk in this transaction: drafts that are lost with the machine are made again."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
    yield


def _json(value: dict[str, Any] | None) -> bytes | None:
    """As Postgres takes a `jsonb` in binary."""
    return None if value is None else b"\1" + json.dumps(value).encode()


def _metadata(document: Document, piece: splitting.Piece) -> dict[str, Any] | None:
    owns = document.metadata or {}
    pages: dict[str, Any] = {} if piece.page is None or "page" in owns else {"page": piece.page}
    if pages and piece.last_page != piece.page:
        pages["last_page"] = piece.last_page
    return pages | owns or None


def _forget_drafts(document: Document) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH vectors AS (DELETE FROM knowledge_draftembedding WHERE document_id = %(id)s) "
            "DELETE FROM knowledge_draft WHERE document_id = %(id)s",
            {"id": document.pk},
        )


# embed


async def _embed(document: Document, space: Space, total: int, drafts: Sequence[int]) -> None:
    """A vector in the space for each of the drafts, by their numbers; there are `total` in all."""
    principal = await principals.of_user(document.collection.owner_id)
    done = total - len(drafts)
    async with _kept(document):
        for start in range(0, len(drafts), READ_AHEAD):
            numbers = drafts[start : start + READ_AHEAD]
            texts = await in_thread(_texts)(document, numbers)
            while texts:
                count = fitting(texts)
                vectors = await embed(principal, space, texts[:count])
                done += count
                share = PARSED_SHARE + (1 - PARSED_SHARE) * done / total
                await in_thread(_draft_vectors)(document, space, numbers[:count], vectors, share)
                numbers, texts = numbers[count:], texts[count:]


def _space(document: Document) -> Space:
    """The space of the collection as it is now."""
    collection = Collection.objects.select_related("space__router").filter(id=document.collection_id).first()
    if collection is None:
        raise _Lost
    return space_of(collection)


def _missing(document: Document, space: Space) -> tuple[int, list[int]]:
    """How many drafts there are, and the numbers of those without a vector in the space."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH others AS (DELETE FROM knowledge_draftembedding WHERE document_id = %(id)s AND space_id <> %(space)s)
            SELECT number, EXISTS (
              SELECT FROM knowledge_draftembedding vector
              WHERE vector.document_id = %(id)s AND vector.number = draft.number AND vector.space_id = %(space)s
            ) FROM knowledge_draft draft WHERE document_id = %(id)s ORDER BY number
            """,
            {"id": document.pk, "space": space.pk},
        )
        rows = cursor.fetchall()
    if not rows:
        raise NoChunks
    return len(rows), [number for number, is_embedded in rows if not is_embedded]


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
    with transaction.atomic(), drafting():
        _keep(document, progress=share, error="", tries=0, deaths=0)
        rows = ((document.pk, number, space.pk, vector) for number, vector in zip(numbers, vectors, strict=True))
        copy_vectors("knowledge_draftembedding (document_id, number, space_id, embedding)", "int8 int4 int8", rows)


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
    collection = Collection.objects.locked(document.collection_id)
    held = Document.objects.held(document).select_for_update(no_key=True).first()
    if held is None or collection is None or collection.space is None:
        raise _Lost
    space = collection.space
    known: dict[str, str | int] = {
        "id": document.pk,
        "space": space.pk,
        "collection": collection.pk,
        "language": collection.language,
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*), count(vector.number), array_agg(DISTINCT vector_dims(embedding)),
              EXISTS (SELECT FROM knowledge_chunk WHERE document_id = %(id)s)
            FROM knowledge_draft draft LEFT JOIN knowledge_draftembedding vector
              ON vector.document_id = %(id)s AND vector.number = draft.number AND vector.space_id = %(space)s
            WHERE draft.document_id = %(id)s
            """,
            known,
        )
        drafts, vectors, sizes, has_chunks = cursor.fetchone()
        if not drafts:
            raise NoChunks
        if vectors != drafts:
            return False
        take_dimensions(space, set(sizes))
        if has_chunks:
            Chunk.objects.filter(document=document).delete()
        # Read once, and without a join of what was just written, of whose size the planner knows nothing.
        cursor.execute(
            """
            WITH whole AS MATERIALIZED (
              SELECT nextval(pg_get_serial_sequence('knowledge_chunk', 'id')) AS id, ordered.*
              FROM (
                SELECT number, content, metadata, language, length, lexemes, embedding
                FROM knowledge_draft draft JOIN knowledge_draftembedding USING (document_id, number)
                WHERE document_id = %(id)s ORDER BY number
              ) ordered
            ), chunks AS (
              INSERT INTO knowledge_chunk (id, document_id, collection_id, number, content, metadata, created)
              SELECT id, %(id)s, %(collection)s, number, content, metadata, now() FROM whole
            ), words AS (
              INSERT INTO knowledge_lexemes (chunk_id, collection_id, language, length, lexemes)
              SELECT id, %(collection)s, language, length, lexemes FROM whole WHERE language = %(language)s
            )
            INSERT INTO knowledge_embedding (chunk_id, space_id, collection_id, embedding)
            SELECT id, %(space)s, %(collection)s, embedding FROM whole
            """,
            known,
        )
    _forget_drafts(document)
    Document.objects.held(document).update(
        status=Status.READY, progress=1, error="", edited=False, lease=None, lease_expires=None
    )
    return True
