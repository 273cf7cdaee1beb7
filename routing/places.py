"""Places at providers: who is in flight where, and who waits for a place.

A provider's in-flight calls are the members of a sorted set in Redis, each with the moment it expires. A heartbeat
of this process pushes the moment on while the call lives; a process that dies leaves members that expire, and no
counter that drifts.

Callers for whom no provider has room wait in a line, a sorted set for each router: by the moment they came, less a head
start for their priority. One script gives places to the foremost, whatever process they are in; a process asks for its
own as soon as one of its calls ends, and every `TICK_SECONDS`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from django.conf import settings

from opengate import redis as opengate_redis
from opengate.loops import PerLoop, Tasks
from opengate.redis import Command, RedisAway
from routing import circuit, figures
from routing.errors import ModelTooBusy, ProvidersAway
from routing.figures import Sample
from routing.snapshot import Provider

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30
HEARTBEAT_SECONDS = 10
TICK_SECONDS = 0.01
ASKED_A_SECOND = 20_000  # waiting calls that one process asks for; a long line is asked for less often
PATIENCE_SECONDS = 2  # a waiting call of which nothing is heard for so long has left the line
UNLIMITED: Final = -1


def inflight_key(provider_id: int) -> str:
    return f"opengate:inflight:{provider_id}"


def line_key(router_id: int) -> str:
    return f"opengate:line:{router_id}"


# KEYS: the line, when each in it was last heard of, then in-flight calls and circuit of each provider, in the order of
# preference. ARGV: seconds of a lease, of patience, of a trial, the number of providers, the most calls at each (-1:
# any number), then of each waiting call its id, a 1 or 0 a provider (may it go there) and its head start in seconds.
# Answers for each waiting call 0 (wait), 2n (place at the nth provider), 2n + 1 (the same, and its circuit counts
# outages), or minus the milliseconds until a provider may be tried, when the circuits of all are open. Where some
# circuit is open there is one answer more: a 1 or 0 a provider.
PLACES_LUA = """
local function places_for(KEYS, ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local line, heard = KEYS[1], KEYS[2]
local lease, patience, trial = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local count = tonumber(ARGV[4])

local room, suspect, half_open, opens, places = {}, {}, {}, {}, 0
for i = 1, count do
  local inflight, circuit = KEYS[1 + 2 * i], KEYS[2 + 2 * i]
  local capacity = tonumber(ARGV[4 + i])
  local state = redis.call('HMGET', circuit, 'failures', 'until')
  local closed_until = tonumber(state[2])
  suspect[i] = state[1] and 1 or 0
  room[i] = math.huge
  if capacity >= 0 then
    redis.call('ZREMRANGEBYSCORE', inflight, '-inf', now)
    room[i] = math.max(capacity - redis.call('ZCARD', inflight), 0)
  end
  if closed_until and closed_until > now then
    room[i], opens[i] = 0, closed_until - now
  elseif closed_until then
    room[i], half_open[i] = math.min(room[i], 1), true
  end
  if room[i] > 0 then places = places + 1 end
end

local function place(allowed)
  for i = 1, count do
    if room[i] > 0 and (not allowed or string.sub(allowed, i, i) == '1') then
      room[i] = room[i] - 1
      if room[i] <= 0 then places = places - 1 end
      return i
    end
  end
end

local mine, answers, first, number = {}, {}, {}, 0
for at = 5 + count, #ARGV, 3 do
  number = number + 1
  mine[ARGV[at]] = {number, ARGV[at + 1], tonumber(ARGV[at + 2])}
  answers[number], first[number] = 0, ARGV[at]
end

local order = first
if number > 1 or redis.call('EXISTS', line) == 1 then
  for _, id in ipairs(first) do
    redis.call('ZADD', line, 'NX', now - mine[id][3], id)
    redis.call('ZADD', heard, now + patience, id)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', heard, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', line, id)
    redis.call('ZREM', heard, id)
  end
  order = places > 0 and redis.call('ZRANGE', line, 0, 999) or {}
