"""Chunks, their words and their vectors into their tables, as binary COPY takes them."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connection
from django.utils import timezone

from knowledge.models import Collection, Document, Space
from knowledge.vectors import copy_rows, store_vectors


class Row(NamedTuple):
    """A chunk, all but its vector; `metadata` is JSON and `lexemes` a tsvector as Postgres takes them in binary.

    Its words are known to a language, or to none: then the database reads them when the chunk comes.
    """

    number: int
    content: str
    metadata: bytes | None
    language: str | None = None
    length: int | None = None
    lexemes: bytes | None = None


def as_json(value: dict[str, Any] | None) -> bytes | None:
    """As Postgres takes a `jsonb` in binary."""
    return None if value is None else b"\1" + json.dumps(value).encode()


def store(
    document: Document, collection: Collection, space: Space, rows: Sequence[Row], vectors: Sequence[bytes]
) -> None:
    """Make them the document's chunks, each with its vector of the space, in this transaction.

    Raises ModelAnswersOtherSize for vectors that are not of the space.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval(name) FROM pg_get_serial_sequence('knowledge_chunk', 'id') AS name, generate_series(1, %s)",
            [len(rows)],
        )
        ids = [id for (id,) in cursor.fetchall()]
    now = timezone.now()
    copy_rows(  # before the chunks: of those that come without, the database reads the words
        "knowledge_lexemes (chunk_id, collection_id, language, length, lexemes)",
        "int8 int8 text int4 bytea",
        (
            (id, collection.pk, row.language, row.length, row.lexemes)
            for id, row in zip(ids, rows, strict=True)
            if row.language == collection.language
        ),
    )
    copy_rows(
        "knowledge_chunk (id, document_id, collection_id, number, content, metadata, created)",
        "int8 int8 int8 int4 text bytea timestamptz",
        (
            (id, document.pk, collection.pk, row.number, row.content, row.metadata, now)
            for id, row in zip(ids, rows, strict=True)
        ),
    )
    store_vectors(space, collection.pk, ids, vectors)
