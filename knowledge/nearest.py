"""By meaning: the vectors nearest to the query's, one by one where they are few, by an index where they are many."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

from django.db.backends.utils import CursorWrapper

from knowledge.models import Space
from knowledge.queries import Asked, Scope

# What was measured: a vector beside its neighbours costs half a microsecond, one that the index leads to sixteen times
# as much. Below EXACT_ROWS nothing is worth a thought.
EXACT_ROWS = 5_000
INDEX_COST = 16
EF_SEARCH = 150
MAX_EF_SEARCH = 1000
MAX_SCAN_TUPLES = 40_000


def statement(
    cursor: CursorWrapper, scope: Scope, asked: Asked, conditions: str, parameters: dict[str, Any], depth: int
) -> str:
    """`nearest`: at least the `depth` nearest of the chunks, and their cosine distances (0 same … 2 opposite)."""
    if not asked.vectors:
        return ""
    parameters |= {"nearest": depth, "spaces": list(asked.vectors)}
    parts = [_nearest_in(cursor, id, scope, asked, conditions, parameters, depth) for id in asked.vectors]
    return f"nearest AS MATERIALIZED ({' UNION ALL '.join(f'({part})' for part in parts)})"


def _nearest_in(
    cursor: CursorWrapper,
    space_id: int,
    scope: Scope,
    asked: Asked,
    conditions: str,
    parameters: dict[str, Any],
    depth: int,
) -> str:
    """The nearest in one space: compared one by one where they are few, else as the index leads to them."""
    parameters[f"vector_{space_id}"] = str(asked.vectors[space_id])
    vector = f"%(vector_{space_id})s"
    # A collection that got another space since the query was embedded is still searched in its former one.
    # (As OR rather than CASE, of which the planner would expect next to nothing.)
    inside = (
        f"SELECT collection.id FROM knowledge_collection collection WHERE {scope.sql} AND "
        f"(collection.space_id = {space_id} OR (collection.previous_space_id = {space_id} "
        "AND (collection.space_id = ANY(%(spaces)s)) IS NOT TRUE))"
    )
    where = f"space_id = {space_id} AND collection_id IN ({inside})"
    if conditions:
        where += f" AND chunk_id IN (SELECT chunk.id FROM knowledge_chunk chunk WHERE {conditions})"
    rows = scope.chunks(space_id)
    indexed = _indexed(cursor, space_id) if rows > EXACT_ROWS and depth <= MAX_EF_SEARCH // 2 else 0
    many = worth_an_index(indexed, depth)
    if conditions and rows > EXACT_ROWS:
        cursor.execute(
            f"SELECT chunk.id FROM knowledge_chunk chunk WHERE {conditions} AND "
            f"collection_id IN ({inside}) LIMIT {many}",
            parameters,
        )
        kept = [row[0] for row in cursor.fetchall()]
        if len(kept) < many:  # each is looked up: whatever the planner expects, it reads no more than these
            parameters[f"kept_{space_id}"] = kept
            where = f"space_id = {space_id} AND collection_id IN ({inside}) AND chunk_id = ANY(%(kept_{space_id})s)"
            rows = len(kept)
    # An array leads the planner to the collections' own index, whatever it believes of their number.
    of_few = where.replace(f"collection_id IN ({inside})", f"collection_id = ANY(ARRAY({inside}))", 1)
    exact = (
        f"SELECT chunk_id, embedding <=> {vector}::halfvec AS distance FROM knowledge_embedding WHERE {of_few} "
        f"ORDER BY (embedding <=> {vector}::halfvec) + 0, chunk_id LIMIT %(nearest)s"
    )
    if not indexed or rows < many:
        return exact
    size = asked.dimensions[space_id]
    typed = f"embedding::halfvec({size}) <=> {vector}::halfvec({size})"
    wide = (
        f"SELECT chunk_id, {typed} AS distance FROM knowledge_embedding WHERE {where} "
        f"ORDER BY {typed} LIMIT %(nearest)s"
    )
    with _by_index(cursor, depth):
        cursor.execute(wide, parameters)
        found = cursor.fetchall()
    if len(found) < min(depth, rows):
        return exact  # the index gave up before it found enough
    parameters[f"found_{space_id}"] = [row[0] for row in found]
    parameters[f"distances_{space_id}"] = [row[1] for row in found]
    return (
        f"SELECT * FROM unnest(%(found_{space_id})s::bigint[], %(distances_{space_id})s::float[]) "
        "AS found (chunk_id, distance)"
    )


def worth_an_index(indexed: int, depth: int) -> int:
    """From how many rows on the index is quicker than comparing one by one, when they are some of `indexed`.

    Of n rows among N, the index leads to about depth * N / n before it has found enough; that is INDEX_COST times as
    dear as each of n comparisons.
    """
    return max(EXACT_ROWS, isqrt(INDEX_COST * (EF_SEARCH + depth) * indexed)) + 1


def _indexed(cursor: CursorWrapper, space_id: int) -> int:
    """How many vectors the space's index holds; 0 without one."""
    cursor.execute(
        "SELECT greatest(class.reltuples, 1)::bigint FROM pg_class class JOIN pg_index index "
        "ON index.indexrelid = class.oid WHERE class.oid = to_regclass(%s) AND index.indisvalid",
        [Space(id=space_id).index_name],
    )
    row = cursor.fetchone()
    return row[0] if row else 0


@contextmanager
def _by_index(cursor: CursorWrapper, depth: int) -> Iterator[None]:
    """The planner takes the index, which goes on until enough is found that the caller may read."""
    cursor.execute(
        f"SET LOCAL hnsw.ef_search = {min(max(EF_SEARCH, 2 * depth), MAX_EF_SEARCH)}; "
        "SET LOCAL hnsw.iterative_scan = relaxed_order; "
        f"SET LOCAL hnsw.max_scan_tuples = {MAX_SCAN_TUPLES}; SET LOCAL enable_sort = off"
    )
    yield
    cursor.execute("SET LOCAL enable_sort = on")


def share_found(cursor: CursorWrapper, space: Space, owner_id: int, vector: str, depth: int) -> float:
    """Of the `depth` vectors truly nearest to one that the owner may find, the share that the index finds."""
    size = space.dimensions
    inside = (
        "space_id = %(space)s AND collection_id IN (SELECT id FROM knowledge_collection "
        "WHERE space_id = %(space)s AND (owner_id = %(owner)s OR visibility = 'public'))"
    )
    parameters: dict[str, Any] = {"space": space.pk, "owner": owner_id, "vector": vector, "depth": depth}
    exact = f"embedding::halfvec({size}) <=> %(vector)s::halfvec({size})"
    cursor.execute(
        f"SELECT {exact} FROM knowledge_embedding WHERE {inside} ORDER BY ({exact}) + 0 LIMIT %(depth)s",
        parameters,
    )
    truly = [row[0] for row in cursor.fetchall()]
    with _by_index(cursor, depth):
        cursor.execute(
            f"SELECT {exact} AS distance FROM knowledge_embedding WHERE {inside} ORDER BY {exact} LIMIT %(depth)s",
            parameters,
        )
        found = [row[0] for row in cursor.fetchall()]
    return sum(distance <= truly[-1] for distance in found) / len(truly) if truly else 1.0