end
for _, id in ipairs(order) do
  if places <= 0 then break end
  local call = mine[id]
  local i = place(call and call[2])
  if call and i then
    answers[call[1]] = 2 * i + suspect[i]
    redis.call('ZADD', KEYS[1 + 2 * i], now + lease, id)
    redis.call('EXPIRE', KEYS[1 + 2 * i], 10 * lease)
    if half_open[i] then
      redis.call('HSET', KEYS[2 + 2 * i], 'until', string.format('%.3f', now + trial), 'trial', id)
    end
  end
end
local waits = false
for n, id in ipairs(first) do
  if answers[n] == 0 then
    local soonest
    for i = 1, count do
      if string.sub(mine[id][2], i, i) == '1' then
        soonest = math.min(soonest or math.huge, opens[i] or 0)
      end
    end
    if soonest and soonest > 0 then answers[n] = -math.ceil(soonest * 1000) end
  end
  if answers[n] == 0 then
    waits = true
    redis.call('ZADD', line, 'NX', now - mine[id][3], id)
    redis.call('ZADD', heard, now + patience, id)
  elseif order ~= first then
    redis.call('ZREM', line, id)
    redis.call('ZREM', heard, id)
  end
end
if waits then
  redis.call('EXPIRE', line, 60)
  redis.call('EXPIRE', heard, 60)
end
if next(opens) then
  local are_open = {}
  for i = 1, count do are_open[i] = opens[i] and '1' or '0' end
  answers[number + 1] = table.concat(are_open)
