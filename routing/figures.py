"""How quick providers were in the last two minutes: samples in Redis, read by the strategies and QoS that need them.

A provider's samples are a sorted set by time. They are taken only where somebody looks at them, and what a process has
read it keeps for a second.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from redis.exceptions import RedisError

from opengate import redis as opengate_redis
from opengate.loops import PerLoop
from opengate.redis import Command, RedisAway

WINDOW_SECONDS: Final = 120
HALF_LIFE_SECONDS: Final = 30
MAX_SAMPLES: Final = 1000  # of a provider; the latest
_KEEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered call: ms to its first token (streams only) and to its end, completion tokens a second."""

    ttft_ms: int | None
    latency_ms: int
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What the samples say; None where there are none.

    `ttft_p95_ms` and `latency_p95_ms` are the values at index ceil(0.95 n) - 1 of the sorted samples, the `decaying`
    ones means in which a sample weighs half as much every HALF_LIFE_SECONDS, `tokens_per_second` the median of calls.
    """

    ttft_p95_ms: float | None = None
    latency_p95_ms: float | None = None
    decaying_ttft_ms: float | None = None
    decaying_latency_ms: float | None = None
    tokens_per_second: float | None = None


NOTHING = Figures()


def key(provider_id: int) -> str:
    return f"opengate:samples:{provider_id}"


def recorded(provider_id: int, call_id: str, sample: Sample) -> Iterator[Command]:
    """Commands that add a sample."""
    now = time.time()
    fields = (now, sample.ttft_ms, sample.latency_ms, sample.tokens_per_second)
    member = ":".join([call_id, *("" if field is None else f"{field:.13g}" for field in fields)])
    yield ("ZADD", key(provider_id), now, member)
    yield ("ZREMRANGEBYRANK", key(provider_id), 0, -MAX_SAMPLES - 1)
    yield ("EXPIRE", key(provider_id), WINDOW_SECONDS)


def of_samples(samples: Sequence[tuple[float, Sample]]) -> Figures:
    """Figures of samples with their ages in seconds."""
    ttfts = [(age, float(sample.ttft_ms)) for age, sample in samples if sample.ttft_ms is not None]
    latencies = [(age, float(sample.latency_ms)) for age, sample in samples]
    speeds = sorted(sample.tokens_per_second for _, sample in samples if sample.tokens_per_second is not None)
    return Figures(
        ttft_p95_ms=_p95(ttfts),
        latency_p95_ms=_p95(latencies),
        decaying_ttft_ms=_decaying(ttfts),
        decaying_latency_ms=_decaying(latencies),
        tokens_per_second=speeds[(len(speeds) - 1) // 2] if speeds else None,
    )


def _p95(values: Sequence[tuple[float, float]]) -> float | None:
    return sorted(value for _, value in values)[math.ceil(0.95 * len(values)) - 1] if values else None


def _decaying(values: Sequence[tuple[float, float]]) -> float | None:
    if not values:
        return None
    youngest = min(age for age, _ in values)  # as a reference, so that no weight vanishes
    weights = [0.5 ** ((age - youngest) / HALF_LIFE_SECONDS) for age, _ in values]
    return sum(w * value for w, (_, value) in zip(weights, values, strict=True)) / sum(weights)


@dataclass(slots=True)
class _Memory:
    """What one event loop has read, by provider: when, and what."""

    read: dict[int, tuple[float, Figures]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


_memory = PerLoop(_Memory)


async def of(provider_ids: Iterable[int]) -> Mapping[int, Figures]:
    """Figures of these providers, a second old at most; with Redis away, none."""
    ids = list(provider_ids)
    memory = _memory()
    async with memory.lock:  # many callers, one trip
        now = time.monotonic()
        stale = [id for id in ids if id not in memory.read or now - memory.read[id][0] > _KEEP_SECONDS]
        if stale:
            memory.read.update({id: (now, found) for id, found in (await _read(stale)).items()})
    return {id: memory.read[id][1] for id in ids}


async def _read(ids: Sequence[int]) -> Mapping[int, Figures]:
    now = time.time()
    try:
        return _of_answers(ids, await opengate_redis.trip(*_queries(ids, now)), now)
    except RedisAway:
        return dict.fromkeys(ids, NOTHING)


def of_now(provider_ids: Iterable[int]) -> Mapping[int, Figures]:
    """The same for sync code, off the hot path."""
    ids, now = list(provider_ids), time.time()
    try:
        with opengate_redis.sync_client() as client, client.pipeline(transaction=False) as pipeline:
            for command in _queries(ids, now):
                pipeline.execute_command(*command)
            return _of_answers(ids, pipeline.execute(), now)
    except RedisError:
        return dict.fromkeys(ids, NOTHING)


def _queries(ids: Sequence[int], now: float) -> Sequence[Command]:
    return [("ZRANGEBYSCORE", key(id), now - WINDOW_SECONDS, "+inf") for id in ids]


def _of_answers(ids: Sequence[int], answers: Sequence[Sequence[bytes]], now: float) -> Mapping[int, Figures]:
    return {
        id: of_samples([_parsed(member, now) for member in answer]) for id, answer in zip(ids, answers, strict=True)
    }


def _parsed(member: bytes, now: float) -> tuple[float, Sample]:
    taken, ttft, latency, speed = member.decode().rsplit(":", 4)[1:]
    sample = Sample(int(ttft) if ttft else None, int(latency), float(speed) if speed else None)
    return max(now - float(taken), 0.0), sample
