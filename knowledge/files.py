"""Uploaded files, in Django's storage `documents`; none is left behind by a document that is gone, or never came."""

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import PurePath
from typing import Any, TypeVar
from uuid import uuid4

from django.core.files.storage import Storage, storages
from django.db import transaction
from django.utils import timezone

from knowledge.errors import StorageAway
from knowledge.models import DiscardedFile

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNCLAIMED = timedelta(days=1)  # longer than any upload takes
FILES_AT_A_TIME = 1000


def storage() -> Storage:
    return storages["documents"]


def keep(content: Any, name: str, collection_id: int, then: Callable[[str], T]) -> T:
    """Store a file and call `then` with its name in the storage; the file stays if that commits.

    Raises StorageAway.
    """
    suffix = PurePath(name).suffix.lower()[:16]
    file = f"{collection_id}/{uuid4().hex}{suffix if suffix[1:].isalnum() and suffix.isascii() else ''}"
    note = DiscardedFile.objects.create(file=file, due=timezone.now() + UNCLAIMED)
    try:
        saved = storage().save(file, content)
    except Exception as error:  # whatever a storage raises
        logger.exception("The file %s cannot be stored.", file)
        raise StorageAway from error
    if saved != file:  # a storage that renames
        DiscardedFile.objects.filter(pk=note.pk).update(file=saved)
    with transaction.atomic():
        answer = then(saved)
        note.delete()
    return answer


def opened(file: str) -> Any:
    """The file as a binary stream; raises FileNotFoundError or StorageAway."""
    try:
        return storage().open(file, "rb")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a storage raises
        logger.exception("The file %s cannot be opened.", file)
        raise StorageAway from error


def delete_discarded() -> int:
    """Delete files that nobody needs; how many. One that cannot be deleted is tried again a little later."""
    deleted = 0
    for note in DiscardedFile.objects.filter(due__lte=timezone.now()).order_by("due")[:FILES_AT_A_TIME]:
        try:
            storage().delete(note.file)
        except Exception:  # whatever a storage raises
            logger.exception("The file %s cannot be deleted.", note.file)
            DiscardedFile.objects.filter(pk=note.pk).update(due=timezone.now() + timedelta(minutes=10))
        else:
            note.delete()
            deleted += 1
    return deleted
