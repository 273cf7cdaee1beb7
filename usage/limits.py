"""What a role may use, and the one Redis trip that admits a call.

The script checks the epoch and all four limits of a user at a router together: either every counter is taken or none
is, and a refused call consumes nothing. The limit's value is part of its counter's key, so that a changed limit starts
from an empty counter, and so is the strategy: how a counter forgets is in `usage.windows`.
"""

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import redis
from prometheus_client import Counter

from accounts.principals import Principal
from opengate import epoch, metrics
from opengate import redis as opengate_redis
from opengate.epoch import Replica
from opengate.quick_settings import settings
from opengate.redis import BLANK, Command, Form, RedisAway
from routing import places
from routing.errors import ModelNotFound
from routing.places import Question, Takers
from routing.snapshot import Router
from usage import windows
from usage.errors import LimitsAway, RateLimitExceeded, RouterClosed
from usage.models import Limit, LimitType

_UNLIMITED = Counter(
    "ogl_limits_skipped", "Calls that were let through unlimited, since Redis was away.", registry=metrics.registry
)
WINDOW_SECONDS: Mapping[str, int] = {"rpm": 60, "rpd": 86_400, "tpm": 60, "tpd": 86_400}
WORDS: Mapping[str, str] = {
    "rpm": "requests per minute",
    "rpd": "requests per day",
    "tpm": "input tokens per minute",
    "tpd": "input tokens per day",
}
FEW_PROVIDERS = 3  # which have six orders
_KINDS: Mapping[str, str] = {"rpm": "requests", "rpd": "requests", "tpm": "tokens", "tpd": "tokens"}


