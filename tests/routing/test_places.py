"""Places at providers: counted while calls live, gone when their process dies, given in order to those who wait."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from opengate import redis as opengate_redis
from opengate.loops import in_loop
from routing import circuit, figures, load, places
from routing.errors import ModelTooBusy, ProvidersAway
from routing.places import Choice, Lease, Option, Waiting, inflight_key
from routing.snapshot import Provider
from tests.routing.providers import provider

pytestmark = pytest.mark.usefixtures("redis_client")


@pytest.fixture(autouse=True)
def _quick_redis(settings):
    """So that what a caller who leaves may still get is given back soon."""
    settings.REDIS_TIMEOUT_SECONDS = 0.1


A, B = provider(1), provider(2)
ROUTER = 7


async def take(
    call_id: str,
    *options: Option,
    tried: Sequence[Provider] = (),
    head_start: float = 0,
    patience: float = 5,
) -> Lease:
    async def now() -> Sequence[Option]:
        return options or (Option(A),)

    waiting = Waiting(call_id, frozenset(p.id for p in tried), head_start)
    return await places.take(ROUTER, now, waiting, patience)


def count(redis_client, provider: Provider) -> int:
    return int(redis_client.zcard(inflight_key(provider.id)))


def test_a_place_counts_until_it_is_released(redis_client):
    async def story() -> list[int]:
        leases = [await take(f"call-{n}") for n in range(3)]
        counts = [count(redis_client, A)]
        await leases[0].release()
        return [*counts, count(redis_client, A)]

    assert in_loop(story()) == [3, 2]


def test_a_place_whose_process_died_expires(redis_client):
    redis_client.zadd(inflight_key(A.id), {"dead": time.time() - 1, "alive": time.time() + 30})

    async def story() -> None:
        await take("call", Option(A, 2))

    in_loop(story())
    assert sorted(redis_client.zrange(inflight_key(A.id), 0, -1)) == [b"alive", b"call"]


def test_a_heartbeat_keeps_a_place_and_sweeps_the_dead(redis_client, monkeypatch):
    monkeypatch.setattr(places, "HEARTBEAT_SECONDS", 0.05)

    async def story() -> None:
        await take("call")
        redis_client.zadd(inflight_key(A.id), {"call": time.time() + 1, "dead": time.time() - 1})
        deadline = time.monotonic() + 5
        while redis_client.zscore(inflight_key(A.id), "call") < time.time() + 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert redis_client.zscore(inflight_key(A.id), "dead") is None

    in_loop(story())


def test_a_full_provider_is_passed_over_for_the_next():
    async def story() -> list[int]:
        options = (Option(A, 1), Option(B, 2))
        return [(await take(f"call-{n}", *options)).provider.id for n in range(3)]

    assert in_loop(story()) == [A.id, B.id, B.id]


def test_a_provider_that_was_tried_is_not_tried_again():
    async def story() -> int:
        return (await take("call", Option(A), Option(B), tried=[A])).provider.id

    assert in_loop(story()) == B.id


def test_with_all_tried_nobody_is_left():
    with pytest.raises(ProvidersAway):
        in_loop(take("call", Option(A), tried=[A]))


def test_who_waits_too_long_is_told_so_and_leaves_the_line(redis_client):
    async def story() -> str:
        await take("first", Option(A, 1))
        with pytest.raises(ModelTooBusy) as refused:
            await take("second", Option(A, 1), patience=0.1)
        await asyncio.sleep(0.3)
        return str(refused.value)

    assert in_loop(story()) == "Model is too busy after 0.1 seconds"
    assert redis_client.keys("opengate:line:*") == []


def test_a_freed_place_goes_to_the_next_in_line(redis_client):
    async def story() -> bool:
        first = await take("first", Option(A, 1))
        second = asyncio.ensure_future(take("second", Option(A, 1)))
        await asyncio.sleep(0.1)
        assert not second.done()
        await first.release()
        return (await second).call_id == "second"

    assert in_loop(story())
    assert redis_client.zrange(inflight_key(A.id), 0, -1) == [b"second"]
    assert redis_client.keys("opengate:line:*") == []


def test_a_newcomer_does_not_pass_those_who_wait(redis_client):
    """A call of another process waits: its rank is in Redis, and it was heard of just now."""
    redis_client.zadd(places.line_key(ROUTER), {"elsewhere": time.time() - 1})
    redis_client.zadd(f"{places.line_key(ROUTER)}:heard", {"elsewhere": time.time() + 1})

    async def story() -> float:
        begun = time.monotonic()
        await take("newcomer", Option(A, 1))
        return time.monotonic() - begun

    assert 0.8 < in_loop(story()) < 3  # until nothing more is heard of the other one


def test_priority_is_a_head_start_and_equals_go_by_arrival():
    async def story() -> list[str]:
        order: list[str] = []

        async def call(name: str, head_start: float) -> None:
            lease = await take(name, Option(A, 1), head_start=head_start)
            order.append(name)
            await lease.release()

        holder = await take("holder", Option(A, 1))
        calls = []
        for name, head_start in (("low-1", 0.0), ("low-2", 0.0), ("high", 4.0), ("middle", 2.0)):
            calls.append(asyncio.ensure_future(call(name, head_start)))
            await asyncio.sleep(0.05)
        await holder.release()
        await asyncio.gather(*calls)
        return order

    assert in_loop(story()) == ["high", "middle", "low-1", "low-2"]


def test_who_gives_up_while_waiting_leaves_no_trace(redis_client):
    async def story() -> None:
        holder = await take("holder", Option(A, 1))
        waiting = asyncio.ensure_future(take("leaver", Option(A, 1)))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await holder.release()
        await asyncio.sleep(0.3)

    in_loop(story())
    assert redis_client.keys("opengate:line:*") == []
    assert count(redis_client, A) == 0


def test_who_gives_up_while_being_served_gives_the_place_back(redis_client):
    async def story() -> None:
        for _ in range(20):
            asking = asyncio.ensure_future(take("leaver", Option(A, 1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.3)

    in_loop(story())
    assert count(redis_client, A) == 0


# Circuits


def state() -> circuit.Circuit:
    async def story() -> circuit.Circuit:
        return (await load.of([A.id]))[A.id].circuit

    return in_loop(story())


async def fail(times: int, *options: Option) -> None:
    for n in range(times):
        lease = await take(f"failing-{n}", *options)
        lease.failed()
        await lease.release()


def age(redis_client, seconds: float) -> None:
    """As if the circuit had opened earlier."""
    redis_client.hincrbyfloat(circuit.key(A.id), "until", -seconds)


def test_five_outages_in_a_row_open_the_circuit():
    in_loop(fail(4))
    assert (state().state, state().failures) == (circuit.State.CLOSED, 4)
    in_loop(fail(1))
    assert state().state == circuit.State.OPEN
    assert 4 < state().seconds <= 5
    with pytest.raises(ProvidersAway) as refused:
        in_loop(take("call"))
    assert refused.value.headers == {"Retry-After": "5"}


def test_an_answer_between_outages_keeps_it_closed():
    async def story() -> None:
        await fail(4)
        lease = await take("answered")
        lease.answered()
        await lease.release()
        await fail(4)

    in_loop(story())
    assert (state().state, state().failures) == (circuit.State.CLOSED, 4)


def test_calls_go_elsewhere_while_it_is_open():
    async def story() -> int:
        await fail(5, Option(A))
        return (await take("call", Option(A), Option(B))).provider.id

    assert in_loop(story()) == B.id


def test_half_open_one_call_tries_and_its_answer_closes_it(redis_client):
    in_loop(fail(5))
    age(redis_client, 5)
    assert state().state == circuit.State.HALF_OPEN

    async def story() -> list[int]:
        trial = await take("trial", Option(A), Option(B))
        other = await take("other", Option(A), Option(B))
        trial.answered()
        await trial.release()
        after = await take("after", Option(A), Option(B))
        return [lease.provider.id for lease in (trial, other, after)]

    assert in_loop(story()) == [A.id, B.id, A.id]
    assert state() == circuit.Circuit()


def test_a_failed_trial_opens_it_for_twice_as_long_up_to_a_minute(redis_client):
    in_loop(fail(5))
    pauses = []
    for _ in range(6):
        pauses.append(round(state().seconds))
        age(redis_client, 100)
        in_loop(fail(1))
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_failures_of_calls_under_way_do_not_open_it_for_longer():
    async def story() -> None:
        leases = [await take(f"call-{n}") for n in range(12)]
        for lease in leases:
            lease.failed()
            await lease.release()

    in_loop(story())
    assert 4 < state().seconds <= 5


def test_a_provider_that_is_away_is_no_place_to_wait_for():
    async def story() -> None:
        await fail(5, Option(A, 1))
        await take("call", Option(A, 1), patience=60)

    with pytest.raises(ProvidersAway):
        in_loop(story())


def test_samples_are_read_as_they_were_recorded(redis_client):
    async def story() -> figures.Figures:
        lease = await take("call")
        await opengate_redis.trip(*lease.end(figures.Sample(120, 3000, 12.5)))
        return (await figures.of([A.id]))[A.id]

    assert in_loop(story()) == figures.Figures(120, 3000, 120, 3000, 12.5)
    assert 0 < redis_client.ttl(figures.key(A.id)) <= 120


def test_a_call_that_got_no_place_knows_how_the_providers_stood(redis_client):
    choice = Choice()
    redis_client.hset(circuit.key(B.id), mapping={"failures": 5, "until": time.time() + 30, "pause": 5})

    async def options() -> Sequence[Option]:
        return Option(A, 1), Option(B), Option(provider(3))

    async def story() -> None:
        await take("holder", Option(A, 1))
        with pytest.raises(ModelTooBusy):
            await places.take(ROUTER, options, Waiting("busy", frozenset({3}), 0, choice), 0.1)

    in_loop(story())
    assert [verdict for _, verdict in choice.verdicts()] == ["full", "open", "tried"]
