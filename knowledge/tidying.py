"""What nobody needs any more: vectors of former spaces, words of deleted chunks."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

from django.db import connection, transaction
from django.utils import timezone

from knowledge.models import Collection, LostWords, Vocabulary

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
    """Forget words that are in no chunk any more, of languages that lost some."""
    for language in LostWords.objects.values_list("language", flat=True).distinct().order_by("language"):
        notes = list(LostWords.objects.filter(language=language).values_list("pk", flat=True))
        words = _unused(language)
        for start in range(0, len(words), ROWS_AT_A_TIME):
            _forget(language, words[start : start + ROWS_AT_A_TIME])
        LostWords.objects.filter(pk__in=notes).delete()


UNUSED = """
  NOT EXISTS (
    SELECT FROM knowledge_lexemes lexemes
    WHERE lexemes.lexemes @@ quote_literal(word)::tsquery AND lexemes.language = knowledge_word.language
  )
"""


def _unused(language: str) -> list[str]:
    """Words that are in no chunk: each is asked of the index."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT word FROM knowledge_word WHERE language = %s AND {UNUSED}", [language])
        return [word for (word,) in cursor.fetchall()]


def _forget(language: str, words: Sequence[str]) -> None:
    """Forget those that are in no chunk and on no way into one; nobody learns words meanwhile."""
    with transaction.atomic(), connection.cursor() as cursor:
        Vocabulary.objects.update_or_create(language=language, defaults={"edition": uuid4()})
        cursor.execute(
            f"""
            DELETE FROM knowledge_word WHERE language = %(language)s AND word = ANY(%(words)s) AND {UNUSED}
              AND word NOT IN (
                SELECT unnest(tsvector_to_array(lexemes)) FROM knowledge_draft
                WHERE language = %(language)s AND lexemes IS NOT NULL
              )
            """,
            {"language": language, "words": list(words)},
        )
