"""By meaning: the vectors nearest to the query's, one by one where they are few, by an index where they are many."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

from django.db.backends.utils import CursorWrapper

from knowledge.models import Space
from knowledge.queries import Scope, Search
from knowledge.vectors import as_text

# What was measured: a vector beside its neighbours costs half a microsecond, one that the index leads to sixteen times
# as much. Below EXACT_ROWS nothing is worth a thought.
EXACT_ROWS = 5_000
INDEX_COST = 16
EF_SEARCH = 150
MAX_EF_SEARCH = 1000
MAX_SCAN_TUPLES = 40_000


class Index(NamedTuple):
    """An index of a space: what it holds is `inside`, what came since is `outside`."""

    name: str
    last: int  # id of the last chunk that was there when it was built
    rows: int
    is_valid: bool
    has_outside: bool

    @property
    def inside(self) -> str:
        return f"(chunk_id <= {self.last} OR in_index)"

    @property
    def outside(self) -> str:
        return f"(chunk_id > {self.last} AND NOT in_index)"


def indexes(cursor: CursorWrapper, space_id: int) -> list[Index]:
    """The indexes of a space, the newest first."""
    cursor.execute(
        """
        SELECT name, last, rows, indisvalid, coalesce((
          SELECT max(chunk_id) FROM knowledge_embedding WHERE space_id = %(space)s AND NOT in_index
        ) > last, false) FROM (
          SELECT relname AS name, split_part(relname, '_', 5)::bigint AS last, greatest(reltuples, 1)::bigint AS rows,
            indisvalid
          FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
          WHERE indrelid = 'knowledge_embedding'::regclass AND starts_with(relname, %(name)s)
        ) found ORDER BY last DESC
        """,
        {"space": space_id, "name": index_name(space_id)},
    )
    return [Index(*row) for row in cursor.fetchall()]


def index_name(space_id: int, last: int | str = "") -> str:
    return f"knowledge_embedding_space_{space_id}_{last}"


def usable(cursor: CursorWrapper, space_id: int) -> Index | None:
    return next((index for index in indexes(cursor, space_id) if index.is_valid), None)


def statement(search: Search, depth: int) -> str:
    """`nearest`: at least the `depth` nearest of the chunks, and their cosine distances (0 same … 2 opposite)."""
    vectors = search.asked.vectors
    if not vectors:
        return ""
    search.parameters |= {"nearest": depth, "spaces": list(vectors)}
    search.parameters |= {f"vector_{id}": as_text(vector) for id, vector in vectors.items()}
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
    index = usable(search.cursor, space_id) if rows > EXACT_ROWS and depth <= MAX_EF_SEARCH // 2 else None
    many = worth_an_index(index.rows if index else 0, depth)
    chosen = ""
    if search.conditions:
        chosen = f" AND chunk_id IN (SELECT chunk.id FROM knowledge_chunk chunk WHERE {search.conditions})"
        kept = _kept(search, inside, many) if rows > EXACT_ROWS else None
        if kept is not None:  # each is looked up: whatever the planner expects, it reads no more than these
            search.parameters[f"kept_{space_id}"] = kept
            chosen, rows = f" AND chunk_id = ANY(%(kept_{space_id})s)", len(kept)
    if index and rows >= many:
        found = _led_to(search, space_id, index, f"collection_id IN ({inside}){chosen}", depth)
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
    """The nearest of all those, compared one by one, and each once: as an expression to sort by, it would be twice."""
    return (
        f"SELECT chunk_id, distance FROM (SELECT chunk_id, embedding <=> %(vector_{space_id})s::halfvec AS distance "
        f"FROM knowledge_embedding WHERE space_id = {space_id} AND {where} OFFSET 0) AS compared "
        "ORDER BY distance, chunk_id LIMIT %(nearest)s"
    )


def _led_to(search: Search, space_id: int, index: Index, where: str, depth: int) -> list[tuple[int, float]]:
    """The nearest to which the index leads, and their distances: fewer than `depth` where it gives up.

    What is not in the index is compared one by one, and before: what a worker takes in meanwhile is found twice
    rather than never.
    """
    size = len(search.asked.vectors[space_id])
    found: dict[int, float] = {}
    if index.has_outside:
        search.cursor.execute(_exact(space_id, f"{index.outside} AND {where}"), search.parameters)
        found.update(search.cursor.fetchall())
    distance = f"embedding::halfvec({size}) <=> %(vector_{space_id})s::halfvec({size})"
    statement = (
        f"SELECT chunk_id, {distance} AS distance FROM knowledge_embedding WHERE space_id = {space_id} "
        f"AND {index.inside} AND {where} ORDER BY {distance} LIMIT %(nearest)s"
    )
    found.update(_by_index(search.cursor, statement, search.parameters, depth))
    return sorted(found.items(), key=lambda pair: (pair[1], pair[0]))[:depth]


def worth_an_index(indexed: int, depth: int) -> int:
    """From how many rows on the index is quicker than comparing one by one, when they are some of `indexed`.

    Of n rows among N, the index leads to about depth * N / n before it has found enough; that is INDEX_COST times as
    dear as each of n comparisons.
    """
    return max(EXACT_ROWS, isqrt(INDEX_COST * (EF_SEARCH + depth) * indexed)) + 1


def _by_index(cursor: CursorWrapper, statement: str, parameters: Mapping[str, Any], depth: int) -> list[Any]:
    """The rows of a statement of which the planner takes the index, that goes on until enough is found that may be.

    One trip: statements that are sent together are a transaction, and the settings end with it.
    """
    cursor.execute(f"{_settings(depth)}; {statement}; SET LOCAL enable_sort = on", parameters)
    while cursor.description is None:
        cursor.nextset()
    return cursor.fetchall()


def _settings(depth: int) -> str:
    return (
        f"SET LOCAL hnsw.ef_search = {min(max(EF_SEARCH, 2 * depth), MAX_EF_SEARCH)}; "
        "SET LOCAL hnsw.iterative_scan = relaxed_order; "
        f"SET LOCAL hnsw.max_scan_tuples = {MAX_SCAN_TUPLES}; SET LOCAL enable_sort = off"
    )


def share_found(cursor: CursorWrapper, space: Space, index: Index, owner_id: int, vector: str, depth: int) -> float:
    """Of the `depth` vectors in the index that are truly nearest to one and that the owner may find, its share."""
    size = space.dimensions
    scope = Scope(owner_id)
    inside = (
        f"space_id = %(space)s AND {index.inside} AND collection_id IN ("
        "SELECT collection.id FROM knowledge_collection collection "
        f"WHERE collection.space_id = %(space)s AND {scope.sql})"
    )
    parameters = scope.parameters() | {"space": space.pk, "vector": vector, "depth": depth}
    exact = f"embedding::halfvec({size}) <=> %(vector)s::halfvec({size})"
    cursor.execute(
        f"SELECT {exact} FROM knowledge_embedding WHERE {inside} ORDER BY ({exact}) + 0 LIMIT %(depth)s",
        parameters,
    )
    truly = [row[0] for row in cursor.fetchall()]
    statement = f"SELECT {exact} AS distance FROM knowledge_embedding WHERE {inside} ORDER BY {exact} LIMIT %(depth)s"
    found = [row[0] for row in _by_index(cursor, statement, parameters, depth)]
    return sum(distance <= truly[-1] for distance in found) / len(truly) if truly else 1.0
