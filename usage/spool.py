"""Usage on its way from a settled call to Postgres: a Redis stream, and a bounded queue here while Redis is away.

A call's record is in the stream before the caller gets the last byte, so a process may die at any moment and lose
none that was settled. The drain deletes entries only after Postgres has committed them, and storing twice does no
harm, so none is counted twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.db import connection, transaction
from prometheus_client import Counter
from pydantic_core import from_json, to_json

from opengate import metrics
from opengate import redis as opengate_redis
from opengate.database import commit
from opengate.loops import END_SECONDS, PerLoop
from opengate.redis import Command, RedisAway
from usage import ledger
from usage.ledger import Record

logger = logging.getLogger(__name__)

STREAM = "opengate:usage"
REJECTED = "opengate:usage:rejected"
BATCH = 1000
RETRY_SECONDS = 0.5
_LOST = Counter(
    "ogl_usage_records_lost", "Usage records that were dropped: Redis was away for too long.", registry=metrics.registry
)
_DRAIN_LOCK = 7_061_936_845_471  # an advisory lock of Postgres: one drain at a time


class Sending:
    """A record on its way into the stream, with whatever else goes with that trip. Who makes one has sent it."""

    def __init__(self, record: Record, also: Iterable[Command] = ()) -> None:
        self._record = record
        self._commands = (_entry(record), *also)
        self._answering: asyncio.Future[list[Any]] | None = None
        with suppress(RedisAway, redis.RedisError):
            self._answering = opengate_redis.begun(self._commands)

    async def arrive(self) -> None:
        """Wait until it is there; with Redis away, keep it and try on. Who stops waiting has somebody else wait."""
        try:
            if self._answering is None:
                raise RedisAway
            await opengate_redis.arrived(self._commands, asyncio.shield(self._answering))
        except (RedisAway, redis.RedisError):  # if it did arrive: storing twice does no harm
            _queue().keep(self._record)


async def send(record: Record) -> None:
    """Put a record into the stream; with Redis away, keep it and try on."""
    await Sending(record).arrive()


class Backlog(NamedTuple):
    """The stream: how many records, how old the first one is in seconds, and how many were put aside."""

    records: int
    oldest_seconds: float
    rejected: int


async def backlog() -> Backlog:
    """What waits in Redis for a drain; raises RedisAway."""
    (seconds, microseconds), records, first, rejected = await opengate_redis.trip(
        ("TIME",), ("XLEN", STREAM), ("XRANGE", STREAM, "-", "+", "COUNT", 1), ("XLEN", REJECTED)
    )
    oldest = 0.0
    if first:
        entry_id = first[0][0].decode()  # milliseconds, a dash, and a number among those of the same
        oldest = int(seconds) + int(microseconds) / 1_000_000 - int(entry_id.partition("-")[0]) / 1000
    return Backlog(records, max(oldest, 0.0), rejected)


def drain() -> int:
    """Move all records from the stream to Postgres; answers how many were new. Another drain at work: 0."""
    stored = 0
    with opengate_redis.sync_client() as client:
        while True:
            new, entries = commit(partial(_store_next, client))
            stored += new
            if entries:
                client.xdel(STREAM, *entries)
            if len(entries) < BATCH:
                return stored


def _entry(record: Record) -> Command:
    return ("XADD", STREAM, "*", "record", to_json(record))


def _claim() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_DRAIN_LOCK])
        return bool(cursor.fetchone()[0])


def _store_next(client: redis.Redis) -> tuple[int, list[Any]]:
    """How many records of the next batch were new, and its entries; none when another drain is at work."""
    if not _claim():
        return 0, []
    entries: Any = client.xrange(STREAM, count=BATCH)
    return _store(client, [fields.get(b"record", b"") for _, fields in entries]), [entry_id for entry_id, _ in entries]


def _store(client: redis.Redis, texts: list[bytes]) -> int:
    """Store a batch; an entry that is no record of ours is put aside for a human, and the rest goes on."""
    try:
        with transaction.atomic():
            return ledger.store([from_json(text) for text in texts])
    except ledger.UNFIT:
        return sum(_store_one(client, text) for text in texts)


def _store_one(client: redis.Redis, text: bytes) -> int:
    try:
        with transaction.atomic():
            return ledger.store([from_json(text)])
    except ledger.UNFIT:
        logger.exception("A usage record cannot be stored and is kept in %s.", REJECTED)
        client.xadd(REJECTED, {"record": text})
        return 0


class _Queue:
    """Records of one event loop that wait for Redis; the oldest gives way when it is full."""

    def __init__(self) -> None:
        self.records: deque[Record] = deque(maxlen=settings.USAGE_QUEUE_RECORDS)
        self.task: asyncio.Task[None] | None = None

    def keep(self, record: Record) -> None:
        if len(self.records) == self.records.maxlen:
            logger.error("The usage queue is full: record %s is lost.", self.records[0]["request_id"])
            _LOST.inc()
        self.records.append(record)
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self._retry())

    async def send_all(self) -> bool:
        """Whether everything was sent."""
        while self.records:
            record = self.records[0]
            try:
                await opengate_redis.trip(_entry(record))
            except (RedisAway, redis.RedisError):
                return False
            if self.records and self.records[0] is record:
                self.records.popleft()
        return True

    async def _retry(self) -> None:
        while not await self.send_all():
            await asyncio.sleep(RETRY_SECONDS)

    async def end(self) -> None:
        """Send what waits. What cannot be sent is lost, and the log says how much."""
        try:
            async with asyncio.timeout(END_SECONDS):
                while not await self.send_all():
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            logger.error("%s usage records are lost: Redis is away and the process ends.", len(self.records))
            _LOST.inc(len(self.records))


_queue = PerLoop(_Queue, _Queue.end)

metrics.watch(
    "ogl_usage_queue_records",
    "Usage records that a process holds while Redis is away.",
    lambda: sum(len(queue.records) for queue in _queue.everywhere()),
)
