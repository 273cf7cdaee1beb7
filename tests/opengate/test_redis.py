"""The line to Redis: shared trips, each caller its own answers, and a breaker."""

import asyncio
import time

import pytest
import redis

from opengate import redis as opengate_redis
from opengate.loops import in_loop
from opengate.redis import Breaker, RedisAway, Script
from tests.server import free_port

pytestmark = pytest.mark.usefixtures("redis_client")


@pytest.fixture
def breaker(monkeypatch) -> Breaker:
    """A breaker of the test's own."""
    fresh = Breaker()
    monkeypatch.setattr(opengate_redis, "breaker", fresh)
    return fresh


def test_many_callers_at_a_time_get_each_its_own_answers():
    async def story() -> list:
        trips = [opengate_redis.trip(("SET", f"k{n}", n), ("GET", f"k{n}")) for n in range(500)]
        return await asyncio.gather(*trips)

    answers = in_loop(story())
    assert [int(answer[1]) for answer in answers] == list(range(500))


def test_an_error_of_one_command_is_its_callers_alone():
    async def story() -> tuple:
        wrong = opengate_redis.ask("INCR", "text")
        right = opengate_redis.ask("PING")
        await opengate_redis.ask("SET", "text", "abc")
        return await asyncio.gather(wrong, right, return_exceptions=True)

    wrong, right = in_loop(story())
    assert isinstance(wrong, redis.ResponseError)
    assert right in (True, b"PONG")


def test_a_command_that_cannot_be_written_is_an_error_and_no_endless_wait():
    async def story() -> object:
        return await asyncio.wait_for(opengate_redis.ask("SET", "a", object()), 5)  # type: ignore[arg-type]

    with pytest.raises(redis.DataError):
        in_loop(story())


def test_a_trip_without_commands_is_none():
    assert in_loop(opengate_redis.trip()) == []


def test_a_script_that_redis_has_forgotten_is_told_to_it_again_on_the_way(redis_client):
    script = Script("return redis.call('INCR', KEYS[1])")

    async def story() -> list:
        first = await script.run(["n"], [])
        redis_client.script_flush()
        return [first, *await opengate_redis.trip(("ECHO", "a"), script.command(["n"], []), ("ECHO", "b"))]

    assert in_loop(story()) == [1, b"a", 2, b"b"]


def test_what_is_on_its_way_when_a_kept_connection_closes_goes_once_more(redis_client):
    async def story() -> list:
        await opengate_redis.ask("PING")
        redis_client.client_kill_filter(_type="normal", skipme=True)
        return await opengate_redis.trip(("SET", "a", 1), ("GET", "a"))

    assert in_loop(story())[1] == b"1"


def test_an_answer_that_does_not_come_in_time_is_waited_for_no_longer(redis_client, settings, breaker):
    settings.REDIS_TIMEOUT_SECONDS = 0.05

    async def story() -> None:
        await opengate_redis.ask("PING")
        redis_client.client_pause(300)
        began = time.monotonic()
        with pytest.raises(RedisAway):
            await opengate_redis.ask("SET", "a", 1)
        assert time.monotonic() - began < 0.25
        redis_client.client_unpause()
        assert await opengate_redis.ask("ECHO", "mine") == b"mine"  # on a new connection

    in_loop(story())


def test_a_caller_who_leaves_takes_no_answer_from_the_others():
    async def story() -> bytes:
        leaver = asyncio.ensure_future(opengate_redis.ask("SET", "a", "1"))
        await asyncio.sleep(0)
        leaver.cancel()
        return await opengate_redis.ask("ECHO", "mine")

    assert in_loop(story()) == b"mine"


def test_a_dead_redis_opens_the_breaker_and_a_live_one_closes_it(settings, breaker):
    url, settings.REDIS_URL = settings.REDIS_URL, f"redis://127.0.0.1:{free_port()}/0"

    async def fail() -> None:
        for _ in range(opengate_redis.FAILURES_TO_OPEN):
            with pytest.raises(RedisAway):
                await opengate_redis.ask("PING")

    in_loop(fail())
    assert not breaker.allows()
    settings.REDIS_URL = url
    breaker.open_until = 0
    in_loop(opengate_redis.ask("PING"))
    assert breaker.allows()
    assert (breaker.failures, breaker.outages) == (0, 1)


def test_one_slow_answer_is_no_outage(breaker):
    breaker.failed(redis.TimeoutError())
    in_loop(opengate_redis.ask("PING"))
    assert (breaker.failures, breaker.outages) == (0, 0)
