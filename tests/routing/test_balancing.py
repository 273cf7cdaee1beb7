"""Strategies put providers in order; QoS says how many calls each takes."""

from decimal import Decimal

import pytest

from routing import balancing, figures
from routing.balancing import capacity, in_order
from routing.figures import Figures, Sample
from routing.places import UNLIMITED
from tests.routing.providers import provider, router

A, B, C = provider(1), provider(2), provider(3)


def orders(strategy: str, *providers, seen=None, grams=lambda provider: None, times: int = 300) -> set[tuple[int, ...]]:
    """All orders that came in so many tries."""
    made = router(strategy, *(providers or (A, B, C)))
    return {tuple(p.id for p in in_order(made, seen or {}, grams)) for _ in range(times)}


def test_shuffle_gives_every_order():
    assert len(orders("shuffle")) == 6


def test_least_busy_leads_with_the_lowest_p95_and_ends_with_the_unmeasured():
    seen = {1: Figures(ttft_p95_ms=300), 2: Figures(ttft_p95_ms=200)}
    assert orders("least_busy", seen=seen) == {(2, 1, 3)}


def test_least_busy_leaves_equals_to_chance():
    assert len(orders("least_busy")) == 6
    assert orders("least_busy", A, B, seen={1: Figures(ttft_p95_ms=5), 2: Figures(ttft_p95_ms=5)}) == {(1, 2), (2, 1)}


def test_lowest_latency_never_leads_with_the_slower_of_two():
    seen = {1: Figures(None, 1, 50, 500), 2: Figures(None, 1, 90, 90), 3: Figures(None, 1, 70, 700)}
    leaders = [order[0] for order in orders("lowest_latency", seen=seen)]
    assert set(leaders) == {1, 3}  # the slowest of three loses to either


def test_lowest_latency_compares_whole_calls_where_one_streamed_nothing():
    seen = {1: Figures(None, 1, 50, 500), 2: Figures(None, 1, None, 90)}
    assert orders("lowest_latency", A, B, seen=seen) == {(2, 1)}


def test_lowest_latency_leads_with_what_was_not_measured():
    assert orders("lowest_latency", A, B, seen={1: Figures(None, 1, 50, 500)}) == {(2, 1)}


def test_cheapest_leads_with_the_least_sum_and_ends_with_the_unknown():
    dear = provider(1, cost_prompt_tokens=Decimal("0.5"), cost_completion_tokens=Decimal(2))
    cheap = provider(2, cost_prompt_tokens=Decimal("0.5"), cost_completion_tokens=Decimal("1.5"))
    assert orders("cheapest", dear, cheap, C) == {(2, 1, 3)}
    assert orders("cheapest", provider(1, cost_prompt_tokens=Decimal(0)), cheap) == {(1, 2)}


def test_lowest_carbon_leads_with_the_fewest_grams_and_ends_with_the_unknown():
    grams = {1: 0.2, 2: 0.1}
    assert orders("lowest_carbon", grams=lambda provider: grams.get(provider.id)) == {(2, 1, 3)}


@pytest.mark.parametrize(
    ("metric", "limit", "seen", "expected"),
    [
        (None, None, Figures(), UNLIMITED),
        ("inflight", 4.0, Figures(), 4),
        ("inflight", 4.9, Figures(), 4),
        ("inflight", 0.0, Figures(), 1),
        ("ttft", 200.0, Figures(), UNLIMITED),
        ("ttft", 200.0, Figures(ttft_p95_ms=200), UNLIMITED),
        ("ttft", 200.0, Figures(ttft_p95_ms=201), 1),
        ("latency", 200.0, Figures(latency_p95_ms=200), UNLIMITED),
        ("latency", 200.0, Figures(latency_p95_ms=201), 1),
        ("performance", 20.0, Figures(tokens_per_second=20), UNLIMITED),
        ("performance", 20.0, Figures(tokens_per_second=19), 1),
        ("performance", 20.0, Figures(), UNLIMITED),
    ],
)
def test_qos_says_how_many_calls_a_provider_takes(metric, limit, seen, expected):
    assert capacity(provider(1, qos_metric=metric, qos_limit=limit), seen) == expected


def test_samples_are_wanted_where_somebody_looks_at_them():
    assert not balancing.is_measured(router("shuffle", A, provider(2, qos_metric="inflight", qos_limit=1.0)))
    assert balancing.is_measured(router("least_busy", A))
    assert balancing.is_measured(router("shuffle", A, provider(2, qos_metric="latency", qos_limit=1.0)))


# Figures


def test_p95_is_the_value_at_the_contracts_index():
    samples = [(0.0, Sample(n, n, None)) for n in range(1, 21)]
    found = figures.of_samples(samples)
    assert (found.ttft_p95_ms, found.latency_p95_ms) == (19, 19)
    assert figures.of_samples(samples[:1]).ttft_p95_ms == 1


def test_streams_alone_tell_the_time_to_the_first_token():
    found = figures.of_samples([(0.0, Sample(None, 80, None)), (0.0, Sample(20, 90, None))])
    assert (found.ttft_p95_ms, found.latency_p95_ms) == (20, 90)


def test_a_sample_weighs_half_after_its_half_life():
    found = figures.of_samples([(0.0, Sample(100, 100, None)), (30.0, Sample(400, 400, None))])
    assert found.decaying_ttft_ms == pytest.approx((100 + 400 / 2) / 1.5)


def test_the_median_call_tells_the_speed():
    speeds = [10.0, 90.0, 30.0]
    found = figures.of_samples([(0.0, Sample(None, 1, speed)) for speed in speeds] + [(0.0, Sample(None, 1, None))])
    assert found.tokens_per_second == 30


def test_no_samples_say_nothing():
    assert figures.of_samples([]) == Figures()
