"""Vectors on their way into tables, and the space of a collection that they belong to."""

from collections.abc import Iterable
from typing import Any

from django.db import connection
from pgvector import HalfVector

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
    Space.objects.filter(id=space.pk, dimensions=None).update(dimensions=min(found))
    expected = Space.objects.values_list("dimensions", flat=True).get(id=space.pk)
    for size in found - {expected}:
        raise ModelAnswersOtherSize(size, expected or 0)


def copy_vectors(table: str, types: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY of rows that end with a vector; `table` names the columns, `types` all but the last."""
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        # As bytes, which this COPY passes as they are: pgvector's own types would have to be registered at each
        # connection, and each time leave classes behind that are never forgotten.
        copy.set_types([*types.split(), "bytea"])
        for *values, vector in rows:
            copy.write_row((*values, HalfVector(vector).to_binary()))