end
return answers
end
"""
_PLACES = opengate_redis.Script(PLACES_LUA + "return places_for(KEYS, ARGV)")


class Option(NamedTuple):
    """A provider that may take a call, and how many calls it may have at a time (UNLIMITED: any number)."""

    provider: Provider
    capacity: int = UNLIMITED


class Verdict(StrEnum):
    """Why a call went to a provider, or not."""

    CHOSEN = "chosen"
    NOT_NEEDED = "not_needed"  # a preferred one had room
    TRIED = "tried"  # it failed before
    OPEN = "open"
    FULL = "full"


@dataclass(slots=True)
class Choice:
    """The providers as they were when a call was last looked at: in the order of preference.

    `open` has a 1 or 0 for each, whether its circuit was open; empty when none was, or nobody could tell. `is_counted`
    is false with Redis away.
    """

    options: Sequence[Option] = ()
    allowed: str = ""
    open: str = ""
    chosen: int | None = None
    is_counted: bool = True

    def verdicts(self) -> Iterator[tuple[Option, Verdict]]:
        for at, option in enumerate(self.options):
            if at == self.chosen:
                yield option, Verdict.CHOSEN
            elif self.allowed[at] == "0":
                yield option, Verdict.TRIED
            elif self.chosen is not None and at > self.chosen:
                yield option, Verdict.NOT_NEEDED
            elif self.open[at : at + 1] == "1":
                yield option, Verdict.OPEN
            else:
                yield option, Verdict.FULL


Takers = tuple[tuple[int, int], ...]
Options = Callable[[], Awaitable[Sequence[Option]]]  # the router's providers as of now, in the order of preference


class Lease:
    """One call's place at one provider, from `take` until `release` or `end`.

    What becomes of the call there, is said with `answered` or `failed`; a call that its caller gave up says nothing.
    """

    __slots__ = ("_is_alive", "_is_suspect", "call_id", "provider", "router_id", "started", "ttft_ms")

    def __init__(self, provider: Provider, call_id: str, router_id: int, *, is_suspect: bool = False) -> None:
        self.provider = provider
        self.call_id = call_id
        self.router_id = router_id
        self.started = time.perf_counter()
        self.ttft_ms: int | None = None
        self._is_suspect = is_suspect
        self._is_alive: bool | None = None
        _heart().leases.add(self)

    def elapsed_ms(self) -> int:
        return round((time.perf_counter() - self.started) * 1000)

    def first_token(self) -> None:
        self.ttft_ms = self.elapsed_ms()

    def answered(self) -> None:
        """The provider is well, whatever it answered."""
        self._is_alive = True

    def failed(self) -> None:
        """The provider is away."""
        self._is_alive = False

    async def release(self) -> None:
        """Leave the provider now, because another one is tried."""
        with suppress(RedisAway):  # the member expires
            await opengate_redis.trip(*self.end())
        self.forget()

    def end(self, sample: Sample | None = None) -> Iterator[Command]:
        """Leave the provider: the commands that do it, for the trip at the end of the call; then `forget`."""
        yield ("ZREM", inflight_key(self.provider.id), self.call_id)
        if self._is_alive is False:
            yield circuit.failed(self.provider.id)
        elif self._is_alive and self._is_suspect:
            yield circuit.answered(self.provider.id)
        if sample is not None:
            yield from figures.recorded(self.provider.id, self.call_id, sample)

    def forget(self) -> None:
        """Keep it alive no longer: whatever became of the trip that ends it, it expires. Who waits may ask again."""
        heart = _heart()
        heart.leases.discard(self)
        line = heart.lines.get(self.router_id)
        if line is not None:
            line.freed.set()


@dataclass(slots=True, eq=False)
class Waiting:
    """A call that wants a place: not at those `tried` already, and so many seconds ahead of others."""

    call_id: str
    tried: frozenset[int]
    head_start: float
    choice: Choice = field(default_factory=Choice)  # filled in when it is asked for
    place: asyncio.Future[Lease] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Wish:
    """A call's wish for a place at one of a router's providers, for which it waits so long at most."""

    def __init__(self, router_id: int, options: Options, waiting: Waiting, patience_seconds: float) -> None:
        self._router_id = router_id
        self._options = options
        self._waiting = waiting
        self._patience_seconds = patience_seconds
        self._is_asked = False

    async def question(self) -> "Question":
        """For whoever asks Redis in a trip of his own, and then tells the answers; `granted` has the place."""
        self._is_asked = True
        return Question(self._router_id, await self._options(), [self._waiting])

    async def granted(self) -> Lease:
        """A place at the first provider with room, as soon as there is one.

        Raises ProvidersAway when no provider is left or all their circuits are open, ModelTooBusy when the patience
        ends. With Redis away the first provider is as good as any, and the call goes uncounted.
        """
        try:
            if not self._is_asked:
                await (await self.question()).ask()
            if not self._waiting.place.done():
                await _wait(self._router_id, self._options, self._waiting, self._patience_seconds)
            return self._waiting.place.result()
        except ProvidersAway:
            raise
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Give back whatever the call has, or is about to get."""
        _heart().leaving.start(_withdraw(self._router_id, self._options, self._waiting))


async def take(router_id: int, options: Options, waiting: Waiting, patience_seconds: float) -> Lease:
    """A place for the call; raises as `Wish.granted` does."""
    return await Wish(router_id, options, waiting, patience_seconds).granted()


async def _wait(router_id: int, options: Options, waiting: Waiting, patience_seconds: float) -> None:
    lines = _heart().lines
    line = lines.get(router_id)
    if line is None:
        line = lines[router_id] = _Line(router_id)
    line.options = options  # the newest: the router may have changed meanwhile
    line.waiting[waiting.call_id] = waiting
    try:
        async with asyncio.timeout(patience_seconds):
            await asyncio.wait((waiting.place,))
    except TimeoutError:
        raise ModelTooBusy(patience_seconds) from None
    finally:
        line.waiting.pop(waiting.call_id, None)


async def _withdraw(router_id: int, options: Options, waiting: Waiting) -> None:
    """Give back whatever a call that is given up has, or is about to get."""
    keys = [*_line_keys(router_id), *(inflight_key(option.provider.id) for option in await options())]
    # At once, and again when whatever was asked for it meanwhile has come to its end.
    for pause in (0.0, 2 * settings.REDIS_TIMEOUT_SECONDS):
        await asyncio.sleep(pause)
        if waiting.place.done() and waiting.place.exception() is None:
            await waiting.place.result().release()
            return
        with suppress(RedisAway):
            await opengate_redis.trip(*(("ZREM", key, waiting.call_id) for key in keys))


