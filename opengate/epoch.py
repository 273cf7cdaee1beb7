"""The epoch: an integer in Redis that grows with each change of who may do what, and the memory that obeys it.

A change of users, keys, roles, limits, routers or providers bumps the epoch on commit. Each process remembers rows
in a `Replica`, marked with the epoch they were read under. The admission script returns the epoch in force, so a
process learns on its very next call that what it remembers is old, and reads again before it goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import redis
from django.db import connection, models, transaction
from django.db.models.signals import post_delete, post_save

from opengate import redis as opengate_redis
from opengate.database import in_thread
from opengate.errors import DatabaseAway
from opengate.redis import RedisAway

logger = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

KEY = "opengate:epoch"
# A fresh, emptied or spoilt Redis starts at its clock in microseconds, so that an epoch never comes twice.
CURRENT_LUA = """
local function current_epoch(key)
  local epoch = redis.call('GET', key)
  if not (epoch and string.match(epoch, '^%d+$')) then
    local now = redis.call('TIME')
    epoch = string.format('%.0f', now[1] * 1000000 + now[2])
    redis.call('SET', key, epoch)
  end
  return epoch
end
"""
_CURRENT = opengate_redis.Script(CURRENT_LUA + "return current_epoch(KEYS[1])")
_BUMP = CURRENT_LUA + "current_epoch(KEYS[1]); return redis.call('INCR', KEYS[1])"

# Beyond these ages rows are read again whatever the epoch says: a belt for a process that died between its commit
# and its bump, and the only clock there is while Redis is away.
MAX_AGE_SECONDS = 60.0
MAX_AGE_WITHOUT_REDIS_SECONDS = 2.0

UNKNOWN = 0
_known = UNKNOWN


def known() -> int:
    """The newest epoch this process has heard of; UNKNOWN before the first."""
    return _known


def observe(epoch: int) -> None:
    """Remember what Redis said last."""
    global _known
    _known = epoch


async def refresh() -> None:
    """Ask Redis for the epoch in force. With Redis away, age alone decides what is fresh."""
    try:
        observe(int(await _CURRENT.run([KEY], [])))
    except RedisAway:
        pass


def bump() -> None:
    """Make every process read again at its next call."""
    with opengate_redis.sync_client() as client:
        try:
            client.eval(_BUMP, 1, KEY)
        except (redis.RedisError, OSError):
            logger.exception("The epoch was not bumped: processes notice the change within %s s.", MAX_AGE_SECONDS)


def bump_on_commit() -> None:
    """Bump once the running transaction is committed, however many rows it changes.

    For changes that send no signals (`update`, `bulk_create`) call it yourself.
    """
    if not any(hook[1] is bump for hook in connection.run_on_commit):
        transaction.on_commit(bump)


def _saved(
    sender: Any, instance: models.Model, created: bool, update_fields: frozenset[str] | None, **kwargs: Any
) -> None:
    if update_fields is not None and update_fields <= {"last_login", "last_used"}:
        return
    if not (created and isinstance(instance, Unremembered)):
        bump_on_commit()


def _deleted(sender: Any, instance: models.Model, **kwargs: Any) -> None:
    if not (isinstance(instance, Unremembered) and instance.is_forgotten()):
        bump_on_commit()


@runtime_checkable
class Unremembered(Protocol):
    """A row that no process can remember, or remember as missing, before it is made.

    Making one is no news, nor is its deletion once `is_forgotten`. Else each sign-in, which makes a key, would have
    every process read everything again.
    """

    def is_forgotten(self) -> bool: ...


def watch(*models_: type[models.Model]) -> None:
    """Bump the epoch whenever a row of these models is saved or deleted."""
    for model in models_:
        post_save.connect(_saved, sender=model, dispatch_uid=f"epoch-save-{model._meta.label}")
        post_delete.connect(_deleted, sender=model, dispatch_uid=f"epoch-delete-{model._meta.label}")


class _Entry(NamedTuple, Generic[T]):
    value: T
    epoch: int
    outages: int
    loaded: float


class Replica(Generic[K, T]):
    """What `load(key)` reads from Postgres, remembered by this process for one epoch; the `limit` keys used last."""

    def __init__(self, load: Callable[[K], T], *, limit: int = 10_000) -> None:
        self._load = in_thread(load)
        self._limit = limit
        self._entries: dict[K, _Entry[T]] = {}
        self._loading: dict[tuple[int, K], asyncio.Future[T]] = {}

    async def get(self, key: K) -> T:
        """The value under the newest known epoch; raises DatabaseAway when it must be read and cannot be."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry  # at the end: the first to go is the one not used for longest
            if self._is_fresh(entry):
                return entry.value
        flight = (id(asyncio.get_running_loop()), key)
        loading = self._loading.get(flight)
        if loading is None:
            loading = self._loading[flight] = asyncio.ensure_future(self._read(key))
            loading.add_done_callback(partial(self._landed, flight))
        return await asyncio.shield(loading)

    def _is_fresh(self, entry: _Entry[T]) -> bool:
        if entry.epoch != _known or entry.outages != opengate_redis.breaker.outages:
            return False
        limit = MAX_AGE_WITHOUT_REDIS_SECONDS if opengate_redis.breaker.failures else MAX_AGE_SECONDS
        return time.monotonic() - entry.loaded < limit

    async def _read(self, key: K) -> T:
        if _known == UNKNOWN:
            await refresh()
        epoch, outages, started = _known, opengate_redis.breaker.outages, time.monotonic()
        try:
            value = await self._load(key)
        except DatabaseAway:
            entry = self._entries.get(key)
            if entry is None or entry.epoch != _known:
                raise  # something changed, and nobody can say what
            return entry.value
        self._entries.pop(key, None)
        self._entries[key] = _Entry(value, epoch, outages, started)
        if len(self._entries) > self._limit:
            del self._entries[next(iter(self._entries))]
        return value

    def _landed(self, flight: tuple[int, K], future: asyncio.Future[T]) -> None:
        self._loading.pop(flight, None)
        if not future.cancelled():
            future.exception()  # whoever waits raises it; with nobody left there is nobody to tell
