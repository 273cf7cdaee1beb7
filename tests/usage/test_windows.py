"""The three strategies of rate limits, on a clock of the test's own, beside what they say in Python."""

import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opengate import epoch
from usage import windows
from usage.windows import Strategy

CLOCK = "local function clock() return tonumber(redis.call('GET', 'test:clock')) end"
SCRIPTS = {name: Strategy(name, clock=CLOCK) for name in windows.FUNCTIONS}
WINDOW = 60_000
START = 1_700_000_040_000  # the beginning of a minute


class Counters:
    """Counters of one caller; `take` answers (verdict, [(count, reset, wait), …])."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name, self.prefix = client, name, f"test:{secrets.token_hex(8)}"
        client.set(epoch.KEY, 1)
        self.at(0)

    def at(self, milliseconds: int) -> None:
        client = self.client
        self.now = START + milliseconds
        client.set("test:clock", self.now)
        if self.name == "fixed_window":  # its window is Redis' own expiry
            for key, ends in getattr(self, "ends", {}).items():
                client.pexpire(key, ends - self.now) if ends > self.now else client.delete(key)

    def take(self, *wanted: tuple[int, int], id: str = "a") -> tuple[int, list[tuple[int, int, int]]]:
        keys = [f"{self.prefix}:{n}" for n in range(len(wanted))]
        arguments = [value for limit, cost in wanted for value in (limit, cost, WINDOW)]
        script = SCRIPTS[self.name].admit.whole([epoch.KEY, *keys], ["1", id, *arguments])
        verdict, _, now, *found = self.client.execute_command(*script)
        assert now == self.now
        if self.name == "fixed_window":
            self.ends = {key: self.now + self.client.pttl(key) for key in keys if self.client.exists(key)}
        return verdict, list(zip(found[::3], found[1::3], found[2::3], strict=True))

    def correct(self, delta: int, cost: int, ends: int, id: str = "a") -> None:
        script = SCRIPTS[self.name].correct.whole([f"{self.prefix}:0"], [id, delta, cost, WINDOW, ends])
        self.client.execute_command(*script)


@pytest.fixture(params=list(windows.FUNCTIONS))
def counters(request, redis_client):
    return Counters(redis_client, request.param)


@pytest.fixture
def moving(redis_client):
    return Counters(redis_client, "moving_window")


@pytest.fixture
def sliding(redis_client):
    return Counters(redis_client, "sliding_window")


def test_the_limit_is_given_and_no_more(counters):
    assert [counters.take((3, 1), id=f"{n}")[0] for n in range(5)] == [0, 0, 0, 1, 1]


def test_of_two_limits_both_are_taken_or_none(counters):
    assert counters.take((10, 1), (5, 4))[0] == 0
    verdict, found = counters.take((10, 1), (5, 4), id="b")
    assert (verdict, [count for count, _, _ in found]) == (2, [1, 4])
    assert counters.take((10, 1), (5, 1), id="c")[1][0][0] == 2


def test_what_costs_more_than_the_limit_is_always_refused(counters):
    verdict, [(count, _, wait)] = counters.take((5, 6))
    assert (verdict, count, wait) == (1, 0, WINDOW)


def test_what_costs_nothing_is_never_refused(counters):
    counters.take((5, 5))
    assert counters.take((5, 0), id="b")[0] == 0


def test_every_key_expires(counters, redis_client):
    counters.take((5, 2), (5, 1))
    lives = [redis_client.pttl(key) for key in redis_client.keys(f"{counters.prefix}*")]
    assert lives
    assert all(0 < life <= 2 * WINDOW for life in lives)


def test_a_call_counts_what_it_really_took(counters):
    _, [(_, reset, _)] = counters.take((100, 10))
    counters.correct(25, 10, counters.now + reset)
    assert counters.take((100, 0), id="b")[1][0][0] == 35


def test_a_call_that_is_given_back_leaves_room(counters):
    _, [(_, reset, _)] = counters.take((10, 10))
    counters.correct(-10, 10, counters.now + reset)
    assert counters.take((10, 10), id="b")[0] == 0


def test_a_correction_that_comes_a_window_late_changes_nothing(counters):
    _, [(_, reset, _)] = counters.take((100, 10))
    ends = counters.now + reset
    counters.at(3 * WINDOW)
    counters.take((100, 1), id="b")
    counters.correct(50, 10, ends)
    assert counters.take((100, 0), id="c")[1][0][0] == 1


def test_the_wait_that_is_told_is_as_long_as_needed(counters):
    if counters.name == "fixed_window":
        counters.at(20_000)
    for at in (0, 20_000, 40_000, 70_000):
        counters.at(at)
        counters.take((10, 3), id=f"{at}")
    verdict, [(_, _, wait)] = counters.take((10, 9), id="x")
    assert verdict == 1
    now = counters.now - START
    counters.at(now + wait - (1000 if counters.name == "fixed_window" else 1))  # Redis' own clock goes on
    assert counters.take((10, 9), id="y")[0] == 1
    counters.at(now + wait)
    assert counters.take((10, 9), id="z")[0] == 0


def test_at_the_seam_of_two_windows_only_the_fixed_one_lets_twice_as_many_pass(counters):
    counters.take((10, 1))
    counters.at(WINDOW - 1000)
    assert [counters.take((10, 1), id=f"a{n}")[0] for n in range(9)] == [0] * 9
    counters.at(WINDOW)
    passed = [counters.take((10, 1), id=f"b{n}")[0] for n in range(10)].count(0)
    assert passed == {"fixed_window": 10, "moving_window": 1, "sliding_window": 0}[counters.name]


STEPS = st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 12)), max_size=25)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(steps=STEPS)
def test_a_moving_window_is_exact(moving, steps):
    counters = Counters(moving.client, "moving_window")
    taken: list[tuple[int, int]] = []
    for number, (pause, cost) in enumerate(steps):
        counters.at(counters.now - START + pause)
        taken = [(at, tokens) for at, tokens in taken if at + WINDOW > counters.now]
        count = sum(tokens for _, tokens in taken)
        fits = cost == 0 or count + cost <= 20
        verdict, [(found, _, _)] = counters.take((20, cost), id=f"{number}")
        assert (verdict, found) == ((0, count + cost) if fits else (1, count))
        if fits:
            taken.append((counters.now, cost))


@QUICK
@given(steps=STEPS)
def test_a_sliding_window_weighs_the_last_one(sliding, steps):
    counters = Counters(sliding.client, "sliding_window")
    taken: dict[int, int] = {}
    for number, (pause, cost) in enumerate(steps):
        counters.at(counters.now - START + pause)
        window, into = divmod(counters.now, WINDOW)
        before, current = taken.get(window - 1, 0), taken.get(window, 0)
        seen = current + -(-before * (WINDOW - into) // WINDOW)
        fits = cost == 0 or seen + cost <= 20
        verdict, [(found, _, _)] = counters.take((20, cost), id=f"{number}")
        assert (verdict, found) == ((0, seen + cost) if fits else (1, seen))
        if fits:
            taken[window] = current + cost
