"""Calls in flight: counted while they live, and gone when their process dies."""

import asyncio
import time

import pytest

from routing import balancing, snapshot
from routing.balancing import inflight_key
from routing.models import Provider
from tests.loops import in_loop

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


async def provider_of(router) -> snapshot.Provider:
    return (await snapshot.latest()).find(router.name).providers[0]


def test_a_lease_counts_until_it_is_released(router):
    async def story() -> list[int]:
        provider = await provider_of(router)
        leases = [await balancing.take(provider, f"call-{n}") for n in range(3)]
        counts = [await balancing.inflight(provider.id)]
        await leases[0].release()
        return [*counts, await balancing.inflight(provider.id)]

    assert in_loop(story()) == [3, 2]


def test_a_lease_whose_process_died_expires(router, redis_client):
    provider = router.providers.get()
    redis_client.zadd(inflight_key(provider.id), {"dead": time.time() - 1, "alive": time.time() + 30})
    assert in_loop(balancing.inflight(provider.id)) == 1


def test_a_heartbeat_keeps_a_lease_alive_and_sweeps_the_dead(router, redis_client, monkeypatch):
    monkeypatch.setattr(balancing, "HEARTBEAT_SECONDS", 0.05)

    async def story() -> None:
        provider = await provider_of(router)
        await balancing.take(provider, "call")
        redis_client.zadd(inflight_key(provider.id), {"call": time.time() + 1, "dead": time.time() - 1})
        deadline = time.monotonic() + 5
        while redis_client.zscore(inflight_key(provider.id), "call") < time.time() + 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert redis_client.zscore(inflight_key(provider.id), "dead") is None

    in_loop(story())


def test_all_providers_are_tried_and_each_comes_first_now_and_then(router, upstream):
    for name in ("b", "c"):
        Provider.objects.create(router=router, type="openai", url=upstream.url, model_name=name)
    found = in_loop(snapshot.latest()).find(router.name)
    orders = [balancing.candidates(found) for _ in range(200)]
    assert all(len(order) == 3 for order in orders)
    assert {order[0].model_name for order in orders} == {"upstream-name", "b", "c"}
