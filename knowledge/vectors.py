"""Vectors on their way into tables, and the space of a collection that they belong to."""

import struct
from collections.abc import Iterable
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


def copy_vectors(table: str, types: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY of rows that end with a vector; `table` names the columns, `types` all but the last."""
    copy_rows(table, f"{types} bytea", ((*values, _binary(vector)) for *values, vector in rows))


def copy_rows(table: str, types: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY; `bytea` is for whatever comes as Postgres takes it in binary.

    So do types that psycopg would have to be taught at each connection: classes that are never forgotten.
    """
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(types.split())
        for row in rows:
            copy.write_row(row)


def _binary(vector: Vector) -> bytes:
    import numpy as np

    return struct.pack(">HH", len(vector), 0) + np.asarray(vector).astype(">f2").tobytes()
