"""One call from admission to settlement: what it used, and how it ended. Settled exactly once, however that was."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache, reduce
from types import TracebackType
from typing import Any, Self

from accounts import principals
from accounts.principals import Principal
from opengate import redis as opengate_redis
from opengate import traces, work
from opengate.database import in_time
from opengate.errors import APIError, DatabaseAway
from opengate.loops import PerLoop, Tasks
from opengate.redis import Command, RedisAway
from routing import balancing
from routing.errors import ModelTooBusy, ProvidersAway
from routing.figures import Sample
from routing.places import Lease, Wish
from routing.snapshot import Provider, Router
from usage import budgets, carbon, ledger, limits, measures, pricing, spans, spool
from usage.budgets import Need
from usage.errors import LimitsAway
from usage.flight import Flight
from usage.ledger import Record
from usage.limits import Admission
from usage.models import Outcome

logger = logging.getLogger(__name__)

CLIENT_LEFT_STATUS = 499  # nobody reads it; so that a call without an answer is not taken for an answered one
MAX_TOKENS = 2**31 - 1
CREDIBLE_TOKENS = 100_000_000  # of one call; no model takes a tenth of it


@dataclass(slots=True)
class Tokens:
    """Tokens of a call; `estimated` when any of them is ours and not the provider's."""

    prompt: int = 0
    completion: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class UpstreamTrouble(APIError):
    """A provider's fault, whatever its status: the usage record says so."""

    @property
    def is_worth_another_try(self) -> bool:
        """Whether another provider may answer."""
        return True

    @property
    def is_outage(self) -> bool:
        """Whether the provider is away, whoever asks it: what opens its circuit."""
        return False

    @property
    def in_short(self) -> str:
        """What may be kept of it: our words, never the provider's, which may repeat the prompt."""
        return "The provider failed."


