"""Redis for the hot path: one line an event loop, a time limit on each trip, a breaker for outages.

Commands leave as they come, on one connection, and nobody waits until others are answered. Slow is worse than dead:
after a few failures in a row commands are refused at once for a moment, so that a call waits for a sick Redis a few
times at most. Who asks decides what an outage means (`RedisAway`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Final

import hiredis
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, NoScriptError, ResponseError, TryAgainError
from redis.retry import Retry

from opengate import metrics
from opengate.loops import PerLoop
from opengate.quick_settings import settings

logger = logging.getLogger(__name__)

Word = str | bytes | int | float
Words = Sequence[str | int | float]
Command = tuple[Word, ...] | bytes  # bytes are packed

FAILURES_TO_OPEN = 3
OPEN_SECONDS = 1.0
SECOND_LOOK_SECONDS = 0.01


class RedisAway(Exception):
    """Redis did not answer in time, or is known to be away."""


class Breaker:
    """Counts failures in a row; open, it lets one batch through each `OPEN_SECONDS`.

    `outages` counts the times Redis came back after it was open: a change made meanwhile may not have been told.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0
        self.outages = 0

    def allows(self) -> bool:
        if self.failures < FAILURES_TO_OPEN:
            return True
        now = time.monotonic()
        if now < self.open_until:
            return False
        self.open_until = now + OPEN_SECONDS
        return True

    def failed(self, error: BaseException) -> None:
        self.failures += 1
        if self.failures == FAILURES_TO_OPEN:
            self.open_until = time.monotonic() + OPEN_SECONDS
        if self.failures in (1, FAILURES_TO_OPEN):
            logger.warning("Redis does not answer (%s: %s).", type(error).__name__, error)

    def succeeded(self) -> None:
        if self.failures >= FAILURES_TO_OPEN:
            self.outages += 1
            logger.warning("Redis answers again.")
        self.failures = 0


breaker = Breaker()
metrics.watch(
    "ogl_redis_circuit_open",
    "1 while a process refuses to ask Redis, which did not answer it.",
    lambda: breaker.failures >= FAILURES_TO_OPEN,
)
_FAULTS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.InvalidResponse,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    ClusterDownError,  # a primary that is away, too
    TryAgainError,
    OSError,
)
# What it says, in place of an answer, when its disk is full, its replicas are away, or a script does not end.
_UNABLE = ("MISCONF ", "NOREPLICAS ", "BUSY ")


@dataclass(slots=True, eq=False)
class _Trip:
    """Commands on their way, packed; and the answers that have come so far."""

    packed: bytes
    count: int
    arrived: asyncio.Future[list[Any]]
    sent: float = 0.0
    is_second: bool = False  # its connection was lost, and it goes once more
    answers: list[Any] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        if not self.arrived.done():
            self.arrived.set_exception(error)


