"""HTTP/1.1 connections to providers, kept open and used again: one exchange at a time on each.

A connection on which anything was out of order is closed and never used again: bytes that nobody asked for, an answer
that came before all of the request was sent, or that nobody read to its end. So no answer reaches another call.

One that was kept may be closed at the other end just when a request leaves. Where that shows at once and without a byte
of an answer, the request is sent once more, on a new connection. That is no more than trying the next provider is:
nobody had a byte of an answer, and there will be one. Later than that it was taken in, and may have cost its tokens.
"""

import asyncio
import functools
import ssl
from collections.abc import Iterator
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from inference.upstream.names import Address, Names
from opengate import egress
from opengate.quick_settings import settings

TICK_SECONDS = 0.25  # by which a timeout may come late
IDLE_SECONDS = 4.0  # uvicorn and Node close after five
IDLE_SECURE_SECONDS = 15.0  # a handshake costs, and most of what speaks TLS waits for a minute
MAX_IDLE = 256  # of one place
STALE_SECONDS = 1.0
DRAIN_SECONDS = 0.05
MAX_HEAD_BYTES = 64 * 1024  # of headers, trailers and what else is not the body
MAX_UNREAD_BYTES = 64 * 1024
MAX_PIECES = 1024 * 1024  # of a whole answer: each is an object
ONE_WRITE_BYTES = 64 * 1024

Pieces = Iterator[bytes | memoryview]


class Place(NamedTuple):
    """Where a provider is; connections to it are shared by all providers there."""

    host: str
    port: int
    is_secure: bool


class Trouble(Exception):
    """A request has no answer."""


class NotConnected(Trouble):
    """Nobody was met, or somebody without a certificate."""

    def __init__(self, place: Place, error: OSError) -> None:
        super().__init__(str(error))
        self.place, self.error = place, error


class AnswerCut(Trouble):
    """The connection ended before the answer did."""

    is_unheard = False  # not a byte came


class AnswerGarbled(Trouble):
    """What came is no HTTP, or has no end of headers."""


class AnswerTooLong(Trouble):
    pass


class Answer:
    """An answer as it comes. Its reader reads it to the end, or leaves, or closes it.

    Headers have names in small letters. `seconds` is how long a reader of a stream waits for more.
    """

    __slots__ = (
        "_connection",
        "_deadline",
        "_fault",
        "_is_left",
        "_is_stream",
        "_length",
        "_limit",
        "_loop",
        "_parts",
        "_seconds",
        "_waiter",
        "headers",
        "is_complete",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: "Connection", deadline: float) -> None:
        self.status = 0  # until the headers have come
        self.headers: dict[bytes, bytes] = {}
        self.is_complete = False
        self._loop = loop
        self._connection: Connection | None = connection  # while it has more to say
        self._parts: list[bytes] = []
        self._length = 0  # of the parts
        self._limit: int | None = None  # of a whole answer
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = deadline
        self._seconds = 0.0
        self._is_stream = self._is_left = False

    # the reader's side

    async def whole(self, limit: int) -> bytes:
        """The body, before the deadline; raises AnswerTooLong."""
        self._limit = limit
        if self._length > limit:
            raise AnswerTooLong
        if self._connection is not None:
            self._connection.flow()
        while not self.is_complete:
            await self.more()
        return _joined(self._parts)

    def flows(self, seconds: float) -> None:
        """From here on the deadline is that of each `read`."""
        self._is_stream, self._seconds = True, seconds

    async def read(self) -> bytes:
        """What has come since the last time; nothing at the end."""
        while not self._parts:
            if self.is_complete:
                return b""
            self._deadline = self._loop.time() + self._seconds
            await self.more()
        parts, self._parts, self._length = self._parts, [], 0
        if self._connection is not None:
            self._connection.flow()
        return _joined(parts)

    def leave(self) -> None:
        """The reader has enough: the connection is kept when the answer ends in a moment, else hung up."""
        if self._connection is None:
            return
        if self._parts:  # there was more to say
            self.close()
            return
        self._is_left = True
        self._connection.flow()
        self._loop.call_later(DRAIN_SECONDS, self.close)

    def close(self) -> None:
        """Hang up, if it is not at its end."""
        if self._connection is not None:
            self._fail(AnswerCut())

    def more(self) -> asyncio.Future[None]:
        """Done when something has happened; raises what went wrong before."""
        if self._fault is not None:
            raise self._fault
        waiter = self._waiter = self._loop.create_future()
        return waiter

    # the connection's side

    def came(self, data: bytes) -> None:
        if self._is_left:
            self.close()
            return
        self._parts.append(data)
        self._length += len(data)
        if self._limit is None:
            self.wake()
            if self._length > MAX_UNREAD_BYTES and self._connection is not None:
                self._connection.hold()
        elif self._length > self._limit or len(self._parts) > MAX_PIECES:
            self._fail(AnswerTooLong())

    def ended(self) -> None:
        self.is_complete = True
        self._connection = None
        self.wake()

    def failed(self, fault: Exception) -> None:
        self._fault = self._fault or fault
        self._connection = None
        self.wake()

    def look(self, now: float) -> None:
        """Give up if time is up; a stream's runs only while its reader waits."""
        if now > self._deadline and (self._waiter is not None or not self._is_stream):
            self._fail(TimeoutError())

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, fault: Exception) -> None:
        connection = self._connection
        self.failed(fault)
        if connection is not None:
            connection.hang_up()


