"""What nobody needs any more: vectors of former spaces, words of deleted chunks."""

from datetime import timedelta

from django.db import connection, transaction
from django.utils import timezone

from knowledge.models import Collection

SEARCHED_AT_LAST = timedelta(minutes=5)  # no search takes longer from its plan to its end
ROWS_AT_A_TIME = 10_000


def delete_former_vectors() -> None:
    """Delete vectors of spaces that collections have left, once no search can still be looking there."""
    left = Collection.objects.filter(previous_space__isnull=False, switched__lt=timezone.now() - SEARCHED_AT_LAST)
    for collection in left:
        while _deleted_some(collection):
            pass
        Collection.objects.filter(id=collection.pk, switched=collection.switched).update(previous_space=None)


def _deleted_some(collection: Collection) -> bool:
    with transaction.atomic(), connection.cursor() as cursor:
        # Locked, so that it does not set out for the former space again while that is emptied.
        if Collection.objects.locked(collection.pk) is None:
            return False
        cursor.execute(
            """
            DELETE FROM knowledge_embedding WHERE ctid IN (
              SELECT embedding.ctid FROM knowledge_embedding embedding
              JOIN knowledge_collection collection ON collection.id = embedding.collection_id
              WHERE collection.id = %s AND embedding.space_id IS DISTINCT FROM collection.space_id
                AND embedding.space_id IS DISTINCT FROM collection.next_space_id LIMIT %s
            )
            """,
            [collection.pk, ROWS_AT_A_TIME],
        )
        return bool(cursor.rowcount)


def forget_words() -> None:
    """Forget words that are in no chunk any more, of collections that lost some."""
    for id in Collection.objects.filter(has_stale_words=True).values_list("id", flat=True):
        with transaction.atomic(), connection.cursor() as cursor:
            if Collection.objects.locked(id) is None:
                continue
            cursor.execute(
                """
                DELETE FROM knowledge_word WHERE collection_id = %(id)s AND word NOT IN (
                  SELECT word FROM knowledge_lexemes, unnest(tsvector_to_array(lexemes)) AS word
                  WHERE collection_id = %(id)s
                )
                """,
                {"id": id},
            )
            Collection.objects.filter(id=id).update(has_stale_words=False)
