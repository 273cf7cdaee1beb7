"""By meaning: the vectors nearest to the query's, one by one where they are few, by an index where they are many."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

from django.db.backends.utils import CursorWrapper

from knowledge.models import Space
from knowledge.queries import Scope, Search

# What was measured: a vector beside its neighbours costs half a microsecond, one that the index leads to sixteen times
# as much. Below EXACT_ROWS nothing is worth a thought.
EXACT_ROWS = 5_000
INDEX_COST = 16
EF_SEARCH = 150
MAX_EF_SEARCH = 1000
MAX_SCAN_TUPLES = 40_000


def statement(search: Search, depth: int) -> str:
    """`nearest`: at least the `depth` nearest of the chunks, and their cosine distances (0 same … 2 opposite)."""
    vectors = search.asked.vectors
    if not vectors:
        return ""
    search.parameters |= {"nearest": depth, "spaces": list(vectors)}
    search.parameters |= {f"vector_{id}": str(vector) for id, vector in vectors.items()}
    parts = [_nearest_in(search, id, depth) for id in vectors]
    return f"nearest AS MATERIALIZED ({' UNION ALL '.join(f'({part})' for part in parts)})"


def _nearest_in(search: Search, space_id: int, depth: int) -> str:
    """The nearest in one space: compared one by one where they are few, else as the index leads to them."""
    # A collection that got another space since the query was embedded is still searched in its former one.
    # (As OR rather than CASE, of which the planner would expect next to nothing.)
    inside = (
        f"SELECT collection.id FROM knowledge_collection collection WHERE {search.scope.sql} AND "
        f"(collection.space_id = {space_id} OR (collection.previous_space_id = {space_id} "
        "AND (collection.space_id = ANY(%(spaces)s)) IS NOT TRUE))"
    )
    rows = search.scope.chunks(space_id)
    indexed = _indexed(search.cursor, space_id) if rows > EXACT_ROWS and depth <= MAX_EF_SEARCH // 2 else 0
    many = worth_an_index(indexed, depth)
    chosen = ""
    if search.conditions:
        chosen = f" AND chunk_id IN (SELECT chunk.id FROM knowledge_chunk chunk WHERE {search.conditions})"
        kept = _kept(search, inside, many) if rows > EXACT_ROWS else None
        if kept is not None:  # each is looked up: whatever the planner expects, it reads no more than these
            search.parameters[f"kept_{space_id}"] = kept
            chosen, rows = f" AND chunk_id = ANY(%(kept_{space_id})s)", len(kept)
    if indexed and rows >= many:
        found = _led_to(search, space_id, f"collection_id IN ({inside}){chosen}", depth)
        if len(found) >= min(depth, rows):
            search.parameters[f"found_{space_id}"] = [id for id, _ in found]
            search.parameters[f"distances_{space_id}"] = [distance for _, distance in found]
            return (
                f"SELECT * FROM unnest(%(found_{space_id})s::bigint[], %(distances_{space_id})s::float[]) "
                "AS found (chunk_id, distance)"
            )
        # The index gave up before it found enough.
    # An array leads the planner to the collections' own index, whatever it believes of their number.
    return _exact(space_id, f"collection_id = ANY(ARRAY({inside})){chosen}")


def _kept(search: Search, inside: str, many: int) -> list[int] | None:
    """Ids of the chunks that fulfil the conditions; None for `many` of them."""
    search.cursor.execute(
        f"SELECT chunk.id FROM knowledge_chunk chunk WHERE {search.conditions} AND "
        f"collection_id IN ({inside}) LIMIT {many}",
        search.parameters,
    )
    kept = [row[0] for row in search.cursor.fetchall()]
    return kept if len(kept) < many else None


def _exact(space_id: int, where: str) -> str:
    """The nearest of all those, compared one by one."""
    distance = f"embedding <=> %(vector_{space_id})s::halfvec"
    return (
        f"SELECT chunk_id, {distance} AS distance FROM knowledge_embedding WHERE space_id = {space_id} AND {where} "
        f"ORDER BY ({distance}) + 0, chunk_id LIMIT %(nearest)s"
    )


def _led_to(search: Search, space_id: int, where: str, depth: int) -> list[tuple[int, float]]:
    """The nearest to which the index leads, and their distances: fewer than `depth` where it gives up."""
    size = len(search.asked.vectors[space_id])
    distance = f"embedding::halfvec({size}) <=> %(vector_{space_id})s::halfvec({size})"
    with _by_index(search.cursor, depth):
        search.cursor.execute(
            f"SELECT chunk_id, {distance} AS distance FROM knowledge_embedding WHERE space_id = {space_id} AND {where} "
            f"ORDER BY {distance} LIMIT %(nearest)s",
            search.parameters,
        )
        return search.cursor.fetchall()


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
    scope = Scope(owner_id)
    inside = (
        "space_id = %(space)s AND collection_id IN (SELECT collection.id FROM knowledge_collection collection "
        f"WHERE collection.space_id = %(space)s AND {scope.sql})"
    )
    parameters = scope.parameters() | {"space": space.pk, "vector": vector, "depth": depth}
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
