"""What a document under way has so far: its chunks with their words, and vectors as a model answers them.

All of it is in memory until more than KEEP_SECONDS of work would be lost with the worker, or MAX_VECTORS wait there.
Then it lies in tables, where another goes on.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connection, transaction

from knowledge import words
from knowledge.embedding import Vector
from knowledge.errors import NoChunks
from knowledge.models import Document, Draft, Space
from knowledge.storing import Row
from knowledge.vectors import as_binary, copy_rows
from opengate.database import in_thread

KEEP_SECONDS = 2.0
MAX_VECTORS = 8_192
ROWS_AT_A_TIME = 1_024


class Lost(Exception):
    """The lease is another's, or the document is gone: whatever was meant to be done is none of ours."""


def keep(document: Document, *, seconds: float = 0, **changes: Any) -> None:
    """Store changes of the document and renew the lease, for work of `seconds`; raises Lost."""
    if not Document.objects.keep(document, seconds=seconds, **changes):
        raise Lost


def forget(document: Document) -> None:
    """Delete what lies in tables."""
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH vectors AS (DELETE FROM knowledge_draftembedding WHERE document_id = %(id)s) "
            "DELETE FROM knowledge_draft WHERE document_id = %(id)s",
            {"id": document.pk},
        )


class Drafts:
    """Those of one document, for the one who holds its lease."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.are_in_tables = False
        self._kept = time.monotonic()
        self._rows: list[Row] = []
        self._language, self._lexemes = "", set[bytes]()
        self._space: Space | None = None
        self._vectors: dict[int, bytes] = {}  # by number; those of the space that tables have not

    def take_up(self) -> bool:
        """Go on from what lies in tables; False when nothing does."""
        self.are_in_tables = Draft.objects.filter(document=self.document).exists()
        return self.are_in_tables

    def begin(self, language: str, pieces: Sequence[tuple[str, bytes | None]]) -> None:
        """Texts and their metadata, in order, whose words the language learns when they are stored."""
        readings, self._lexemes = words.read(language, [content for content, _ in pieces])
        self._language = language
        self._rows = [
            Row(number, *piece, language, *reading)
            for number, (piece, reading) in enumerate(zip(pieces, readings, strict=True))
        ]

    def missing(self, space: Space) -> tuple[int, Sequence[int]]:
        """How many chunks there are, and the numbers of those without a vector in the space; raises NoChunks.

        From now on the vectors are of this space.
        """
        if space != self._space:
            self._space, self._vectors = space, {}
        if not self.are_in_tables:
            return len(self._rows), [row.number for row in self._rows if row.number not in self._vectors]
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH others AS (
                  DELETE FROM knowledge_draftembedding WHERE document_id = %(id)s AND space_id <> %(space)s
                )
                SELECT number, EXISTS (
                  SELECT FROM knowledge_draftembedding vector
                  WHERE vector.document_id = %(id)s AND vector.number = draft.number AND vector.space_id = %(space)s
                ) FROM knowledge_draft draft WHERE document_id = %(id)s ORDER BY number
                """,
                {"id": self.document.pk, "space": space.pk},
            )
            rows = cursor.fetchall()
        if not rows:
            raise NoChunks
        return len(rows), [number for number, has_vector in rows if not has_vector and number not in self._vectors]

    async def texts(self, numbers: Sequence[int]) -> list[str]:
        """Of those chunks, in order; raises Lost when they are gone."""
        if not self.are_in_tables:
            return [self._rows[number].content for number in numbers]
        return await in_thread(self._texts)(numbers)

    def _texts(self, numbers: Sequence[int]) -> list[str]:
        drafts = Draft.objects.filter(document=self.document, number__in=numbers).order_by("number")
        texts = list(drafts.values_list("content", flat=True))
        if len(texts) != len(numbers):
            raise Lost
        return texts

    async def add(self, numbers: Sequence[int], vectors: Sequence[Vector], progress: float) -> None:
        """Vectors of those chunks; kept when it is time, with how far the document is. Raises Lost."""
        self._vectors |= zip(numbers, as_binary(vectors), strict=True)
        self.document.tries = 0  # it got further, so what went wrong before no longer counts
        if self.are_much_to_lose():
            await in_thread(self.keep)(progress=progress)

    @property
    def has_more_than_tables(self) -> bool:
        return bool(self._rows or self._vectors)

    def are_much_to_lose(self) -> bool:
        return time.monotonic() - self._kept > KEEP_SECONDS or len(self._vectors) >= MAX_VECTORS

    def keep(self, **changes: Any) -> None:
        """Put all that is in memory into tables, store changes of the document, renew the lease; raises Lost."""
        if self._vectors:
            changes |= {"error": "", "tries": 0, "deaths": 0}
        with transaction.atomic():
            keep(self.document, **changes)
            if self._rows:
                forget(self.document)
                words.learn(self._language, self._lexemes)
                copy_rows(
                    "knowledge_draft (document_id, number, content, metadata, language, length, lexemes)",
                    "int8 int4 text bytea text int4 bytea",
                    ((self.document.pk, *row) for row in self._rows),
                )
            if self._space is not None:
                vectors = (
                    (self.document.pk, number, self._space.pk, vector) for number, vector in self._vectors.items()
                )
                copy_rows(
                    "knowledge_draftembedding (document_id, number, space_id, embedding)",
                    "int8 int4 int8 bytea",
                    vectors,
                )
        self.are_in_tables, self._kept = True, time.monotonic()
        self._rows, self._lexemes, self._vectors = [], set(), {}

    def whole(self, language: str) -> Iterator[tuple[Sequence[Row], Sequence[bytes]]]:
        """All chunks, some at a time, and their vectors. The language learns their words, in this transaction."""
        if self.are_in_tables:
            yield from self._from_tables()
            return
        if language == self._language:
            words.learn(language, self._lexemes)
        for start in range(0, len(self._rows), ROWS_AT_A_TIME):
            rows = self._rows[start : start + ROWS_AT_A_TIME]
            yield rows, [self._vectors[row.number] for row in rows]

    def _from_tables(self) -> Iterator[tuple[Sequence[Row], Sequence[bytes]]]:
        assert self._space is not None
        last = -1
        with connection.cursor() as cursor:
            while True:
                cursor.execute(
                    """
                    SELECT number, content, jsonb_send(metadata), language, length, tsvectorsend(lexemes),
                      halfvec_send(embedding)
                    FROM knowledge_draft JOIN knowledge_draftembedding USING (document_id, number)
                    WHERE document_id = %s AND space_id = %s AND number > %s ORDER BY number LIMIT %s
                    """,
                    [self.document.pk, self._space.pk, last, ROWS_AT_A_TIME],
                )
                found = cursor.fetchall()
                if not found:
                    return
                yield [Row(*row) for *row, _ in found], [vector for *_, vector in found]
                last = found[-1][0]
