"""Documents on their way: what is found of them, and what may happen meanwhile."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from knowledge.models import (
    Chunk,
    Document,
    Draft,
    DraftEmbedding,
    Embedding,
    Lexemes,
    Status,
)
from tests.knowledge.conftest import EMBEDDINGS
from tests.upstream import Upstream

PARAGRAPHS = [f"Paragraph number {number} of it." for number in range(70)]  # three calls for vectors
TEXT = "\n\n".join(PARAGRAPHS)
EACH = {"chunk_size": "32"}  # a chunk a paragraph
AWAY = {"error": {"message": "Overloaded."}}


def asked(upstream: Upstream) -> list[str]:
    """The texts that the upstream was sent."""
    return [text for call in upstream.received if call.path == EMBEDDINGS for text in call.json["input"]]


def contents(document: Document) -> list[str]:
    return list(Chunk.objects.filter(document=document).order_by("number").values_list("content", flat=True))


def is_whole(document: Document) -> bool:
    """Whether it is ready, with numbered chunks that have a vector and words each, and nothing is left of the way."""
    document.refresh_from_db()
    chunks = Chunk.objects.filter(document=document).order_by("number")
    ids = [chunk.pk for chunk in chunks]
    return (
        (document.status, document.error, document.progress) == (Status.READY, "", 1)
        and [chunk.number for chunk in chunks] == list(range(len(ids)))
        and sorted(Embedding.objects.filter(chunk__in=ids).values_list("chunk_id", flat=True)) == sorted(ids)
        and Lexemes.objects.filter(chunk__in=ids).count() == len(ids) > 0
        and not Draft.objects.filter(document=document).exists()
        and not DraftEmbedding.objects.filter(document=document).exists()
    )


def nothing_is_left() -> bool:
    tables = (Document, Chunk, Embedding, Lexemes, Draft, DraftEmbedding)
    return not any(table.objects.exists() for table in tables)


def failure(document: Document) -> tuple[str, int | None, str]:
    """How it failed; nothing of it is stored then."""
    document.refresh_from_db()
    assert not Chunk.objects.filter(document=document).exists()
    assert not Draft.objects.filter(document=document).exists()
    assert not DraftEmbedding.objects.filter(document=document).exists()
    return document.status, document.failure, document.error


class Killed(BaseException):
    """The end of a worker, as the code sees it: nothing catches it, and nothing after it happens."""


def interrupt(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, event: Callable[[], None], *, nth: int = 1
) -> None:
    """Have `event` happen once, as the function `name` of the module `place` is called for the nth time."""
    whole, calls = getattr(place, name), 0

    def interrupted(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            event()
        return whole(*args, **how)

    monkeypatch.setattr(place, name, interrupted)


def die() -> None:
    raise Killed


def time_passes() -> None:
    """Leases run out, and whatever was put off is due."""
    now = timezone.now()
    Document.objects.update(due=now)
    Document.objects.filter(lease__isnull=False).update(lease_expires=now - timedelta(seconds=1))


def beside(work: Callable[[], None]) -> None:
    """Do it in a thread, so on another connection to the database, and wait for its end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
