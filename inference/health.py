"""Whether models can be called now: what calls have found out, and what upstreams say when asked."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from redis.exceptions import RedisError

from inference import upstream
from inference.errors import UpstreamTrouble
from opengate import redis as opengate_redis
from opengate.loops import PerLoop
from opengate.redis import RedisAway
from routing import balancing, load
from routing.circuit import State
from routing.figures import NOTHING
from routing.load import Load
from routing.places import UNLIMITED
from routing.snapshot import Provider, Router

PROBE_SECONDS: Final = 3
KEEP_SECONDS: Final = 15
AT_ONCE: Final = 20


class Status(StrEnum):
    """GREEN: every provider takes calls. YELLOW: some are away or full, or calls wait. RED: none takes calls."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


async def of(routers: Sequence[Router]) -> Sequence[Status]:
    """The status of each router. An upstream is asked at most once in KEEP_SECONDS, whoever wants to know."""
    providers = [provider for router in routers for provider in router.providers]
    try:
        loads = await load.of(provider.id for provider in providers)
        lines = await load.waiting(router.id for router in routers)
    except RedisAway:
        loads, lines = {}, {}
    answers = await asyncio.gather(*(_answers(provider) for provider in providers))
    found = {
        provider.id: _status(provider, loads.get(provider.id, Load()), answer)
        for provider, answer in zip(providers, answers, strict=True)
    }
    return [_whole([found[p.id] for p in router.providers], lines.get(router.id, 0)) for router in routers]


def last_answers(provider_ids: Iterable[int]) -> Mapping[int, bool]:
    """Of upstreams that were asked in the last KEEP_SECONDS, whether they answered. For sync code; raises RedisAway."""
    ids = list(provider_ids)
    if not ids:
        return {}
    try:
        with opengate_redis.sync_client() as client:
            known: Any = client.mget([_probe_key(id) for id in ids])
    except RedisError as error:
        raise RedisAway from error
    return {id: bool(int(answer)) for id, answer in zip(ids, known, strict=True) if answer is not None}


def _probe_key(provider_id: int) -> str:
    return f"opengate:probe:{provider_id}"


def _status(provider: Provider, now: Load, answers: bool) -> Status:
    if now.circuit.state == State.OPEN or not answers:
        return Status.RED
    capacity = balancing.capacity(provider, NOTHING)
    is_full = capacity != UNLIMITED and now.inflight >= capacity
    return Status.YELLOW if is_full or now.circuit.state == State.HALF_OPEN else Status.GREEN


def _whole(statuses: Sequence[Status], waiting: int) -> Status:
    if all(status == Status.RED for status in statuses):
        return Status.RED
    return Status.GREEN if not waiting and all(status == Status.GREEN for status in statuses) else Status.YELLOW


async def _answers(provider: Provider) -> bool:
    """Whether the upstream lists the model; as it was found lately, or asked now, by one for all."""
    desk = _desk()
    asking = desk.asking.get(provider.id)
    if asking is None:
        asking = desk.asking[provider.id] = asyncio.ensure_future(_found(provider, desk.gate))
        asking.add_done_callback(lambda _: desk.asking.pop(provider.id, None))
    return await asyncio.shield(asking)  # who leaves does not take the answer from the others


async def _found(provider: Provider, gate: asyncio.Semaphore) -> bool:
    key = _probe_key(provider.id)
    try:
        known = await opengate_redis.ask("GET", key)
    except RedisAway:
        known = None
    if known is not None:
        return bool(int(known))
    async with gate:
        answers = await _probe(provider)
    try:
        await opengate_redis.ask("SET", key, int(answers), "EX", KEEP_SECONDS)
    except RedisAway:
        pass
    return answers


async def _probe(provider: Provider) -> bool:
    try:
        await upstream.client(replace(provider, timeout=min(provider.timeout, PROBE_SECONDS))).describe()
    except UpstreamTrouble:
        return False
    return True


@dataclass(slots=True)
class _Desk:
    """What one event loop asks upstreams, a few at a time."""

    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    asking: dict[int, asyncio.Task[bool]] = field(default_factory=dict)


_desk = PerLoop(_Desk)
