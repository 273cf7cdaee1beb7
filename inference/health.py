"""Whether models can be called now: what calls have found out, and what upstreams say when asked."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final
from weakref import WeakKeyDictionary

from inference import upstream
from inference.errors import UpstreamTrouble
from opengate import redis as opengate_redis
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
    """Whether the upstream lists the model; as it was found lately, or asked now."""
    key = f"opengate:probe:{provider.id}"
    try:
        known = await opengate_redis.ask("GET", key)
    except RedisAway:
        known = None
    if known is not None:
        return bool(int(known))
    answers = await _probe(provider)
    try:
        await opengate_redis.ask("SET", key, int(answers), "EX", KEEP_SECONDS)
    except RedisAway:
        pass
    return answers


_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def _probe(provider: Provider) -> bool:
    gate = _gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
    try:
        async with gate:
            await upstream.client(replace(provider, timeout=min(provider.timeout, PROBE_SECONDS))).describe()
    except UpstreamTrouble:
        return False
    return True
