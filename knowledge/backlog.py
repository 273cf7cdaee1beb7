"""How many documents wait, and for how long, for those who watch: at little cost however many there are."""

from typing import Final, NamedTuple

from django.db import connection

from knowledge.models import UNFINISHED, Status

SMALL_BYTES: Final = 32 * 1024 * 1024  # a table that is counted in some milliseconds
MOST_COUNTED: Final = 100_000

_COUNT_ALL = "SELECT status, count(*) FROM knowledge_document GROUP BY status"
# By the index of those that are not finished.
_COUNT_UNFINISHED = """
SELECT status, count(*) FROM (
    SELECT status FROM knowledge_document WHERE status IN ('pending', 'parsing', 'embedding') ORDER BY due LIMIT %s
) AS unfinished GROUP BY status
"""
# What Postgres' own statistics say, which it renews as the table changes.
_ESTIMATE_ALL = """
SELECT status, (share * reltuples)::bigint
FROM pg_class AS class
JOIN pg_stats AS stats ON stats.tablename = relname AND stats.schemaname = relnamespace::regnamespace::text
CROSS JOIN LATERAL unnest(most_common_vals::text::text[], most_common_freqs) AS common (status, share)
WHERE class.oid = 'knowledge_document'::regclass AND attname = 'status' AND reltuples > 0
"""
_LONGEST_DUE = """
SELECT extract(epoch FROM now() - due)::float8 FROM knowledge_document
WHERE status IN ('pending', 'parsing', 'embedding') AND due <= now()
  AND (lease_expires IS NULL OR lease_expires < now())
ORDER BY due LIMIT 1
"""


class Backlog(NamedTuple):
    """Documents by status, and how many seconds the one has waited that has waited longest for a worker."""

    documents: dict[str, int]
    oldest_seconds: float


def look() -> Backlog:
    """Counted exactly in a table of up to `SMALL_BYTES`.

    In a larger one those that are ready or failed are estimated, and of the others `MOST_COUNTED` are counted.
    """
    counts = dict.fromkeys(Status.values, 0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_relation_size('knowledge_document')")
        if cursor.fetchone()[0] <= SMALL_BYTES:
            cursor.execute(_COUNT_ALL)
            counts |= dict(cursor.fetchall())
        else:
            cursor.execute(_ESTIMATE_ALL)
            counts |= {status: count for status, count in cursor.fetchall() if status not in UNFINISHED}
            cursor.execute(_COUNT_UNFINISHED, [MOST_COUNTED])
            counts |= dict(cursor.fetchall())
        cursor.execute(_LONGEST_DUE)
        oldest = cursor.fetchone()
    return Backlog(counts, oldest[0] if oldest else 0.0)