_NAMES: Mapping[str, Sequence[str]] = {
    kind: [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset")] for kind in ("requests", "tokens")
}


class Limits(NamedTuple):
    """The four limits of a role at a router: null is unlimited."""

    rpm: int | None
    rpd: int | None
    tpm: int | None
    tpd: int | None

    def counted(self) -> list[tuple[str, int]]:
        """Those that there are, by their types."""
        return [(type, limit) for type, limit in zip(WINDOW_SECONDS, self, strict=True) if limit is not None]


@dataclass(frozen=True, slots=True)
class Grants:
    """All limits of all roles, by the pair (role, router).

    `open` has those with four limits, none of them 0; `visible` those with one at least that is not 0.
    """

    open: Mapping[tuple[int, int], Limits]
    known: frozenset[tuple[int, int]]
    visible: frozenset[tuple[int, int]]

    def of(self, role_id: int, router: Router) -> Limits:
        """Raises ModelNotFound where the role has no limit for the router, RouterClosed where one is 0 or missing."""
        limits = self.open.get((role_id, router.id))
        if limits is None:
            raise RouterClosed if (role_id, router.id) in self.known else ModelNotFound
        return limits


def _load(_: None) -> Grants:
    values: dict[tuple[int, int], dict[str, int | None]] = {}
    for role_id, router_id, type, value in Limit.objects.values_list("role_id", "router_id", "type", "value"):
        values.setdefault((role_id, router_id), {})[type] = value
    return Grants(
        open={
            pair: Limits(**limits)
            for pair, limits in values.items()
            if len(limits) == len(LimitType.values) and 0 not in limits.values()
        },
        known=frozenset(values),
        visible=frozenset(pair for pair, limits in values.items() if any(value != 0 for value in limits.values())),
    )


_grants = Replica(_load, limit=1)


def grants() -> Awaitable[Grants]:
    """All limits as of the newest epoch this process knows."""
    return _grants.get(None)


class Window(NamedTuple):
    """One limit's counter after an admission or a refusal.

    It is empty in `reset_ms`, at `ends_ms` of Redis' clock; what was refused would fit in `wait_ms`.
    """

    type: str
    limit: int
    taken: int
    reset_ms: int
    wait_ms: int
    ends_ms: int

    @property
    def remaining(self) -> int:
        return max(self.limit - self.taken, 0)


class Admission(NamedTuple):
    """What was taken for one call."""

    call_id: str
    user_id: int
    router_id: int
    prompt_tokens: int = 0
    windows: Sequence[Window] = ()
    is_checked: bool = True  # false with Redis away

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, of the limit with the least left of each kind."""
        return _headers(self.windows)

    def corrected(self, prompt_tokens: int) -> Iterator[Command]:
        """Commands that put the real number of prompt tokens in place of the estimate."""
        delta = prompt_tokens - self.prompt_tokens
        if delta:
            yield from self._changed([(window, delta) for window in self.windows if _KINDS[window.type] == "tokens"])

    async def give_back(self) -> None:
        """Undo the admission: the call is refused for another reason."""
        try:
            await opengate_redis.trip(*self._changed([(window, -self._cost(window)) for window in self.windows]))
        except RedisAway:
            pass  # the windows end by themselves

    def _cost(self, window: Window) -> int:
        return 1 if _KINDS[window.type] == "requests" else self.prompt_tokens

    def _changed(self, deltas: Sequence[tuple[Window, int]]) -> Iterator[Command]:
        if not deltas:
            return
        counters = tuple([(window.type, window.limit) for window, _ in deltas])
        words: list[str | int] = [self.call_id]
        for window, delta in deltas:
            words += (delta, self._cost(window), window.ends_ms)
        form = _correction(settings.RATE_LIMITING_STRATEGY, self.user_id, self.router_id, counters)
        yield form.filled(*words)


@lru_cache(maxsize=4096)
def _correction(strategy: str, user_id: int, router_id: int, counters: tuple[tuple[str, int], ...]) -> Form:
    """Its blanks are the call, then of each counter what to add, what the call took, and when it was to be empty."""
    keys = [_counter(strategy, type, user_id, router_id, limit) for type, limit in counters]
    arguments: list[str | int | float] = [BLANK]
    for type, _ in counters:
        arguments += (BLANK, BLANK, WINDOW_SECONDS[type] * 1000, BLANK)
    return Form(windows.STRATEGIES[strategy].correct.command(keys, arguments))


async def admit(
    principal: Principal,
    router: Router,
    limits: Limits,
    prompt_tokens: int,
    call_id: str,
    place: Question | None = None,
) -> Admission | Literal["stale"]:
    """Take one request and its prompt tokens from all limits, or nothing; in the same trip ask for its place, if any.

    "stale" says that the epoch moved on: look up caller, router and limits again. Raises RateLimitExceeded, or
    LimitsAway with Redis away and limits set to close then.
    """
    wish = [] if place is None else place.calls()
    takers = place.takers() if place is not None and wish else None
    # Of many providers each call has another order.
    make = _asking if takers is None or len(takers) <= FEW_PROVIDERS else _asking.__wrapped__
    asking = make(settings.RATE_LIMITING_STRATEGY, principal.user_id, router.id, limits, takers)
    costs = (prompt_tokens,) * asking.token_limits
    try:
        (answer,) = await opengate_redis.trip(asking.form.filled(epoch.known(), call_id, *costs, *wish))
    except RedisAway:
        if settings.LIMITS_FAIL_OPEN:
            _UNLIMITED.inc()
            if place is not None:
                place.unanswered()
            return Admission(call_id, principal.user_id, router.id, is_checked=False)
        raise LimitsAway from None
    if place is not None and takers is not None:
        answer, *places_found = answer
        if places_found:
            place.answered(places_found[0])
    verdict, newest = answer[0], int(answer[1])
    if verdict == -1:
        epoch.observe(newest)
        return "stale"
    now_ms = answer[2]
    found = [
        Window(type, limit, count, reset_ms, wait_ms, now_ms + reset_ms)
        for (type, limit), count, reset_ms, wait_ms in zip(
            asking.counted, answer[3::3], answer[4::3], answer[5::3], strict=True
        )
    ]
    if verdict:
        refused = found[verdict - 1]
        raise RateLimitExceeded(
            f"{refused.limit} {WORDS[refused.type]} exceeded (remaining: {refused.remaining}).",
            headers={"Retry-After": str(max(-(-refused.wait_ms // 1000), 1)), **_headers(found)},
        )
    return Admission(call_id, principal.user_id, router.id, prompt_tokens, found)


class _Asking(NamedTuple):
    """How an admission is asked for: its blanks are epoch, call, prompt tokens for each limit of tokens, and with a
    place what `Question.calls` tells of the call."""

    form: Form
    counted: Sequence[tuple[str, int]]
    token_limits: int


@lru_cache(maxsize=4096)
def _asking(strategy: str, user_id: int, router_id: int, limits: Limits, takers: Takers | None) -> _Asking:
    scripts, counted = windows.STRATEGIES[strategy], limits.counted()
    keys = [epoch.KEY, *(_counter(strategy, type, user_id, router_id, limit) for type, limit in counted)]
    arguments: list[str | int | float] = [BLANK, BLANK]
    for type, limit in counted:
        arguments += (limit, 1 if _KINDS[type] == "requests" else BLANK, WINDOW_SECONDS[type] * 1000)
    if takers is None:
        command = scripts.admit.command(keys, arguments)
    else:
        arguments = [len(keys), len(arguments), *arguments, *places.arguments(takers), BLANK, BLANK, BLANK]
        command = scripts.admit_and_place.command([*keys, *places.keys(router_id, takers)], arguments)
    return _Asking(Form(command), counted, sum(_KINDS[type] == "tokens" for type, _ in counted))


def remaining(user_id: int, held: Sequence[tuple[int, str, int]]) -> dict[tuple[int, str], int]:
    """What a user has left of limits now, by router and type; `held` has a router, a type and the limit's value each.

    For pages; nothing with Redis away.
    """
    if not held:
        return {}
    strategy = settings.RATE_LIMITING_STRATEGY
    keys = [_counter(strategy, type, user_id, router_id, value) for router_id, type, value in held]
    arguments = [number for _, type, value in held for number in (value, WINDOW_SECONDS[type] * 1000)]
    with opengate_redis.sync_client() as client:
        try:
            counts = client.execute_command(*windows.STRATEGIES[strategy].count.whole(keys, arguments))
        except (redis.RedisError, OSError):
            return {}
    return {
        (router_id, type): max(value - count, 0) for (router_id, type, value), count in zip(held, counts, strict=True)
    }


def _counter(strategy: str, type: str, user_id: int, router_id: int, limit: int) -> str:
    return f"opengate:limit:{type}:{user_id}:{router_id}:{limit}:{strategy}"


def _headers(windows: Sequence[Window]) -> dict[str, str]:
    tightest: dict[str, Window] = {}
    for window in windows:
        kind = _KINDS[window.type]
        known = tightest.get(kind)
        if known is None or window.limit - window.taken < known.limit - known.taken:
            tightest[kind] = window
    found: dict[str, str] = {}
    for kind, window in tightest.items():
        limit, remaining, reset = _NAMES[kind]
        found[limit] = str(window.limit)
        found[remaining] = str(window.remaining)
        found[reset] = _duration(window.reset_ms)
    return found


def _duration(milliseconds: int) -> str:
    """Like 1h2m3s, as OpenAI writes it; whole seconds, rounded up."""
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