class Question:
    """Who asks for places at a router's providers, and its answers: who gets one has it, whom nobody can serve has the
    error, others wait on."""

    def __init__(self, router_id: int, options: Sequence[Option], calls: Sequence[Waiting]) -> None:
        self._router_id = router_id
        self._options = options
        self._asked: list[tuple[Waiting, str]] = []
        for call in calls:
            allowed = "".join(["0" if option.provider.id in call.tried else "1" for option in options])
            call.choice.options, call.choice.allowed = options, allowed
            if "1" in allowed:
                self._asked.append((call, allowed))
            else:
                call.place.set_exception(ProvidersAway())

    def takers(self) -> Takers:
        """The providers by their ids, in the order of preference, and how many calls each takes."""
        return tuple([(option.provider.id, option.capacity) for option in self._options])

    def calls(self) -> list[str | float]:
        """Of each call that asks what the script is told: its id, where it may go, and its head start."""
        return [word for call, allowed in self._asked for word in (call.call_id, allowed, call.head_start)]

    async def ask(self) -> None:
        if self._asked:
            takers = self.takers()
            try:
                found = await _PLACES.run(keys(self._router_id, takers), [*arguments(takers), *self.calls()])
            except RedisAway:
                self.unanswered()
            else:
                self.answered(found)

    def answered(self, answers: list[Any]) -> None:
        are_open = answers.pop().decode() if len(answers) > len(self._asked) else ""
        for (call, _), answer in zip(self._asked, answers, strict=True):
            call.choice.open = are_open
            if answer > 0:
                self._place(call, answer // 2 - 1, is_suspect=answer % 2 == 1)
            elif answer < 0:
                call.place.set_exception(ProvidersAway(-answer / 1000))

    def unanswered(self) -> None:
        """Redis is away."""
        for call, allowed in self._asked:
            call.choice.is_counted = False
            self._place(call, allowed.index("1"))

    def _place(self, call: Waiting, at: int, *, is_suspect: bool = False) -> None:
        call.choice.chosen = at
        provider = self._options[at].provider
        call.place.set_result(Lease(provider, call.call_id, self._router_id, is_suspect=is_suspect))


def keys(router_id: int, takers: Takers) -> list[str]:
    """The keys of the script."""
    found = _line_keys(router_id)
    for provider_id, _ in takers:
        found += (inflight_key(provider_id), circuit.key(provider_id))
    return found


def arguments(takers: Takers) -> list[str | int | float]:
    """The arguments of the script, but for the calls."""
    times = (LEASE_SECONDS, PATIENCE_SECONDS, circuit.TRIAL_SECONDS)
    return [*times, len(takers), *(capacity for _, capacity in takers)]


def _line_keys(router_id: int) -> list[str]:
    return [line_key(router_id), f"{line_key(router_id)}:heard"]


class _Line:
    """Calls of this event loop that wait for a place at a router's providers."""

    options: Options

    def __init__(self, router_id: int) -> None:
        self.router_id = router_id
        self.waiting: dict[str, Waiting] = {}
        self.freed = asyncio.Event()
        self.task = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        while self.waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self.freed.wait()
            await asyncio.sleep(len(self.waiting) / ASKED_A_SECOND)
            self.freed.clear()
            calls = [call for call in self.waiting.values() if not call.place.done()]
            if calls:
                try:
                    await Question(self.router_id, await self.options(), calls).ask()
                except Exception:
                    logger.exception("Nobody in the line of router %s could be served.", self.router_id)
        del _heart().lines[self.router_id]


class _Heart:
    """Keeps the leases of one event loop alive, and sweeps expired members away as it goes."""

    def __init__(self) -> None:
        self.leases: set[Lease] = set()
        self.lines: dict[int, _Line] = {}
        self.leaving = Tasks()
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

    async def end(self) -> None:
        """Once those who leave a line have left it; no place is kept from here."""
        await self.leaving.end()
        self.task.cancel()


_heart = PerLoop(_Heart, _Heart.end)
