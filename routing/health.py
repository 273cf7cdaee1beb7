"""How providers are at this moment, in the words of the console: good, fair or bad, and why."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opengate.redis import RedisAway
from routing import balancing, figures, load
from routing.circuit import State
from routing.figures import NOTHING, Figures
from routing.load import Load
from routing.models import LoadBalancingStrategy, Provider
from routing.places import UNLIMITED
from routing.snapshot import provider_of


@dataclass(frozen=True, slots=True)
class Health:
    """One provider: `level` is good, fair or bad, empty where nobody knows; `words` say why."""

    level: str
    words: str
    load: Load | None
    figures: Figures
    capacity: int | None  # calls at a time; None is any number
    is_measured: bool  # whether strategy or QoS have its figures taken

    @property
    def circuit(self) -> str:
        return circuit_in_words(self.load)


def circuit_in_words(now: Load | None) -> str:
    if now is None:
        return "unknown"
    if now.circuit.state == State.OPEN:
        return f"open, tried again in {math.ceil(now.circuit.seconds)} s"
    if now.circuit.state == State.HALF_OPEN:
        return "half open, the next call tries"
    return f"closed, {now.circuit.failures} outages" if now.circuit.failures else "closed"


def of_now(providers: Iterable[Provider], *, with_figures: bool = True) -> Mapping[int, Health]:
    """The health of these providers, whose routers are loaded: two trips to Redis for any number of them."""
    rows = list(providers)
    ids = [provider.pk for provider in rows]
    if not ids:
        return {}
    try:
        loads = load.of_now(ids)
    except RedisAway:
        return {provider.pk: _health(provider, None, NOTHING) for provider in rows}
    seen = figures.of_now(ids) if with_figures else {}
    return {provider.pk: _health(provider, loads[provider.pk], seen.get(provider.pk, NOTHING)) for provider in rows}


def _health(provider: Provider, now: Load | None, seen: Figures) -> Health:
    most = balancing.capacity(provider_of(provider), seen)
    capacity = None if most == UNLIMITED else most
    level, words = _judged(provider, now, capacity)
    strategy = LoadBalancingStrategy(provider.router.load_balancing_strategy)
    is_measured = strategy in balancing.MEASURING or provider.qos_metric in balancing.MEASURED
    return Health(level, words, now, seen, capacity, is_measured)


def _judged(provider: Provider, now: Load | None, capacity: int | None) -> tuple[str, str]:
    if now is None:
        return "", "unknown"
    if now.circuit.state == State.OPEN:
        return "bad", "away"
    if now.circuit.state == State.HALF_OPEN:
        return "fair", "on trial"
    if now.circuit.failures:
        return "fair", "failing"
    if capacity is not None and provider.qos_metric in balancing.MEASURED:
        return "fair", "beyond its QoS"
    if capacity is not None and now.inflight >= capacity:
        return "fair", "full"
    return "good", "well"