class Call:
    """A context around one call: on exit it is settled if it was admitted, and was not settled before."""

    def __init__(self, principal: Principal, endpoint: str, request_id: str, method: str = "POST") -> None:
        self.principal = principal
        self.endpoint = endpoint
        self.request_id = request_id
        self.method = method
        self.created = time.time()
        self.started = time.perf_counter()
        self.router: Router | None = None
        self.router_name = ""
        self.asked: Router | None = None  # whom the caller may ask, whether or not the call is admitted
        self.admission: Admission | None = None
        self.provider: Provider | None = None
        self.lease: Lease | None = None
        self.tried: frozenset[int] = frozenset()  # providers that failed
        self.ttft_ms: int | None = None
        self.answering = False  # a status 200 is on its way to the caller
        self.before: Sequence[Mapping[str, Any]] = ()  # usage of calls that were made for this one: a search
        self.estimated_cost: Decimal | None = None  # of a call with a reservation
        self.tokens = Tokens()
        self.flight = Flight(self.started)
        self.part_of = traces.here()
        self._wish: Wish | None = None  # for the first place, until that is taken
        self._is_settling = False
        self._settlement: asyncio.Task[None] | None = None  # where it goes on without who asked for it
        self._footprint: carbon.Footprint | None = None
        self._cost: tuple[Tokens, Decimal] | None = None  # of these tokens

    # admission

    async def granted(self, router: Router) -> limits.Limits:
        """What the caller's role may ask of the router; raises ModelNotFound or RouterClosed."""
        granted = (await limits.grants()).of(self.principal.role_id, router)
        self.asked = router
        return granted

    async def admit(self, router: Router, granted: limits.Limits, need: Need) -> bool:
        """Take the call from the caller's limits, then from its budgets; False when what was known is old.

        Raises RateLimitExceeded, InsufficientBudget, InsufficientCarbonBudget, or LimitsAway and DatabaseAway when
        nobody can tell. Whoever is refused for want of money gives back what was taken from the limits.
        """
        is_reserved = await self._is_reserved(router)
        wish = None if is_reserved else self._wish_for_place(router)
        place = None if wish is None else await wish.question()
        try:
            admission = await limits.admit(self.principal, router, granted, need.prompt, self.request_id, place)
        except (LimitsAway, asyncio.CancelledError):
            if wish is not None:
                wish.withdraw()
            raise
        if admission == "stale":
            self.principal = await principals.again(self.principal)
            return False
        self.router, self.router_name = router, router.name
        work.current().router = router.name
        self.flight.admitted(admission)
        if is_reserved:
            await self._reserve_or_give_back(router, need, admission)
        self.admission, self._wish = admission, wish
        return True

    async def _is_reserved(self, router: Router) -> bool:
        """Whether the call takes from a budget."""
        limited = await budgets.limited(self.principal.user_id)
        return limited.carbon or (limited.money and router.has_price)

    async def _reserve_or_give_back(self, router: Router, need: Need, admission: Admission) -> None:
        try:
            await self._reserve(router, need)
        except APIError:
            await admission.give_back()
            raise
        except asyncio.CancelledError:  # the caller left
            _settling().start(admission.give_back())
            raise

    async def _reserve(self, router: Router, need: Need) -> None:
        rate = max((_grams(provider) or 0.0 for provider in router.providers), default=0.0)
        if rate or router.has_price:
            # What it says of tokens is filled in if it is ever used.
            record = self._record(0, Outcome.RECOVERED)
            held = await budgets.areserve(self.principal.user_id, record, router, need, rate)
            if held is not None:
                self.estimated_cost = held.expected
                self.flight.reserved(held)

    def _wish_for_place(self, router: Router) -> Wish:
        return balancing.wish(
            router,
            self.request_id,
            grams=_grams,
            priority=self.principal.priority,
            tried=self.tried,
            choice=self.flight.seeks(router.strategy),
        )

    def admit_unrouted(self, name: str) -> None:
        """Admit a call that the gateway answers itself, under this name: no router, no limits, no price."""
        self.router_name = name
        self.admission = Admission(self.request_id, self.principal.user_id, router_id=0)

    # what happens on the way

    async def next_provider(self, prompt_tokens: int) -> Provider:
        """Leave the provider that failed, if any, for a place at one not tried yet; raises as `Wish.granted` does.

        The first place was asked for with the admission. From now on the prompt counts, as estimated until the provider
        tells.
        """
        assert self.router is not None  # it was admitted
        if self.lease is not None:
            lease, self.lease = self.lease, None
            await lease.release()
        wish, self._wish = self._wish or self._wish_for_place(self.router), None
        self.lease = await wish.granted()
        self.provider = self.lease.provider
        work.current().provider = self.provider.id
        self.flight.placed(self.provider.id)
        self.tokens = Tokens(prompt=prompt_tokens, estimated=bool(prompt_tokens))
        return self.provider

    def answered(self) -> None:
        """The provider is well: it gave an answer, or the beginning of one."""
        self.flight.answered()
        if self.lease is not None:
            self.lease.answered()

    def failed_at_provider(self, trouble: UpstreamTrouble) -> None:
        """The provider gave no answer: nothing was used there."""
        self.tokens = Tokens()
        self.troubled(trouble)
        if self.provider is not None:
            self.tried |= {self.provider.id}

    def troubled(self, trouble: UpstreamTrouble) -> None:
        """What a provider's fault says of its health."""
        self.flight.troubled(trouble.status, trouble.in_short)
        if self.lease is not None:
            if trouble.is_outage:
                self.lease.failed()
            else:
                self.lease.answered()

    def first_token(self) -> None:
        if self.ttft_ms is None:
            self.ttft_ms = self.latency_ms()
            if self.lease is not None:
                self.lease.first_token()

    def count(self, usage: Any, *, prompt_tokens: int, completion_tokens: int, is_final: bool = True) -> None:
        """Take the provider's figures out of its `usage` object, and ours for each that is missing or absurd.

        Where there is nothing to count on our side (0), what the provider leaves out is 0 and no estimate. Figures that
        are not final count as far as they are more than ours.
        """
        self.flight.counted()
        given = usage if isinstance(usage, dict) else {}
        prompt, completion = _figure(given.get("prompt_tokens")), _figure(given.get("completion_tokens"))
        if completion is not None and completion < completion_tokens and not is_final:
            completion = None
        if prompt is None and completion is None:
            prompt = _figure(given.get("total_tokens")) if not completion_tokens else None
        self.tokens = Tokens(
            prompt=prompt_tokens if prompt is None else prompt,
            completion=completion_tokens if completion is None else completion,
            estimated=bool((prompt is None and prompt_tokens) or (completion is None and completion_tokens)),
        )

    # figures

    def latency_ms(self) -> int:
        return round((time.perf_counter() - self.started) * 1000)

    def headers(self) -> dict[str, str]:
        return self.admission.headers() if self.admission else {}

    def cost(self) -> Decimal:
        if self.router is None:
            return pricing.FREE
        router, tokens = self.router, self.tokens
        if self._cost is None or self._cost[0] is not tokens:  # once: the answer and the record say the same
            prices = router.cost_prompt_tokens, router.cost_completion_tokens
            self._cost = tokens, pricing.cost(tokens.prompt, tokens.completion, *prices)
        return self._cost[1]

    def footprint(self) -> carbon.Footprint:
        if self.provider is None:
            return carbon.NOTHING
        if self._footprint is None:  # once: the answer and the record say the same
            self._footprint = self._measured(self.provider)
        return self._footprint

    def _measured(self, provider: Provider) -> carbon.Footprint:
        return carbon.footprint(
            self.tokens.completion,
            time.perf_counter() - self.started,
            active_params=provider.active_params,
            total_params=provider.total_params,
            zone=provider.zone,
        )

    def usage(self, upstream: Any = None) -> dict[str, Any]:
        """The `usage` object of the answer; what else the provider tells of its tokens stays in it."""
        footprint = self.footprint()
        own = {
            **(upstream if isinstance(upstream, dict) else {}),
            "prompt_tokens": self.tokens.prompt,
            "completion_tokens": self.tokens.completion,
            "total_tokens": self.tokens.total,
            "cost": float(self.cost()),
            "carbon": footprint.as_carbon(),
            "impacts": footprint.as_impacts(),
            "requests": 1,
        }
        return {**own, **total([own, *self.before])} if self.before else own

    # settlement

    async def settle(self, status: int, outcome: Outcome) -> None:
        """Once: the record is written or spooled, limits get the real token counts, the provider's place is free.

        Whoever stops waiting for it, as a caller who leaves, does not stop it.
        """
        if self.admission is None:
            self._measure(status)
        elif not self._is_settling:
            self._is_settling = True
            if self._wish is not None:
                self._wish.withdraw()
            self._measure(status)
            record = self._record(status, outcome)
            if self.part_of is not None:
                spans.record(self, status, outcome)
            await self._settled(record, outcome)
        elif self._settlement is not None:
            await asyncio.shield(self._settlement)

    def _measure(self, status: int) -> None:
        if self.asked is not None:
            tokens = self.tokens
            measures.count(
                self.endpoint,
                self.asked.name,
                status,
                self.latency_ms(),
                self.ttft_ms,
                tokens.prompt,
                tokens.completion,
            )

    async def _settled(self, record: Record, outcome: Outcome) -> None:
        """Without a reservation, all there is to do leaves at once; a task waits for it when the caller leaves."""
        if self.estimated_cost is not None:
            self._settlement = _settling().start(self._settle(record, outcome))
            await asyncio.shield(self._settlement)
            return
        sending = spool.Sending(record, self._let_go(outcome))
        try:
            await sending.arrive()
        except asyncio.CancelledError:
            self._settlement = _settling().start(sending.arrive())
            raise
        finally:
            self._forget()

    async def _settle(self, record: Record, outcome: Outcome) -> None:
        """The account is settled at once, where Postgres is there."""
        try:
            if await self._is_stored(record):
                await self._leave(outcome)
            else:
                await spool.Sending(record, self._let_go(outcome)).arrive()
        finally:
            self._forget()
            budgets.forget(self.request_id)

    def _forget(self) -> None:
        if self.lease is not None:
            self.lease.forget()

    async def _is_stored(self, record: Record) -> bool:
        """Whether the account is settled at once; else the drain does it later."""
        try:
            await in_time(ledger.settle(record))
        except DatabaseAway:
            return False
        except Exception:
            logger.exception("The call %s is not settled; the worker tries again.", self.request_id)
            return False
        return True

    async def _leave(self, outcome: Outcome) -> None:
        try:
            await opengate_redis.trip(*self._let_go(outcome))
        except RedisAway:
            pass  # the lease expires, and so do the counters

    def _let_go(self, outcome: Outcome) -> Iterator[Command]:
        if self.lease is not None:
            yield from self.lease.end(self._sample(self.lease) if outcome == Outcome.FINISHED else None)
        if self.admission is not None:
            yield from self.admission.corrected(self.tokens.prompt)

    def _sample(self, lease: Lease) -> Sample | None:
        """How quick the provider was, where somebody looks at it."""
        if self.router is None or not balancing.is_measured(self.router):
            return None
        elapsed_ms = lease.elapsed_ms()
        speed = self.tokens.completion / max(elapsed_ms, 1) * 1000
        return Sample(lease.ttft_ms, elapsed_ms, speed or None)

    def _record(self, status: int, outcome: Outcome) -> Record:
        principal, router, provider, tokens = self.principal, self.router, self.provider, self.tokens
        footprint = self.footprint()
        record: Record = {
            "request_id": self.request_id,
            "created": _iso(self.created),
            "user_id": principal.user_id,
            "user_email": principal.email,
            "organization_id": principal.organization_id,
            "organization_name": principal.organization_name,
            "key_id": principal.key_id,
            "key_name": principal.key_name,
            "router_id": router.id if router else None,
            "router_name": self.router_name,
            "provider_id": provider.id if provider else None,
            "provider_model_name": provider.model_name if provider else None,
            "endpoint": self.endpoint,
            "method": self.method,
            "status": status,
            "outcome": outcome.value,
            "latency_ms": self.latency_ms(),
            "ttft_ms": self.ttft_ms,
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "total_tokens": tokens.total,
            "tokens_estimated": tokens.estimated,
            "cost_prompt_tokens": str(router.cost_prompt_tokens if router else pricing.FREE),
            "cost_completion_tokens": str(router.cost_completion_tokens if router else pricing.FREE),
            "cost": str(self.cost()),
            "estimated_cost": None if self.estimated_cost is None else str(self.estimated_cost),
            "kwh_min": footprint.kwh_min,
            "kwh_max": footprint.kwh_max,
            "kgco2eq_min": footprint.kgco2eq_min,
            "kgco2eq_max": footprint.kgco2eq_max,
            "gco2eq": f"{footprint.grams:.6f}",
            "flight": self.flight.as_json(self.ttft_ms),
        }
        return record

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.settle(*_ending(error, self.answering))


