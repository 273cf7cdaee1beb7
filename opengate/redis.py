"""Redis for the hot path: one client an event loop, a time limit on each command, a breaker for outages.

Slow is worse than dead: after a few failures in a row commands are refused at once for a moment, so that a call waits
for a sick Redis a few times at most. Who asks decides what an outage means (`RedisAway`).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)
T = TypeVar("T")

FAILURES_TO_OPEN = 3
OPEN_SECONDS = 1.0
MAX_CONNECTIONS = 64


class RedisAway(Exception):
    """Redis did not answer in time, or is known to be away."""


class Breaker:
    """Counts failures in a row; open, it lets one command through each `OPEN_SECONDS`.

    `outages` counts the times Redis came back: what was remembered from before may miss a change made meanwhile.
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
        if self.failures:
            self.failures = 0
            self.outages += 1
            logger.warning("Redis answers again.")


breaker = Breaker()
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()
_FAULTS = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError, OSError)


def client() -> redis.asyncio.Redis:
    """The client of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _clients.get(loop)
    if found is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.REDIS_URL,
            max_connections=MAX_CONNECTIONS,
            timeout=settings.REDIS_TIMEOUT_SECONDS,
            socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
            # A kept connection may have been closed by a restart: once more, on a new one. Never after a time-out.
            retry=AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        found = _clients[loop] = redis.asyncio.Redis.from_pool(pool)
    return found


def sync_client() -> redis.Redis:
    """A client for sync code off the hot path: tasks, commands, commits in the console. Close it after use."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


async def ask(command: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Run one command (or one pipeline's execute) under the breaker; raises RedisAway."""
    if not breaker.allows():
        raise RedisAway
    try:
        answer = await command(*args, **kwargs)
    except _FAULTS as error:
        breaker.failed(error)
        raise RedisAway from error
    if breaker.failures:
        breaker.succeeded()
    return answer


async def trip(*commands: Callable[[Pipeline], object]) -> None:
    """Run what each of `commands` adds to a pipeline in one round trip; raises RedisAway."""
    pipeline = client().pipeline(transaction=False)
    for add in commands:
        add(pipeline)
    await ask(pipeline.execute)


async def close() -> None:
    """Close the running event loop's client."""
    found = _clients.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.aclose()
