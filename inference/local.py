"""The local engine: pages of PDFs and images without a model, each document in a child process of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from django.conf import settings
from pydantic_core import from_json

from inference.errors import DocumentRefused
from opengate import sandbox
from opengate.loops import PerLoop
from routing.errors import ModelTooBusy

NAME: Final = "local"  # in place of a model's name
_MEMORY_BYTES = 2 * 1024**3


def is_enabled() -> bool:
    return bool(settings.LOCAL_OCR_PROCESSES)


async def pages(document: bytes, user_id: int, **options: Any) -> Sequence[dict[str, Any]]:
    """The pages as the OCR endpoint sends them: `index`, `markdown`, `images`, `dimensions`.

    `options` are those of `inference.page_reader`. A few documents are read at a time, one of a user's; raises
    ModelTooBusy where that takes too long, DocumentRefused with the reason for a document that cannot be read.
    """
    async with _turn(user_id):
        return await _read(document, options)


async def _read(document: bytes, options: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    seconds = settings.LOCAL_OCR_SECONDS
    given = {**options, "languages": settings.OCR_LANGUAGES}
    process = await asyncio.create_subprocess_exec(
        *sandbox.command("inference.page_reader", given, seconds=seconds, memory_bytes=_MEMORY_BYTES),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        **sandbox.surroundings(),
    )
    try:
        async with asyncio.timeout(seconds + sandbox.GRACE_SECONDS):
            output = await _exchange(process, document)
    except TimeoutError:
        raise DocumentRefused(f"Reading the document takes more than {seconds} seconds.") from None
    finally:
        sandbox.end(process.pid)
        await process.wait()
    try:
        answer = from_json(output)
    except ValueError:  # it was killed, for its time or its memory, or crashed
        raise DocumentRefused("Parsing document failed.") from None
    if "refused" in answer:
        raise DocumentRefused(answer["refused"])
    found: Sequence[dict[str, Any]] = answer["pages"]
    return found


async def _exchange(process: asyncio.subprocess.Process, document: bytes) -> bytes:
    """Send the document and read the answer, which has a bound, too."""
    assert process.stdin is not None
    assert process.stdout is not None
    sending = asyncio.ensure_future(_send(process.stdin, document))
    parts, length = [], 0
    try:
        while chunk := await process.stdout.read(64 * 1024):
            length += len(chunk)
            if length > settings.UPSTREAM_MAX_RESPONSE_BYTES:
                raise DocumentRefused("The document has too much in it.")
            parts.append(chunk)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return b"".join(parts)


async def _send(stdin: asyncio.StreamWriter, document: bytes) -> None:
    with suppress(ConnectionError):  # it has read enough
        stdin.write(document)
        await stdin.drain()
        stdin.close()


@dataclass(slots=True)
class _Desk:
    """Who is being served in one event loop."""

    seats: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(settings.LOCAL_OCR_PROCESSES))
    users: WeakValueDictionary[int, asyncio.Lock] = field(default_factory=WeakValueDictionary)


_desk = PerLoop(_Desk)


@asynccontextmanager
async def _turn(user_id: int) -> AsyncIterator[None]:
    desk = _desk()
    own = desk.users.setdefault(user_id, asyncio.Lock())
    wait = settings.ROUTING_MAX_WAIT_SECONDS
    try:
        async with asyncio.timeout(wait):
            await own.acquire()
            try:
                await desk.seats.acquire()
            except BaseException:
                own.release()
                raise
    except TimeoutError:
        raise ModelTooBusy(wait) from None
    try:
        yield
    finally:
        desk.seats.release()
        own.release()
