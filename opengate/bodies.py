"""Request bodies are counted and timed as they arrive, before any framework keeps them, and JSON is read in one place.

Four bounds: how long a body is, how long it takes to come, how much of bodies a process holds at a time, and how many
values its JSON has, how deep. A body that is small passes them without noticing.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from pydantic_core import from_json, to_json

from opengate import work
from opengate.errors import APIError, BodyTooLarge, InvalidBody, openai_error
from opengate.loops import PerLoop
from opengate.quick_settings import settings
from opengate.request_id import HEADER, new_request_id

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
# Answers who the caller is, who then may send more than SMALL_BYTES; raises an APIError when that is nobody known.
Admission = Callable[[Mapping[str, Any]], Awaitable[int]]

INCOMING = "opengate.incoming"  # in the scope of a request: its body, for who has read it and goes on without it
# In the scope, as long as a server of ours has its caller: a set of what it calls when he leaves. It spares each call a
# task that waits for `http.disconnect`.
WHEN_GONE = "opengate.when_gone"
SMALL_BYTES = 64 * 1024
SLOWEST_BYTES_A_SECOND = 32 * 1024
TICK_SECONDS = 0.25  # by which a slow body may be refused late
SHARE = 2  # one caller fills half of the room for bodies at most
# An empty list of two bytes takes a hundred times as much memory, and reading a million of them a second.
MAX_JSON_VALUES = 1_000_000


class BodyTooSlow(APIError):
    """The caller sends less than anybody's line carries, or nothing more."""

    status = 408

    def __init__(self) -> None:
        super().__init__("The body of the request took too long to arrive.")


class TooManyBodies(APIError):
    """What callers send fills the room there is for bodies, or this one his share of it."""

    status = 503

    def __init__(self) -> None:
        super().__init__("Too many large requests at a time, please try again later.", headers={"Retry-After": "5"})


def too_large() -> BodyTooLarge:
    return BodyTooLarge(f"Request size limit exceeded (max: {settings.MAX_BODY_BYTES} bytes).")


class Incoming:
    """The body of one request on its way in. Whoever made it calls `release` when nothing holds the body any more."""

    held = 0  # by this process, of all requests: an event loop is one thread
    held_by: ClassVar[Counter[int]] = Counter()  # of those whose callers are known

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self._receive = receive
        self.announced = _announced(scope)
        self.caller: int | None = None
        self._started = self._last = asyncio.get_running_loop().time()
        self._is_complete = False
        self._waiting: asyncio.Task[Any] | None = None
        self._is_late = False
        self.length = 0

    async def message(self) -> Mapping[str, Any]:
        """The next ASGI message; raises BodyTooLarge, BodyTooSlow or TooManyBodies."""
        if self._is_complete:
            return await self._receive()
        if self.announced > settings.MAX_BODY_BYTES:
            raise too_large()
        message = await self._received()
        self._hold(len(message.get("body", b"")))
        if self.length > settings.MAX_BODY_BYTES:
            raise too_large()
        if self.length > SMALL_BYTES and self._is_full():
            self.release()  # at once: while this one is refused, the next one finds room
            raise TooManyBodies
        self._is_complete = not message.get("more_body")
        return message

    async def _received(self) -> Mapping[str, Any]:
        """What the server has, before the deadline; raises BodyTooSlow."""
        task = self._waiting = asyncio.current_task()
        assert task is not None
        cancelled, clock = task.cancelling(), _clock()
        clock.watch(self)
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._is_late or task.uncancel() > cancelled:
                raise
            raise BodyTooSlow from None
        finally:
            clock.waiting.discard(self)
        self._last = clock.loop.time()
        return message

    def look(self, now: float) -> None:
        """Give up if time is up."""
        if now > self._deadline() and not self._is_late and self._waiting is not None:
            self._is_late = True
            self._waiting.cancel()

    def known(self, caller: int) -> None:
        """From now on the body counts as this caller's."""
        self.caller = caller
        Incoming.held_by[caller] += self.length

    def release(self) -> None:
        self._hold(-self.length)
        if self.caller is not None and not Incoming.held_by[self.caller]:
            del Incoming.held_by[self.caller]

    def _hold(self, length: int) -> None:
        self.length += length
        Incoming.held += length
        if self.caller is not None:
            Incoming.held_by[self.caller] += length

    def _is_full(self) -> bool:
        room = settings.MAX_HELD_BODY_BYTES
        share = max(room // SHARE, settings.MAX_BODY_BYTES)
        return Incoming.held > room or (self.caller is not None and Incoming.held_by[self.caller] > share)

    def _deadline(self) -> float:
        """For the next part. Who was quick so far may not stop for as long as a slow one would have taken."""
        patience = settings.REQUEST_PATIENCE_SECONDS
        return min(self._started + self.length / SLOWEST_BYTES_A_SECOND, self._last) + patience


class _Clock:
    """One timer for all bodies that an event loop waits for: nearly all are there at once, and one each costs more."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: set[Incoming] = set()
        self._tick: asyncio.TimerHandle | None = None

    def watch(self, incoming: Incoming) -> None:
        self.waiting.add(incoming)
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_SECONDS, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        for incoming in list(self.waiting):
            incoming.look(now)
        self._tick = self.loop.call_later(TICK_SECONDS, self._look) if self.waiting else None


_clock = PerLoop(_Clock)


async def bounded(
    application: Application, scope: dict[str, Any], receive: Receive, send: Send, admit: Admission
) -> None:
    """Run the application; a body over a bound is answered as soon as that is known.

    Django reads all of a body before it asks who sends it, so `admit` is asked here, once that gets long.
    """
    incoming = Incoming(scope, receive)

    async def counted() -> Mapping[str, Any]:
        if incoming.announced > SMALL_BYTES and incoming.caller is None:
            incoming.known(await admit(scope))
        message = await incoming.message()
        if incoming.length > SMALL_BYTES and incoming.caller is None:
            incoming.known(await admit(scope))
        return message

    async def freed(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            incoming.release()  # Django ends a little later, and the caller may have sent the next one by then
        await send(message)

    try:
        if incoming.announced > settings.MAX_BODY_BYTES:
            raise too_large()
        await application({**scope, INCOMING: incoming}, counted, freed)
    except APIError as error:  # nothing was answered yet: the body comes before the answer
        await refuse(error, send)
    finally:
        incoming.release()


def _announced(scope: Mapping[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


async def refuse(error: APIError, send: Send) -> None:
    """Answer with the error, the last of its connection, before any framework has a say."""
    body = to_json({"detail": error.detail, "error": openai_error(error.status, error.detail)})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
        (HEADER.encode(), (work.current().request_id or new_request_id()).encode()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def json_of(raw: bytes) -> Any:
    """The value that a caller sends as JSON; raises InvalidBody, or BodyTooLarge for more values than we keep.

    The parser itself goes 200 levels deep and refuses the next one, and no integer has more than 4300 digits. Values
    are counted by what stands between them, in texts too, which is quick and never too few.
    """
    if len(raw) > MAX_JSON_VALUES and sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise BodyTooLarge(f"The body has too many values (max: {MAX_JSON_VALUES}).")
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        fault = {"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "ctx": {"error": str(error)}}
        raise InvalidBody([fault]) from None
