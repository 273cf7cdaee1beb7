"""Memory that obeys the epoch."""

import asyncio

import pytest
from django.db import transaction

from opengate import epoch
from opengate.epoch import Replica
from opengate.loops import in_loop
from routing.models import Router

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


class Shelf:
    """Counts how often each key was read."""

    def __init__(self, limit: int = 100) -> None:
        self.reads: list[str] = []
        self.replica = Replica(self._load, limit=limit)

    def _load(self, key: str) -> str:
        self.reads.append(key)
        return key.upper()


def test_a_value_is_read_once_an_epoch():
    shelf = Shelf()

    async def story() -> None:
        assert [await shelf.replica.get("a") for _ in range(3)] == ["A"] * 3
        epoch.bump()
        assert await shelf.replica.get("a") == "A"
        assert shelf.reads == ["a"]  # nobody has told this process yet
        await epoch.refresh()
        assert await shelf.replica.get("a") == "A"
        assert shelf.reads == ["a", "a"]

    in_loop(story())


@pytest.mark.parametrize("spoilt", ["", "abc", "-5", "1e5", "1.5"])
def test_a_spoilt_epoch_is_replaced(redis_client, spoilt):
    redis_client.set(epoch.KEY, spoilt)
    in_loop(epoch.refresh())
    assert epoch.known() == int(redis_client.get(epoch.KEY)) > 10**15


def test_callers_at_the_same_time_share_a_read():
    shelf = Shelf()

    async def story() -> list[str]:
        return await asyncio.gather(*(shelf.replica.get("a") for _ in range(50)))

    assert in_loop(story()) == ["A"] * 50
    assert shelf.reads == ["a"]


def test_a_caller_who_leaves_does_not_take_the_read_along():
    shelf = Shelf()

    async def story() -> str:
        leaver = asyncio.ensure_future(shelf.replica.get("a"))
        await asyncio.sleep(0)
        leaver.cancel()
        return await shelf.replica.get("a")

    assert in_loop(story()) == "A"


def test_what_was_not_used_for_longest_is_forgotten_first():
    shelf = Shelf(limit=2)

    async def story() -> None:
        for key in ("a", "b", "a", "c", "a", "b"):
            await shelf.replica.get(key)

    in_loop(story())
    assert shelf.reads == ["a", "b", "c", "b"]


def test_saving_and_deleting_bump_and_a_rollback_does_not(redis_client):
    in_loop(epoch.refresh())
    start = int(redis_client.get(epoch.KEY))
    router = Router.objects.create(name="r", type="text-generation")
    created = int(redis_client.get(epoch.KEY))
    transaction.set_autocommit(False)
    router.save()
    transaction.rollback()
    transaction.set_autocommit(True)
    assert int(redis_client.get(epoch.KEY)) == created > start
    router.delete()
    assert int(redis_client.get(epoch.KEY)) > created