class _Connection(asyncio.Protocol):
    """One connection, which redis-py opened and signed in: from then on bytes go out, and answers come in their order.

    Its own way of a command has a task, a lock and two timers, which is several times the work.
    """

    def __init__(self, line: "_Line", opened: redis.asyncio.Connection) -> None:
        self._line = line
        self._opened = opened  # whoever lets go of it closes the transport
        self._loop = asyncio.get_running_loop()
        self._patience = settings.REDIS_TIMEOUT_SECONDS
        self._under_way: deque[_Trip] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._is_broken = False
        self._replies = hiredis.Reader(replyError=opened._parser.parse_error)  # into the library's errors
        self._transport: Any = opened._writer.transport  # type: ignore[union-attr]
        self._transport.set_protocol(self)

    def send(self, trip: _Trip) -> None:
        trip.sent = self._loop.time()
        self._under_way.append(trip)
        self._transport.write(trip.packed)
        if self._timer is None:
            self._timer = self._loop.call_at(trip.sent + self._patience, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._replies.feed(data)
        try:
            while (answer := self._replies.gets()) is not False:
                if isinstance(answer, redis.ConnectionError):  # it is loading, or has too many clients
                    raise answer
                self._take(answer)
        except (redis.ConnectionError, hiredis.ProtocolError, IndexError) as error:  # or says what nobody asked for
            self._break(error if isinstance(error, redis.ConnectionError) else redis.InvalidResponse())

    def _take(self, answer: Any) -> None:
        trip = self._under_way[0]
        trip.answers.append(answer)
        if len(trip.answers) == trip.count:
            self._under_way.popleft()
            if breaker.failures:
                breaker.succeeded()
            if not trip.arrived.done():
                trip.arrived.set_result(trip.answers)

    def _look(self, silent_since: float = 0.0) -> None:
        """Whether Redis is silent, though something is under way; one timer for all trips.

        A process that was itself held up looks twice, since timers may come before the answers that lie there.
        """
        self._timer = None
        if self._under_way:
            since = max(self._under_way[0].sent, self._heard)
            if since + self._patience > self._loop.time():
                self._timer = self._loop.call_at(since + self._patience, self._look)
            elif since != silent_since:
                self._timer = self._loop.call_later(SECOND_LOOK_SECONDS, self._look, since)
            else:
                self._break(redis.TimeoutError("No answer in time."))

    def connection_lost(self, error: BaseException | None) -> None:
        self._break(error or redis.ConnectionError("The connection was closed."))

    def _break(self, error: BaseException) -> None:
        if not self._is_broken:
            self._is_broken = True
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()
            self._opened._close()
            self._line.lost(error, self._under_way)

    async def end(self) -> None:
        """Once what is under way has arrived."""
        if self._under_way:
            await asyncio.wait([trip.arrived for trip in self._under_way])
        self._is_broken = True
        if self._timer is not None:
            self._timer.cancel()
        self._opened._close()


def _packed(command: Command) -> bytes:
    return command if isinstance(command, bytes) else hiredis.pack_command(command)  # type: ignore[arg-type]


class _Line:
    """The commands of one event loop on their way to Redis."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._waiting: list[_Trip] = []  # for a connection

    def send(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The answers to come, in order; errors of single commands among them."""
        try:
            packed = b"".join([_packed(command) for command in commands])
        except TypeError as error:
            raise redis.DataError(str(error)) from None
        trip = _Trip(packed, len(commands), self._loop.create_future())
        self._carry(trip)
        return trip.arrived

    def _carry(self, trip: _Trip) -> None:
        if self._connection is not None:
            self._connection.send(trip)
            return
        self._waiting.append(trip)
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            self._connection = _Connection(self, await _opened())
        except Exception as error:  # whatever it is, nobody may wait for ever
            waiting, self._waiting = self._waiting, []
            self._fail(waiting, error)
        else:
            waiting, self._waiting = self._waiting, []
            for trip in waiting:
                self._connection.send(trip)
        finally:
            self._opening = None

    def lost(self, error: BaseException, under_way: Sequence[_Trip]) -> None:
        """A kept connection may have been closed by a restart: once more, on a new one. Never after a time-out."""
        self._connection = None
        is_closed = type(error) is redis.ConnectionError or isinstance(error, OSError)
        again = [trip for trip in under_way if is_closed and not trip.is_second]
        self._fail([trip for trip in under_way if trip not in again], error)
        for trip in again:
            trip.is_second, trip.answers = True, []
            self._carry(trip)

    def _fail(self, trips: Sequence[_Trip], error: BaseException) -> None:
        if trips and isinstance(error, _FAULTS):
            breaker.failed(error)
            error = RedisAway()
        for trip in trips:
            trip.fail(error)

    async def end(self) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        if self._connection is not None:
            await self._connection.end()


async def _opened() -> redis.asyncio.Connection:
    """A connection by what the URL says: TLS, sign-in, database, a socket's path."""
    pool = redis.asyncio.ConnectionPool.from_url(
        settings.REDIS_URL,
        protocol=2,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
    )
    connection: redis.asyncio.Connection = pool.make_connection()
    await connection.connect()
    return connection


_line = PerLoop(_Line, _Line.end)


async def trip(*commands: Command) -> list[Any]:
    """Run commands in one round trip, and answer what each answers; raises RedisAway, or the first command's error."""
    return await arrived(commands, begun(commands)) if commands else []


def begun(commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
    """Send commands at once, for `arrived` to wait for: they are on their way whoever waits. Raises RedisAway."""
    if not breaker.allows():
        raise RedisAway
    return _line().send(commands)


async def arrived(commands: Sequence[Command], answering: asyncio.Future[list[Any]]) -> list[Any]:
    """What commands that were `begun` answer; raises as `trip` does."""
    answers = await answering
    for at, answer in enumerate(answers):
        if isinstance(answer, NoScriptError):  # it has forgotten them, or never knew
            answer = answers[at] = (await _line().send([*_scripts, commands[at]]))[-1]
        if isinstance(answer, Exception):
            if isinstance(answer, _FAULTS) or (isinstance(answer, ResponseError) and str(answer).startswith(_UNABLE)):
                raise RedisAway from answer
            raise answer
    return answers


async def ask(*command: Word) -> Any:
    """The answer of one command; raises as `trip` does."""
    return (await trip(command))[0]


BLANK: Final = "\0"  # in a form: a word to be filled in


class Form:
    """A command of many words, most of which are the same each time: those are packed once."""

    __slots__ = ("_packed",)

    def __init__(self, command: tuple[Word, ...]) -> None:
        packed = _packed(command).replace(b"%", b"%%")
        self._packed = packed.replace(b"$1\r\n\0\r\n", b"$%d\r\n%b\r\n")

    def filled(self, *words: str | int | float) -> Command:
        """The command with a word in place of each BLANK, in order."""
        blanks: list[int | bytes] = []
        for word in words:
            text = str(word).encode()
            blanks += (len(text), text)
        return self._packed % tuple(blanks)


_scripts: list[Command] = []  # the commands that make Redis know each of them


class Script:
    """A Lua script, which Redis runs as one step."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = sha1(text.encode()).hexdigest()  # noqa: S324  as Redis names its scripts
        _scripts.append(("SCRIPT", "LOAD", text))

    def run(self, keys: Sequence[str], arguments: Words) -> Awaitable[Any]:
        """What it answers; raises as `trip` does."""
        return ask(*self.command(keys, arguments))

    def command(self, keys: Sequence[str], arguments: Words) -> tuple[Word, ...]:
        """The command of a `trip` that runs it."""
        return ("EVALSHA", self._sha, len(keys), *keys, *arguments)

    def whole(self, keys: Sequence[str], arguments: Words) -> tuple[Word, ...]:
        """The same with all of its text, for a client that does not know whether Redis has it."""
        return ("EVAL", self._text, len(keys), *keys, *arguments)


def sync_client() -> redis.Redis:
    """A client for sync code off the hot path: tasks, commands, commits in the console. Close it after use."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
