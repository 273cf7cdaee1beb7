"""Redis for the hot path: one line an event loop, a time limit on each trip, a breaker for outages.

Commands that are asked for while a batch is under way leave together with the next one, so many callers share a trip
and a few connections. Slow is worse than dead: after a few failures in a row commands are refused at once for a moment,
so that a call waits for a sick Redis a few times at most. Who asks decides what an outage means (`RedisAway`).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, NoScriptError, ResponseError, TryAgainError
from redis.retry import Retry

from opengate import metrics
from opengate.loops import PerLoop

logger = logging.getLogger(__name__)

Command = tuple[str | bytes | int | float, ...]

FAILURES_TO_OPEN = 3
OPEN_SECONDS = 1.0
MAX_BATCHES = 4  # under way at a time, each on a connection of its own


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
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    ClusterDownError,  # a primary that is away, too
    TryAgainError,
    OSError,
)
# What it says, in place of an answer, when its disk is full, its replicas are away, or a script does not end.
_UNABLE = ("MISCONF ", "NOREPLICAS ", "BUSY ")


class _Line:
    """The commands of one event loop on their way to Redis."""

    def __init__(self) -> None:
        self.client = redis.asyncio.Redis.from_url(
            settings.REDIS_URL,
            max_connections=MAX_BATCHES,
            socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
            # A kept connection may have been closed by a restart: once more, on a new one. Never after a time-out.
            retry=AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._batches: set[asyncio.Task[None]] = set()
        self._leaving = False

    def send(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The answers to come, in order; errors of single commands among them."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append((commands, future))
        self._leave_soon()
        return future

    def _leave_soon(self) -> None:
        if self._waiting and not self._leaving and len(self._batches) < MAX_BATCHES:
            self._leaving = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        batch, self._waiting = self._waiting, []
        task = self._loop.create_task(self._carry(batch))
        self._batches.add(task)
        task.add_done_callback(self._arrived)

    async def end(self) -> None:
        """Once what is under way has arrived."""
        await asyncio.gather(*self._batches, return_exceptions=True)
        await self.client.aclose()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._leave_soon()

    async def _carry(self, batch: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]]) -> None:
        try:
            pipeline = self.client.pipeline(transaction=False)
            for commands, _ in batch:
                for command in commands:
                    pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # whatever it is, nobody may wait for ever
            if isinstance(error, _FAULTS):
                breaker.failed(error)
                error = RedisAway()
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        if breaker.failures:
            breaker.succeeded()
        start = 0
        for commands, future in batch:
            stop = start + len(commands)
            if not future.done():
                future.set_result(answers[start:stop])
            start = stop


_line = PerLoop(_Line, _Line.end)


async def trip(*commands: Command) -> list[Any]:
    """Run commands in one round trip, and answer what each answers; raises RedisAway, or the first command's error."""
    if not breaker.allows():
        raise RedisAway
    answers = await _line().send(commands)
    for answer in answers:
        if isinstance(answer, _FAULTS) or (isinstance(answer, ResponseError) and str(answer).startswith(_UNABLE)):
            raise RedisAway from answer
        if isinstance(answer, Exception):
            raise answer
    return answers


async def ask(*command: str | bytes | int | float) -> Any:
    """The answer of one command; raises as `trip` does."""
    return (await trip(command))[0]


class Script:
    """A Lua script, which Redis runs as one step."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = sha1(text.encode()).hexdigest()  # noqa: S324  as Redis names its scripts

    async def run(self, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """What it answers; it goes over the line once, and by its name from then on. Raises as `trip` does."""
        try:
            return await ask("EVALSHA", self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await ask(*self.command(keys, arguments))

    def command(self, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Command:
        """The command that runs it whether Redis knows it or not, to travel with others."""
        return ("EVAL", self._text, len(keys), *keys, *arguments)


def sync_client() -> redis.Redis:
    """A client for sync code off the hot path: tasks, commands, commits in the console. Close it after use."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
