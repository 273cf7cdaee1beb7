"""Which provider takes a call: the router's strategy puts them in order, the providers' QoS says how many each takes.

The first provider with room gets the call (`routing.places`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from opengate.quick_settings import settings
from routing import figures
from routing.figures import NOTHING, Figures
from routing.models import LoadBalancingStrategy, Metric
from routing.places import UNLIMITED, Choice, Option, Waiting, Wish
from routing.snapshot import Provider, Router

UNKNOWN: Final = float("inf")
MEASURING = frozenset({LoadBalancingStrategy.LEAST_BUSY, LoadBalancingStrategy.LOWEST_LATENCY})
MEASURED = frozenset({Metric.TTFT, Metric.LATENCY, Metric.PERFORMANCE})

Grams = Callable[[Provider], float | None]


def wish(
    router: Router,
    call_id: str,
    *,
    grams: Grams,
    priority: int = 0,
    tried: frozenset[int] = frozenset(),
    choice: Choice | None = None,
) -> Wish:
    """The call's wish for a place at a provider that was not tried yet.

    `grams` answers a provider's grams of CO2eq a token, None where nobody knows. Who waits is served in the order of
    arrival; the highest priority counts as having come half the longest wait earlier, so that nobody is passed over
    for ever. `choice` is filled in with how the providers stood, whatever comes of it.
    """

    async def options() -> Sequence[Option]:
        seen = await figures.of(provider.id for provider in router.providers) if is_measured(router) else {}
        return [Option(p, capacity(p, seen.get(p.id, NOTHING))) for p in in_order(router, seen, grams)]

    highest, longest_wait = settings.ROUTING_MAX_PRIORITY, settings.ROUTING_MAX_WAIT_SECONDS
    waiting = Waiting(call_id, tried, min(priority, highest) / highest * longest_wait / 2, choice or Choice())
    return Wish(router.id, options, waiting, longest_wait)


def is_measured(router: Router) -> bool:
    """Whether strategy or QoS look at how quick the providers were."""
    return router.strategy in MEASURING or any(provider.qos_metric in MEASURED for provider in router.providers)


def in_order(router: Router, seen: Mapping[int, Figures], grams: Grams) -> Sequence[Provider]:
    """The router's providers, the preferred one first; equals by chance, and what is not known last."""
    providers = router.providers
    if len(providers) == 1:
        return providers
    shuffled = random.sample(providers, len(providers))

    def ttft(provider: Provider) -> float:
        found = seen.get(provider.id, NOTHING).ttft_p95_ms
        return UNKNOWN if found is None else found

    def cost(provider: Provider) -> float:
        known = [price for price in (provider.cost_prompt_tokens, provider.cost_completion_tokens) if price is not None]
        return float(sum(known)) if known else UNKNOWN

    def carbon(provider: Provider) -> float:
        found = grams(provider)
        return UNKNOWN if found is None else found

    match router.strategy:
        case LoadBalancingStrategy.LEAST_BUSY:
            return sorted(shuffled, key=ttft)
        case LoadBalancingStrategy.LOWEST_LATENCY:
            return _quicker_first(shuffled, seen)
        case LoadBalancingStrategy.CHEAPEST:
            return sorted(shuffled, key=cost)
        case LoadBalancingStrategy.LOWEST_CARBON:
            return sorted(shuffled, key=carbon)
        case _:
            return shuffled


def _quicker_first(shuffled: Sequence[Provider], seen: Mapping[int, Figures]) -> Sequence[Provider]:
    """The power of two choices: of two by chance the quicker one leads, and the other one follows.

    Compared is the decaying mean of the time to first token, or, where one of them has streamed nothing lately, of the
    whole call. One that was not measured lately leads, so that it is measured.
    """
    one, other, *rest = shuffled
    first, second = seen.get(one.id, NOTHING), seen.get(other.id, NOTHING)
    pairs = (
        (first.decaying_ttft_ms, second.decaying_ttft_ms),
        (first.decaying_latency_ms, second.decaying_latency_ms),
    )
    for mine, its in pairs:
        if mine is not None and its is not None:
            return (one, other, *rest) if mine <= its else (other, one, *rest)
    return (other, one, *rest) if second.decaying_latency_ms is None else (one, other, *rest)


def capacity(provider: Provider, seen: Figures) -> int:
    """How many calls the provider takes at a time, by its QoS policy.

    `inflight`: as many as `qos_limit`, one at least. `ttft` and `latency` (95th percentile in ms) and `performance`
    (median of completion tokens a second of a call), over the last two minutes: any number while the figure is within
    the limit, and else one at a time, so that a provider that has become better is found out.
    """
    limit = provider.qos_limit
    if provider.qos_metric is None or limit is None:
        return UNLIMITED
    match provider.qos_metric:
        case Metric.INFLIGHT:
            return max(int(limit), 1)
        case Metric.TTFT:
            is_within = seen.ttft_p95_ms is None or seen.ttft_p95_ms <= limit
        case Metric.LATENCY:
            is_within = seen.latency_p95_ms is None or seen.latency_p95_ms <= limit
        case _:
            is_within = seen.tokens_per_second is None or seen.tokens_per_second >= limit
    return UNLIMITED if is_within else 1
