"""Indexes of spaces that have grown, built beside the traffic, and how much of the truly nearest they find."""

import logging
from datetime import timedelta

from django.db import connection, transaction
from django.db.models import Sum
from django.utils import timezone

from knowledge import nearest
from knowledge.models import Collection, Space

logger = logging.getLogger(__name__)

INDEXED_ROWS = 20_000  # fewer are compared one by one in a few milliseconds
EF_CONSTRUCTION = 128  # twice pgvector's own
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
    """Whether the space's index was built."""
    rows = rows_of(space)
    state = state_of(space)
    with connection.cursor() as cursor:
        if state is False or (state and not rows):  # a build that broke off, or an index of nothing
            cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {space.index_name}")
            state = None
        if state or rows < INDEXED_ROWS or (space.dimensions or 0) > MAX_DIMENSIONS:
            return False
        logger.info("Indexing %s vectors of space %s.", rows, space.pk)
        cursor.execute("SET maintenance_work_mem = '512MB'")
        try:
            cursor.execute(
                f"CREATE INDEX CONCURRENTLY {space.index_name} ON knowledge_embedding USING hnsw "
                f"((embedding::halfvec({space.dimensions})) halfvec_cosine_ops) "
                f"WITH (ef_construction = {EF_CONSTRUCTION}) WHERE space_id = {space.pk}"
            )
        finally:
            cursor.execute("RESET maintenance_work_mem")
    return True


def rows_of(space: Space) -> int:
    """How many vectors the space has, of collections that are searched in it or will be."""
    collections = Collection.objects.filter(space=space) | Collection.objects.filter(next_space=space)
    return collections.aggregate(rows=Sum("chunks"))["rows"] or 0


def state_of(space: Space) -> bool | None:
    """Whether the space's index is whole; None without one."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [space.index_name])
        row = cursor.fetchone()
    return row[0] if row else None


def probe_all() -> None:
    """Probe the indexes that were not probed for a while."""
    old = timezone.now() - PROBED_EVERY
    for space in Space.objects.exclude(probed__gt=old):
        if state_of(space):
            probe(space)


def probe(space: Space) -> float | None:
    """Measure the recall and remember it."""
    share = recall(space) if state_of(space) else None
    Space.objects.filter(pk=space.pk).update(recall=share, probed=timezone.now())
    return share


def recall(space: Space) -> float | None:
    """Share of the truly nearest that the index finds for owners of chunks that look for their like; None without any.

    Each search has the rights of a real one: the owner's own collections and the public ones.
    """
    probes = max(3, min(PROBES, PROBED_ROWS // max(rows_of(space), 1)))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT collection.owner_id, embedding.embedding::text
            FROM knowledge_embedding embedding JOIN knowledge_collection collection ON collection.id = collection_id
            WHERE embedding.space_id = %s AND collection.space_id = %s ORDER BY random() LIMIT %s
            """,
            [space.pk, space.pk, probes],
        )
        shares = [nearest.share_found(cursor, space, owner, vector, NEAREST) for owner, vector in cursor.fetchall()]
    return sum(shares) / len(shares) if shares else None
