"""Which provider takes a call, and who is in flight where.

A provider's in-flight calls are the members of a sorted set in Redis, each with the moment it expires. A heartbeat
of this process pushes the moment on while the call lives; a process that dies leaves members that expire, and no
counter that drifts.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from opengate import redis as opengate_redis
from opengate.redis import Command, RedisAway
from routing.snapshot import Provider, Router

LEASE_SECONDS = 30
HEARTBEAT_SECONDS = 10


def inflight_key(provider_id: int) -> str:
    return f"opengate:inflight:{provider_id}"


def candidates(router: Router) -> Sequence[Provider]:
    """The router's providers in the order they are to be tried."""
    if len(router.providers) == 1:
        return router.providers
    return random.sample(router.providers, len(router.providers))


class Lease:
    """One call in flight at one provider, from `take` until `release` or `end`."""

    __slots__ = ("call_id", "provider")

    def __init__(self, provider: Provider, call_id: str) -> None:
        self.provider = provider
        self.call_id = call_id

    async def release(self) -> None:
        """Leave the provider now, because another one is tried."""
        try:
            await opengate_redis.trip(self.end())
        except RedisAway:
            pass  # the member expires

    def forget(self) -> None:
        """Keep it alive no longer: whatever became of the trip that ends it, it expires."""
        _leases().discard(self)

    def end(self) -> Command:
        """Leave the provider: the command that does it, for the trip at the end of the call."""
        self.forget()
        return ("ZREM", inflight_key(self.provider.id), self.call_id)


async def take(provider: Provider, call_id: str) -> Lease:
    """Put a call in flight at a provider. With Redis away it goes uncounted."""
    lease = Lease(provider, call_id)
    _leases().add(lease)
    try:
        await opengate_redis.ask("ZADD", inflight_key(provider.id), time.time() + LEASE_SECONDS, call_id)
    except RedisAway:
        pass
    return lease


async def inflight(provider_id: int) -> int:
    """How many calls are in flight at a provider, over all processes; raises RedisAway."""
    return int(await opengate_redis.ask("ZCOUNT", inflight_key(provider_id), time.time(), "+inf"))


class _Heart:
    """Keeps the leases of one event loop alive, and sweeps expired members away as it goes."""

    def __init__(self) -> None:
        self.leases: set[Lease] = set()
        self.task = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self.leases:
                try:
                    await opengate_redis.trip(*self._refreshed())
                except RedisAway:
                    pass

    def _refreshed(self) -> Iterator[Command]:
        now = time.time()
        for provider_id in {lease.provider.id for lease in self.leases}:
            yield ("ZREMRANGEBYSCORE", inflight_key(provider_id), "-inf", now)
            yield ("EXPIRE", inflight_key(provider_id), 10 * LEASE_SECONDS)
        for lease in self.leases:
            # XX: a call that ended meanwhile is not put back
            yield ("ZADD", inflight_key(lease.provider.id), "XX", now + LEASE_SECONDS, lease.call_id)


_hearts: WeakKeyDictionary[asyncio.AbstractEventLoop, _Heart] = WeakKeyDictionary()


def _leases() -> set[Lease]:
    loop = asyncio.get_running_loop()
    heart = _hearts.get(loop)
    if heart is None:
        heart = _hearts[loop] = _Heart()
    return heart.leases
