"""Where calls go: the usage records tell."""

from collections import Counter
from decimal import Decimal

import pytest

from routing import figures
from routing.models import Provider
from tests.upstream import completion
from usage import carbon

CALLS = 20


@pytest.fixture
def choose(router, upstream):
    """Two or more providers of `model` and its strategy: `choose("cheapest", {…}, {…})`."""

    def _choose(strategy: str, *fields: dict) -> list[Provider]:
        router.load_balancing_strategy = strategy
        router.save()
        router.providers.all().delete()
        return [
            Provider.objects.create(
                router=router, type="openai", url=upstream.url, model_name=f"m{number}", timeout=5, **given
            )
            for number, given in enumerate(fields)
        ]

    return _choose


def places(as_ada, chat, records, calls: int = CALLS) -> Counter:
    for _ in range(calls):
        assert chat(as_ada).status_code == 200
    return Counter(record.provider_id for record in records(calls))


def test_lowest_carbon_sends_calls_where_a_token_takes_the_fewest_grams(as_ada, choose, chat, records):
    coal, nuclear, unknown, large = choose(
        "lowest_carbon",
        {"model_hosting_zone": "POL", "model_active_params": 8, "model_total_params": 8},
        {"model_hosting_zone": "FRA", "model_active_params": 8, "model_total_params": 8},
        {"model_hosting_zone": "FRA"},
        {"model_hosting_zone": "FRA", "model_active_params": 70, "model_total_params": 70},
    )
    assert places(as_ada, chat, records) == {nuclear.id: CALLS}
    grams = {
        provider.id: carbon.grams_a_token(
            active_params=provider.model_active_params,
            total_params=provider.model_total_params,
            zone=provider.model_hosting_zone,
        )
        for provider in (coal, nuclear, unknown, large)
    }
    print("\ngrams of CO2eq a token:", grams)
    assert grams[unknown.id] is None
    assert grams[nuclear.id] == min(found for found in grams.values() if found is not None)


def test_lowest_carbon_goes_to_the_next_best_when_the_best_is_full(as_ada, choose, chat, records, redis_client):
    coal, nuclear = choose(
        "lowest_carbon",
        {"model_hosting_zone": "POL", "model_active_params": 8},
        {"model_hosting_zone": "FRA", "model_active_params": 8, "qos_metric": "inflight", "qos_limit": 1},
    )
    redis_client.zadd(f"opengate:inflight:{nuclear.id}", {"somebody": 2**40})
    assert places(as_ada, chat, records, 3) == {coal.id: 3}


def test_cheapest_sends_calls_where_a_token_costs_least(as_ada, choose, chat, records):
    _, cheap, _ = choose(
        "cheapest",
        {"cost_prompt_tokens": Decimal("0.5"), "cost_completion_tokens": Decimal(2)},
        {"cost_prompt_tokens": Decimal("0.5"), "cost_completion_tokens": Decimal(1)},
        {},
    )
    assert places(as_ada, chat, records) == {cheap.id: CALLS}


def test_shuffle_sends_calls_everywhere(as_ada, choose, chat, records):
    providers = choose("shuffle", {}, {})
    assert set(places(as_ada, chat, records, 60)) == {provider.id for provider in providers}


@pytest.mark.parametrize("strategy", ["least_busy", "lowest_latency"])
def test_the_quicker_of_two_gets_the_calls(as_ada, choose, chat, records, upstream, redis_client, strategy):
    quick, slow = choose(strategy, {}, {})
    for provider, ttft in ((quick, 50), (slow, 500)):
        for command in figures.recorded(provider.id, "earlier", figures.Sample(ttft, 1000, 10.0)):
            redis_client.execute_command(*command)
    upstream.route("/v1/chat/completions", completion())
    assert places(as_ada, chat, records) == {quick.id: CALLS}


def test_what_is_measured_comes_from_the_calls_themselves(as_ada, choose, chat, redis_client, records):
    (provider,) = choose("least_busy", {})
    chat(as_ada, stream=True)
    chat(as_ada)
    records(2)
    samples = redis_client.zrange(f"opengate:samples:{provider.id}", 0, -1)
    streamed = [sample for sample in samples if sample.split(b":")[2]]
    assert (len(samples), len(streamed)) == (2, 1)


def test_nothing_is_measured_where_nobody_looks(as_ada, choose, chat, redis_client, records):
    choose("shuffle", {})
    chat(as_ada, stream=True)
    records()
    assert redis_client.keys("opengate:samples:*") == []
