"""Background work of documents."""

import logging
from typing import Any

import redis
from celery import shared_task
from django.conf import settings
from django.utils import timezone

from knowledge import files, indexing, ingestion, reembedding, tidying
from knowledge.models import Collection, Document
from opengate import redis as opengate_redis
from opengate.errors import APIError

logger = logging.getLogger(__name__)

QUEUED = 100  # as many as are worth asking Redis for


def send(task: Any, id: int) -> None:
    """Queue work; where that fails, the worker finds it by itself a little later."""
    try:
        task.apply_async((id,), retry=False)
    except task.OperationalError:
        logger.warning("%s %s waits until Redis is back.", task.name, id)


@shared_task
def ingest_document(id: int) -> None:
    """Bring a document as far as it gets."""
    ingestion.ingest(id)


@shared_task
def feed_ingestion() -> None:
    """Queue documents that are due: put off, left by a worker that died, or never queued."""
    with opengate_redis.sync_client() as client:
        try:
            room = QUEUED - int(client.llen(settings.DOCUMENTS_QUEUE))
        except (redis.RedisError, OSError):
            return
    if room > 0:
        due = Document.objects.due(timezone.now()).order_by("due").values_list("id", flat=True)
        for id in due[:room]:
            ingest_document.delay(id)


@shared_task
def reembed_collection(id: int) -> None:
    """Give a collection its next space; one that another works on is left to it, one that cannot go on rests."""
    try:
        reembedding.reembed(id)
    except APIError as error:
        logger.warning("Collection %s is not embedded anew: %s %s", id, type(error).__name__, error.status)
        reembedding.rest(id)


@shared_task
def feed_reembedding() -> None:
    """Queue collections that are on their way to another space, and that nobody works on."""
    for id in reembedding.waiting(Collection.objects.all()):
        reembed_collection.delay(id)


@shared_task
def index_spaces() -> None:
    """Index spaces that have grown, and look how much their indexes find."""
    indexing.index_grown()
    indexing.probe_all()


@shared_task
def tidy() -> None:
    """Delete what nobody needs any more: files, and vectors of former spaces."""
    files.delete_discarded()
    tidying.delete_former_vectors()


@shared_task
def forget_words() -> None:
    """Forget words of chunks that were deleted."""
    tidying.forget_words()
