"""Tokens, money and carbon: figures against their sources."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.zones import ZONES
from usage import carbon, pricing, tokens


def test_tokens_are_a_quarter_of_the_bytes_rounded_up():
    assert tokens.of_messages([{"content": "12345"}]) == 2
    assert tokens.of_messages([{"content": "é中😀"}]) == 3
    assert tokens.of_messages([]) == 0


def test_only_text_counts_in_messages():
    parts = [{"type": "text", "text": "12345678"}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 999}}]
    odd = [1, None, "text", {"content": None}, {"content": 5}, {"content": [1, {"text": 5}]}]
    assert tokens.of_messages([{"content": parts}, *odd]) == 2


def beside(*messages, **fields) -> int:
    return tokens.beside_text({"model": "model", "messages": messages} | fields)


def test_a_chats_format_and_its_images_count_in_what_it_may_cost():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9999}}
    assert beside({"role": "user", "content": "Hi"}) == 9
    assert beside({"content": [{"type": "text", "text": "Hi"}, image, image]}, {"content": None}) == 2011
    assert beside("odd", {"content": [1, None, {}]}, {}) < 30


def test_whatever_a_model_may_read_counts_in_what_a_chat_may_cost():
    text = "word " * 100
    called = [{"id": "1", "function": {"name": "f", "arguments": text}}]
    for fields in ({"tools": [{"function": {"description": text}}]}, {"functions": [text]}, {"chat_template": text}):
        assert 125 <= beside(**fields) <= 160
    for message in ({"tool_calls": called}, {"reasoning_content": text}, {"content": {"text": text}}, {"name": text}):
        assert 125 <= beside(message) <= 160
    assert 125 <= beside({"content": [{"type": ["odd"], "thinking": text}]}) <= 160
    assert beside(stop=[text], logit_bias={"1": 1}, metadata={"a": text}, user=text) == 3


def test_the_rest_of_embeddings_and_ranks_counts_in_what_they_may_cost():
    assert (tokens.of_items("text"), tokens.of_items(["a", "b"])) == (3, 6)
    assert tokens.of_pairs("12345678", ["a", "b", "c"]) == 2 * 2 + 3 * 4


def test_every_choice_counts_with_reasoning_and_tool_calls():
    message = {
        "content": "1234",
        "reasoning_content": "1234",
        "tool_calls": [{"function": {"arguments": "1234"}}, {"function": None}, 5],
    }
    assert tokens.of_choices([{"message": message}, {"message": {"content": "1234"}}, {}, 5, {"message": None}]) == 4
    assert tokens.of_choices(None) == 0


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.decimals(0, 10**6, places=6), st.decimals(0, 10**6, places=6))
def test_cost_is_the_contracts_formula_to_the_sixth_decimal(prompt, completion, price_prompt, price_completion):
    cost = pricing.cost(prompt, completion, price_prompt, price_completion)
    exact = (prompt * price_prompt + completion * price_completion) / Decimal(10**6)
    assert abs(cost - exact) <= Decimal("0.0000005")
    assert cost == 0 or cost.as_tuple().exponent == -6


def test_carbon_has_the_check_values_of_the_method():
    found = carbon.footprint(100, 2, active_params=8, total_params=8, zone="FRA")
    assert found.kwh_min == found.kwh_max == pytest.approx(6.9727e-6, rel=1e-5)
    assert found.kgco2eq_min == found.kgco2eq_max == pytest.approx(6.1447e-7, rel=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(1, 100_000),
    st.floats(1e-6, 3600),
    st.sampled_from(["FRA", "WOR", "POL", "ATA"]),
)
def test_the_quick_way_gives_what_the_library_gives(active, total, count, latency, zone):
    quick = carbon.footprint(count, latency, active_params=active, total_params=total, zone=zone)
    slow = carbon._computed(active, total, zone, 1.2, 1.8, tokens=count, latency=latency)
    assert quick.kwh_min == pytest.approx(slow.kwh_min, rel=1e-6)
    assert quick.kgco2eq_max == pytest.approx(slow.kgco2eq_max, rel=1e-6)


def test_one_parameter_count_stands_for_the_other():
    both = carbon.footprint(100, 2, active_params=8, total_params=8, zone="FRA")
    assert carbon.footprint(100, 2, active_params=8, total_params=0, zone="FRA") == both
    assert carbon.footprint(100, 2, active_params=0, total_params=8, zone="FRA") == both


@pytest.mark.parametrize(("count", "params"), [(0, 8), (100, 0)])
def test_nothing_known_or_nothing_said_is_no_carbon(count, params):
    assert carbon.footprint(count, 2, active_params=params, total_params=params, zone="FRA") == carbon.NOTHING


def test_every_zone_of_the_contract_has_a_footprint_and_unknown_ones_that_of_the_world():
    world = carbon.footprint(100, 2, active_params=8, total_params=8, zone="WOR")
    assert len(ZONES) == len(set(ZONES)) == 250
    for zone in ZONES:
        assert carbon.footprint(100, 2, active_params=8, total_params=8, zone=zone).kgco2eq_min > 0
    assert carbon.footprint(100, 2, active_params=8, total_params=8, zone="ATA") == world
