"""How busy and how well providers are right now, for people who watch them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from opengate import redis as opengate_redis
from opengate.redis import Command, RedisAway
from routing import circuit
from routing.circuit import Circuit
from routing.places import inflight_key, line_key


@dataclass(frozen=True, slots=True)
class Load:
    """A provider's calls in flight, over all processes, and its circuit."""

    inflight: int = 0
    circuit: Circuit = field(default_factory=Circuit)


async def of(provider_ids: Iterable[int]) -> Mapping[int, Load]:
    """The load of these providers; raises RedisAway."""
    ids = list(provider_ids)
    return _read(ids, await opengate_redis.trip(*_queries(ids)))


def of_now(provider_ids: Iterable[int]) -> Mapping[int, Load]:
    """The same for sync code, off the hot path."""
    ids = list(provider_ids)
    try:
        with opengate_redis.sync_client() as client, client.pipeline(transaction=False) as pipeline:
            for command in _queries(ids):
                pipeline.execute_command(*command)
            return _read(ids, pipeline.execute())
    except RedisError as error:
        raise RedisAway from error


async def waiting(router_ids: Iterable[int]) -> Mapping[int, int]:
    """How many calls wait for a place at each router's providers; raises RedisAway."""
    ids = list(router_ids)
    counts = await opengate_redis.trip(*(("ZCARD", line_key(id)) for id in ids)) if ids else []
    return dict(zip(ids, counts, strict=True))


def _queries(ids: Sequence[int]) -> Sequence[Command]:
    return [("TIME",), *map(circuit.query, ids), *(("ZCARD", inflight_key(id)) for id in ids)]


def _read(ids: Sequence[int], answers: Sequence[Any]) -> Mapping[int, Load]:
    (seconds, microseconds), *rest = answers
    now = int(seconds) + int(microseconds) / 1_000_000
    circuits, counts = rest[: len(ids)], rest[len(ids) :]
    return {id: Load(count, circuit.read(fields, now)) for id, fields, count in zip(ids, circuits, counts, strict=True)}