class Connection(asyncio.Protocol):
    """One connection to a place, in the pool's keeping while nobody uses it."""

    def __init__(self, pool: "Pool", place: Place) -> None:
        self.place = place
        self.kept_since = pool.loop.time()
        self._pool = pool
        self._parser = HttpResponseParser(self)
        self._answer: Answer | None = None
        self._is_open = True
        self._is_held = self._is_sending = self._is_out_of_order = False
        self._beside_body = 0  # bytes since the last one of a body
        self._room: asyncio.Future[None] | None = None  # done when there is room for more of the request
        self._transport: asyncio.Transport

    # a request

    def ask(self, deadline: float) -> Answer:
        """The answer to what is sent next; raises AnswerCut where the other end has left, or spoke unasked."""
        if not self._is_open:
            raise AnswerCut
        answer = self._answer = Answer(self._pool.loop, self, deadline)
        self._beside_body = 0
        return answer

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    async def send_pieces(self, answer: Answer, head: bytes, body: Pieces) -> None:
        """Send a body as fast as it is read, until its end or that of anybody's interest in it."""
        self._is_sending = True
        self._transport.write(head)
        for piece in body:
            if self._room is not None:
                await self._room
            if answer.status or self._answer is not answer:
                return
            self._transport.write(piece)
        self._is_sending = False

    def pause_writing(self) -> None:
        self._room = self._pool.loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # the answer

    def hold(self) -> None:
        if not self._is_held and self._is_open:
            self._is_held = True
            self._transport.pause_reading()

    def flow(self) -> None:
        if self._is_held:
            self._is_held = False
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nobody asked
            self.hang_up()
            return
        self._beside_body += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._garbled()
            return
        if self._answer is None:
            self._settle()
        elif self._beside_body > MAX_HEAD_BYTES:
            self._garbled()

    def on_message_begin(self) -> None:
        if self._answer is None:
            self._is_out_of_order = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None:
            self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is not None:
            status = self._parser.get_status_code()
            if status >= 200:
                answer.status = status
                answer.wake()
                if self._is_sending:
                    self.resume_writing()  # there is nothing more to wait for
            else:
                answer.headers.clear()

    def on_body(self, data: bytes) -> None:
        self._beside_body = 0
        if self._answer is not None:
            self._answer.came(data)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is not None and answer.status:
            self._answer = None
            if not self._parser.should_keep_alive():
                self._is_out_of_order = True
            answer.ended()

    def _settle(self) -> None:
        """The answer has ended: the connection is kept, or not."""
        if self._is_out_of_order or self._is_sending or not self._is_open:
            self.hang_up()
        else:
            self.flow()
            self._pool.keep(self)

    def _garbled(self) -> None:
        """What came is no HTTP; after headers that were, it is an answer that broke off."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.failed(AnswerCut() if answer.status else AnswerGarbled())
        self.hang_up()

    # its end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # which uvloop's is, but for its name
        self._pool.watch(self)

    def eof_received(self) -> None:
        answer = self._answer
        if answer is not None and answer.status and answer.headers.keys().isdisjoint(_LENGTHS):
            self._answer = None
            answer.ended()  # which is how such a one ends
        self.hang_up()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._pool.connections.discard(self)

    def look(self, now: float) -> None:
        """What time does: answers are given up, those that are kept grow old, those that do not close are cut off."""
        if self._answer is not None:
            self._answer.look(now)
        elif not self._is_open:
            self._transport.abort()
        elif now - self.kept_since > (IDLE_SECURE_SECONDS if self.place.is_secure else IDLE_SECONDS):
            self.close()

    def hang_up(self) -> None:
        self._end()
        self._transport.abort()

    def close(self) -> None:
        self._end()
        self._transport.close()

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._pool.drop(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            cut = AnswerCut()
            cut.is_unheard = not answer.status and not self._beside_body
            answer.failed(cut)
        self.resume_writing()


_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


class Pool:
    """The connections of one event loop. Those used last are used first, so that the others grow old and are closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self._kept: dict[Place, list[Connection]] = {}  # oldest first
        self._met: dict[Place, Address] = {}  # where a name's first address did not answer, the one that did
        self._names = Names()
        self._tick: asyncio.TimerHandle | None = None

    async def ask(self, place: Place, head: bytes, body: bytes | Pieces, seconds: float) -> Answer:
        """The answer to a request, with its headers there and `seconds` for all of it.

        Raises a Trouble, or TimeoutError.
        """
        began = self.loop.time()
        kept = self._kept.get(place)
        if kept and isinstance(body, bytes):  # pieces cannot be sent again
            try:
                return await _exchange(kept.pop(), head, body, began + seconds)
            except AnswerCut as error:
                if not error.is_unheard or self.loop.time() - began > STALE_SECONDS:
                    raise
        connection = await self._connected(place, min(seconds, settings.UPSTREAM_CONNECT_TIMEOUT_SECONDS))
        return await _exchange(connection, head, body, began + seconds)

    def watch(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_SECONDS, self._look)

    def keep(self, connection: Connection) -> None:
        kept = self._kept.get(connection.place)
        if kept is None:
            kept = self._kept[connection.place] = []
        if len(kept) >= MAX_IDLE:
            connection.close()
            return
        connection.kept_since = self.loop.time()
        kept.append(connection)

    def drop(self, connection: Connection) -> None:
        """It is of no more use."""
        kept = self._kept.get(connection.place)
        if kept and connection in kept:
            kept.remove(connection)
            if not kept:
                del self._kept[connection.place]

    def _look(self) -> None:
        now = self.loop.time()
        for connection in list(self.connections):
            connection.look(now)
        self._tick = self.loop.call_later(TICK_SECONDS, self._look) if self.connections else None

    async def _connected(self, place: Place, seconds: float) -> Connection:
        """A new connection to one of the place's addresses; they are tried in turn, each for its share of the time."""
        try:
            async with asyncio.timeout(seconds) as patience:
                addresses = await self._names.resolve(place.host, place.port)
                met = self._met.get(place)
                addresses = sorted(addresses, key=lambda address: address != met)
                return await self._first(place, addresses, patience.when() or 0.0)
        except TimeoutError:
            raise
        except OSError as error:
            raise NotConnected(place, error) from error

    async def _first(self, place: Place, addresses: list[Address], deadline: float) -> Connection:
        fault: OSError = OSError("The name has no address.")
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout((deadline - self.loop.time()) / left):
                    connection = await self._to(place, address)
            except OSError as error:  # be it that time is up
                if not isinstance(error, egress.AddressRefused) or left == len(addresses):
                    fault = error
            else:
                if left < len(addresses):
                    self._met[place] = address
                return connection
        raise fault

    async def _to(self, place: Place, address: Address) -> Connection:
        connection = Connection(self, place)
        link = egress.open_socket(address)
        try:
            link.setblocking(False)
            await self.loop.sock_connect(link, address[4])
            await self.loop.create_connection(
                lambda: connection,
                sock=link,
                ssl=_certificates() if place.is_secure else None,
                server_hostname=place.host.rstrip(".") if place.is_secure else None,
            )
        except BaseException:
            if connection in self.connections:
                connection.hang_up()
            else:
                link.close()
            raise
        return connection

    async def close(self) -> None:
        """Hang up on all."""
        if self._tick is not None:
            self._tick.cancel()
        for connection in list(self.connections):
            connection.hang_up()
        for _ in range(10):  # sockets are closed in the turns that follow
            if self.connections:
                await asyncio.sleep(0)


async def _exchange(connection: Connection, head: bytes, body: bytes | Pieces, deadline: float) -> Answer:
    answer = connection.ask(deadline)
    try:
        if not isinstance(body, bytes):
            await connection.send_pieces(answer, head, body)
        elif len(body) <= ONE_WRITE_BYTES:
            connection.send(head + body)
        else:
            await connection.send_pieces(answer, head, _pieces(body))
        while not answer.status:
            await answer.more()
    except BaseException:
        answer.close()
        raise
    return answer


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pieces(body: bytes) -> Pieces:
    """Views of a long body, none a copy."""
    view = memoryview(body)
    return (view[at : at + ONE_WRITE_BYTES] for at in range(0, len(view), ONE_WRITE_BYTES))


@functools.cache
def _certificates() -> ssl.SSLContext:
    """What TLS asks for: a certificate of that name, by an authority that the system trusts."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
