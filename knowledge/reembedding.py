"""Another model for a collection, without an outage: new vectors beside the old ones, then one switch."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from accounts import principals
from knowledge.embedding import BATCH, Vector, embed, fitting
from knowledge.models import Chunk, Collection, Embedding, Space
from knowledge.vectors import as_binary, store_vectors
from opengate.database import commit, in_thread
from opengate.loops import in_loop
from routing.models import Router

# How many chunks of a collection have a vector in its next space, and how many there are.
Progress = Callable[[int, int], None]


def begin(collection: Collection, router: Router, *, fresh: bool = False) -> bool:
    """Set out for the model's space; False when the collection is there already. Run it on a locked row.

    An empty collection is there at once. With `fresh` the space is new, for a model that is no longer what it was.
    """
    space = Space.objects.create(router=router) if fresh else Space.objects.of(router)
    is_there = space == collection.space or not collection.chunks
    if collection.next_space is not None and collection.next_space != space:
        _leave(collection, collection.next_space)  # half way to somewhere else
    if is_there:
        collection.space, collection.next_space = space, None
    else:
        collection.next_space = space
    collection.save(update_fields=["space", "next_space", "previous_space", "switched"])
    return not is_there


def _leave(collection: Collection, space: Space | None) -> None:
    """Searches under way may still need the vectors of a space; after a while they are deleted."""
    collection.previous_space, collection.switched = space, timezone.now()


def waiting(collections: QuerySet[Collection]) -> list[int]:
    """Ids of those that are on their way, and that nobody works on."""
    return list(collections.filter(_is_free(), next_space__isnull=False).order_by("id").values_list("id", flat=True))


def _is_free() -> Q:
    return Q(lease_expires__isnull=True) | Q(lease_expires__lt=timezone.now())


def reembed(id: int, on_progress: Progress = lambda done, total: None) -> bool:
    """Embed what the next space lacks, then switch; True once that is done, False when it is none of ours.

    May be broken off and begun again anywhere. Raises what stands in the way of embedding.
    """
    if not Collection.objects.filter(_is_free(), id=id, next_space__isnull=False).update(lease_expires=_lease()):
        return False
    try:
        while not (is_done := _switched(id)):
            if not in_loop(_fill(id, on_progress)):
                break
        return bool(is_done)
    finally:
        Collection.objects.filter(id=id).update(lease_expires=None)


def rest(id: int) -> None:
    """Leave the collection alone for a while: what stands in the way may heal."""
    Collection.objects.filter(_is_free(), id=id).update(lease_expires=_lease())


def _lease() -> datetime:
    seconds = max(settings.INGESTION_LEASE_SECONDS, 60)  # a batch may take a model that long
    return timezone.now() + timedelta(seconds=seconds)


async def _fill(id: int, on_progress: Progress) -> bool:
    """One pass over the chunks without a vector in the next space; False when there is no next space any more."""
    last, done = 0, await in_thread(embedded)(id)
    while True:
        found = await in_thread(_lacking)(id, last)
        if found is None:
            return False
        collection, space, chunks = found
        if not chunks:
            return True
        principal = await principals.of_user(collection.owner_id)
        vectors = await embed(principal, space, [content for _, content in chunks])
        last = chunks[-1][0]
        done += await in_thread(_keep)(collection, space, [id for id, _ in chunks], vectors)
        on_progress(done, collection.chunks)


def embedded(id: int) -> int:
    """How many chunks have a vector in the next space."""
    return Embedding.objects.filter(collection=id, space=F("collection__next_space")).count()


def _lacking(id: int, after: int) -> tuple[Collection, Space, list[tuple[int, str]]] | None:
    """The next chunks, by id, that have no vector in the next space; None when the collection no longer goes there."""
    collection = Collection.objects.select_related("next_space__router").filter(id=id).first()
    if collection is None or collection.next_space is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT id, content FROM knowledge_chunk chunk
            WHERE collection_id = %s AND id > %s AND NOT EXISTS (
              SELECT FROM knowledge_embedding WHERE chunk_id = chunk.id AND space_id = %s
            ) ORDER BY id LIMIT %s
            """,
            [id, after, collection.next_space.pk, BATCH],
        )
        chunks = cursor.fetchall()
        return collection, collection.next_space, chunks[: fitting([content for _, content in chunks])]


def _keep(collection: Collection, space: Space, ids: Sequence[int], vectors: Sequence[Vector]) -> int:
    """Store vectors of chunks that exist and have none yet; how many these were."""

    def kept() -> int:
        wanted = set(Chunk.objects.select_for_update(no_key=True).filter(id__in=ids).values_list("id", flat=True))
        wanted -= set(Embedding.objects.filter(chunk__in=wanted, space=space).values_list("chunk_id", flat=True))
        found = {id: vector for id, vector in zip(ids, as_binary(vectors), strict=True) if id in wanted}
        if found:
            store_vectors(space, collection.pk, list(found), list(found.values()))
        Collection.objects.filter(id=collection.pk).update(lease_expires=_lease())
        return len(found)

    return commit(kept)


def _switched(id: int) -> bool | None:
    """Search the next space from now on; False when it lacks a vector, None when there is none to switch to."""
    with transaction.atomic():
        collection = Collection.objects.locked(id)
        if collection is None or collection.next_space is None:
            return None
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT EXISTS (
                  SELECT FROM knowledge_chunk chunk WHERE collection_id = %s AND NOT EXISTS (
                    SELECT FROM knowledge_embedding WHERE chunk_id = chunk.id AND space_id = %s
                  )
                )
                """,
                [id, collection.next_space.pk],
            )
            if cursor.fetchone()[0]:
                return False
        space = collection.next_space
        _leave(collection, collection.space)
        collection.space, collection.next_space = space, None
        collection.save(update_fields=["space", "next_space", "previous_space", "switched"])
        return True