def total(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `usage` objects of several calls as one; what else providers tell of their tokens is left out."""

    def summed(*path: str) -> Any:
        return sum(reduce(lambda found, name: found[name], path, usage) for usage in usages)

    spans = {unit: {end: summed("carbon", unit, end) for end in ("min", "max")} for unit in ("kWh", "kgCO2eq")}
    return {
        **{name: summed(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cost")},
        "carbon": spans,
        "impacts": {unit: summed("impacts", unit) for unit in ("kWh", "kgCO2eq")},
        "requests": summed("requests"),
    }


_settling = PerLoop(Tasks, Tasks.end)


def _ending(error: BaseException | None, answering: bool) -> tuple[int, Outcome]:
    """Status and outcome of a call that left its context so."""
    if error is None:
        return 200, Outcome.FINISHED
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return 200 if answering else CLIENT_LEFT_STATUS, Outcome.CLIENT_LEFT
    status = error.status if isinstance(error, APIError) else 500
    if isinstance(error, UpstreamTrouble | ProvidersAway):
        outcome = Outcome.UPSTREAM_FAILED
    elif isinstance(error, ModelTooBusy) or status < 500:
        outcome = Outcome.REFUSED_MIDWAY
    else:
        outcome = Outcome.FAILED
    return 200 if answering else status, outcome


def _iso(moment: float) -> str:
    """A Unix time as ISO 8601, with microseconds."""
    second = int(moment)
    return f"{_second(second)}.{int((moment - second) * 1_000_000):06d}+00:00"


@lru_cache(maxsize=16)
def _second(moment: int) -> str:
    """One for all calls of that second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _grams(provider: Provider) -> float | None:
    return carbon.grams_a_token(
        active_params=provider.active_params, total_params=provider.total_params, zone=provider.zone
    )


def _figure(value: object) -> int | None:
    """A token count, or None where an upstream sends something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= CREDIBLE_TOKENS else None
