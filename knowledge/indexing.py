"""Indexes of spaces that have grown, built beside the traffic, and how much of the truly nearest they find."""

import logging
import time
from datetime import timedelta

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Sum
from django.utils import timezone

from knowledge import nearest
from knowledge.models import Collection, Space

logger = logging.getLogger(__name__)

INDEXED_ROWS = 20_000  # fewer are compared one by one in a few milliseconds
EF_CONSTRUCTION = 128  # twice pgvector's own
REBUILT_SHARE = 0.3  # of the vectors outside of it: then a new index costs less than to take each in
TAKEN_IN_SECONDS = 45.0
TAKEN_IN_AT_ONCE = 100
MAX_DIMENSIONS = 4_000  # of a halfvec that pgvector indexes
BUILDER = 7_316_502_291  # whoever builds holds this advisory lock
PROBED_EVERY = timedelta(hours=1)
PROBES = 20
PROBED_ROWS = 2_000_000  # compared one by one, at most
NEAREST = 10


def index_grown() -> list[Space]:
    """Build the indexes that are missing, one after the other; those built. Another that builds is left to it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [BUILDER])
        if not cursor.fetchone()[0]:
            return []
        try:
            return [space for space in Space.objects.exclude(dimensions=None) if _brought_in_line(space)]
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [BUILDER])


def _brought_in_line(space: Space) -> bool:
    """Whether an index of the space was built."""
    rows = rows_of(space)
    with connection.cursor() as cursor:
        found = nearest.indexes(cursor, space.pk)
        kept = next((index for index in found if index.is_valid), None) if rows else None
        for index in found:  # builds that broke off, or that a newer one follows, or an index of nothing
            if index != kept:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index.name}")
        if (rows < INDEXED_ROWS and kept is None) or (space.dimensions or 0) > MAX_DIMENSIONS:
            return False
        if kept is None or _outside(cursor, space, kept) > rows * REBUILT_SHARE:
            _build(cursor, space, rows)
            if kept is not None:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {kept.name}")
            return True
        if kept.has_outside:
            _take_in(space, kept)
        return False


def _build(cursor: CursorWrapper, space: Space, rows: int) -> None:
    """An index of what the space has now. What comes from now on is taken in later, so that nobody waits for it."""
    logger.info("Indexing %s vectors of space %s.", rows, space.pk)
    cursor.execute("SELECT coalesce(max(chunk_id), 0) FROM knowledge_embedding WHERE space_id = %s", [space.pk])
    last = cursor.fetchone()[0]
    name = nearest.index_name(space.pk, last)
    cursor.execute("SET maintenance_work_mem = '512MB'")
    try:
        cursor.execute(
            f"CREATE INDEX CONCURRENTLY {name} ON knowledge_embedding USING hnsw "
            f"((embedding::halfvec({space.dimensions})) halfvec_cosine_ops) WITH (ef_construction = {EF_CONSTRUCTION}) "
            f"WHERE space_id = {space.pk} AND (chunk_id <= {last} OR in_index)"
        )
    finally:
        cursor.execute("RESET maintenance_work_mem")
    # After a bulk load the planner knows nothing of it yet, and would read through what it need not.
    cursor.execute("ANALYZE knowledge_collection, knowledge_chunk, knowledge_embedding, knowledge_lexemes")


def _outside(cursor: CursorWrapper, space: Space, index: nearest.Index) -> int:
    """How many vectors came since the index was built and are not in it."""
    cursor.execute(f"SELECT count(*) FROM knowledge_embedding WHERE space_id = %s AND {index.outside}", [space.pk])
    found: int = cursor.fetchone()[0]
    return found


def _take_in(space: Space, index: nearest.Index) -> None:
    """Take in what came since the index was built, for some time at most; what another deletes is left to him."""
    end = time.monotonic() + TAKEN_IN_SECONDS
    while time.monotonic() < end:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                f"""
                UPDATE knowledge_embedding SET in_index = true WHERE ctid = ANY(ARRAY(
                  SELECT ctid FROM knowledge_embedding WHERE space_id = %s AND {index.outside}
                  ORDER BY chunk_id LIMIT {TAKEN_IN_AT_ONCE} FOR UPDATE SKIP LOCKED
                ))
                """,
                [space.pk],
            )
            if cursor.rowcount < TAKEN_IN_AT_ONCE:
                return


def rows_of(space: Space) -> int:
    """How many vectors the space has, of collections that are searched in it or will be."""
    collections = Collection.objects.filter(space=space) | Collection.objects.filter(next_space=space)
    return collections.aggregate(rows=Sum("chunks"))["rows"] or 0


def state_of(space: Space) -> bool | None:
    """Whether the space has an index that is whole; None without any."""
    with connection.cursor() as cursor:
        found = [index.is_valid for index in nearest.indexes(cursor, space.pk)]
    return any(found) if found else None


def probe_all() -> None:
    """Probe the indexes that were not probed for a while."""
    old = timezone.now() - PROBED_EVERY
    for space in Space.objects.exclude(probed__gt=old):
        if state_of(space):
            probe(space)


def probe(space: Space) -> float | None:
    """Measure the recall and remember it."""
    share = recall(space)
    Space.objects.filter(pk=space.pk).update(recall=share, probed=timezone.now())
    return share


def recall(space: Space) -> float | None:
    """Share of the truly nearest that the index finds for owners of chunks that look for their like; None without one.

    Each search has the rights of a real one: the owner's own collections and the public ones.
    """
    probes = max(3, min(PROBES, PROBED_ROWS // max(rows_of(space), 1)))
    with transaction.atomic(), connection.cursor() as cursor:
        index = nearest.usable(cursor, space.pk)
        if index is None:
            return None
        cursor.execute(
            """
            SELECT collection.owner_id, embedding.embedding::text
            FROM knowledge_embedding embedding JOIN knowledge_collection collection ON collection.id = collection_id
            WHERE embedding.space_id = %s AND collection.space_id = %s ORDER BY random() LIMIT %s
            """,
            [space.pk, space.pk, probes],
        )
        shares = [
            nearest.share_found(cursor, space, index, owner, vector, NEAREST) for owner, vector in cursor.fetchall()
        ]
    return sum(shares) / len(shares) if shares else None
