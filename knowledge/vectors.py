"""Vectors on their way into tables, and the space of a collection that they belong to."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection
from pydantic_core import to_json

from knowledge.embedding import Vector
from knowledge.errors import ModelAnswersOtherSize, NoEmbeddingModel
from knowledge.models import Collection, Space


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


def take_dimensions(space: Space, found: set[int]) -> None:
    """The first vectors of a space say how long all are; raises ModelAnswersOtherSize for others."""
    if space.dimensions is None:
        Space.objects.filter(id=space.pk, dimensions=None).update(dimensions=min(found))
        space.refresh_from_db(fields=["dimensions"])
    for size in found - {space.dimensions}:
        raise ModelAnswersOtherSize(size, space.dimensions or 0)


def as_text(vector: Vector) -> str:
    """As Postgres reads a vector, in a twentieth of the time that Python takes for it."""
    return to_json([*map(float, vector)]).decode()


def store_vectors(space: Space, collection_id: int, ids: Sequence[int], vectors: Sequence[bytes]) -> None:
    """Vectors of the chunks with those ids; raises ModelAnswersOtherSize for vectors that are not of the space."""
    take_dimensions(space, {int.from_bytes(vector[:2]) for vector in vectors})
    copy_rows(
        "knowledge_embedding (chunk_id, space_id, collection_id, embedding)",
        "int8 int8 int8 bytea",
        ((id, space.pk, collection_id, vector) for id, vector in zip(ids, vectors, strict=True)),
    )


def copy_rows(table: str, types: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY; `bytea` is for whatever comes as Postgres takes it in binary.

    So do types that psycopg would have to be taught at each connection: classes that are never forgotten.
    """
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(types.split())
        for row in rows:
            copy.write_row(row)


def as_binary(vectors: Sequence[Vector]) -> list[bytes]:
    """Each as Postgres takes a `halfvec` in binary; all are of one size."""
    import numpy as np

    head = struct.pack(">HH", len(vectors[0]), 0)
    return [head + vector.tobytes() for vector in np.asarray(vectors).astype(">f2")]
