"""An uploaded file: kept with its document, and waited for by whoever sent it."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction

from knowledge import editing, files, vectors
from knowledge.errors import CollectionNotFound, DocumentNotFound, Unreadable, VectorizationFailed
from knowledge.kinds import kind_of
from knowledge.models import Collection, Document, Status
from knowledge.splitting import Options
from opengate.database import in_thread
from opengate.errors import APIError, BodyTooLarge


def receive(
    collection: Collection,
    file: UploadedFile,
    options: Options,
    *,
    name: str = "",
    metadata: dict[str, Any] | None = None,
    queue: Callable[[int], None],
) -> Document:
    """The document of a file, stored; `queue` gets its id once that is committed. Without a name it has the file's.

    Raises what can be told of the file at once: BodyTooLarge, Unreadable, NoEmbeddingModel; and CollectionNotFound when
    the collection is deleted meanwhile.
    """
    size = file.size or 0
    if size > settings.MAX_FILE_BYTES:
        raise BodyTooLarge(f"File size limit exceeded (max: {settings.MAX_FILE_BYTES} bytes).")
    if not size:
        raise Unreadable("The file is empty.")
    file_name = file.name or "document"
    kind = kind_of(file_name, file.content_type or "")
    if kind is None:
        raise Unreadable("Unsupported file type.")
    vectors.space_of(collection)
    stored_options = options.as_stored()
    digest = hashlib.sha256(json.dumps([kind, stored_options], sort_keys=True).encode())
    for part in file.chunks():
        digest.update(part)

    def create(stored: str) -> Document:
        document = Document.objects.create(
            collection=collection,
            name=name or file_name[:255],
            kind=kind,
            file=stored,
            size=size,
            fingerprint=digest.hexdigest(),
            options=stored_options,
            metadata=metadata,
        )
        transaction.on_commit(partial(queue, document.pk))
        return document

    try:
        return files.keep(file, file_name, collection.pk, create)
    except IntegrityError:
        raise CollectionNotFound from None


async def outcome(id: int) -> bool:
    """Wait until the document can be searched; False when that takes longer than UPLOAD_WAIT_SECONDS.

    Raises why it failed, or DocumentNotFound when it is gone. Whoever waits keeps the file: a document that fails, or
    whose model is away for UPLOAD_PATIENCE_SECONDS, is taken back.
    """
    started, pause = time.monotonic(), 0.05
    troubled: float | None = None
    while (now := time.monotonic()) - started < settings.UPLOAD_WAIT_SECONDS:
        document = await in_thread(Document.objects.filter(id=id).first)()
        if document is None:
            raise DocumentNotFound
        if document.status == Status.READY:
            return True
        if document.status == Status.FAILED:
            await in_thread(editing.delete_document)(Document.objects.all(), id)
            raise APIError(document.error, status=document.failure)
        troubled = (troubled or now) if document.error else None
        if troubled is not None and now - troubled > settings.UPLOAD_PATIENCE_SECONDS:
            await in_thread(editing.delete_document)(Document.objects.all(), id)
            raise VectorizationFailed(document.error)
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.5)
    return False
