"""A call is settled once, whoever stops waiting for it, and by the worker where Postgres takes no writes."""

import asyncio
import secrets
from dataclasses import replace
from datetime import datetime

import pytest
from django.db import connection
from django.utils import timezone

from accounts.principals import Principal
from opengate import epoch, loops
from opengate import redis as opengate_redis
from opengate.loops import in_loop
from routing.models import Router
from routing.snapshot import _router
from tests.routing.providers import provider
from tests.usage.records import fund, left
from usage import limits, spool
from usage.accounting import Call, Tokens
from usage.budgets import Need
from usage.limits import Limits
from usage.models import Account, Outcome, Reservation, UsageRecord

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")
UNLIMITED = Limits(None, None, None, None)


@pytest.fixture
def priced(transactional_db):
    row = Router.objects.create(
        name="priced", type="text-generation", cost_prompt_tokens=10**6, cost_completion_tokens=10**6
    )
    return replace(_router(Router.objects.get(id=row.id)), providers=(provider(1),))


def principal(user):
    return Principal((), 1, "key", user.id, user.email, None, None, user.role_id, frozenset(), 0, None, None)


def new_call(user) -> Call:
    return Call(principal(user), "/v1/chat/completions", secrets.token_hex(16))


def take_writes(yes: bool) -> None:
    """Or not: as Postgres after a failover to a replica, which reads, and refuses what writes."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    how = "RESET default_transaction_read_only" if yes else "SET default_transaction_read_only = on"
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute(f"ALTER DATABASE {name} {how}")
    connection.close()  # the next one obeys


@pytest.fixture
def read_only(transactional_db):
    """`read_only(True)`; in the end it is not."""
    yield lambda yes: take_writes(not yes)
    take_writes(True)


async def serve(user, router, granted=UNLIMITED) -> Call:
    """A call that was admitted, got its place, and has used 3 and 5 tokens."""
    await epoch.refresh()
    call = new_call(user)
    assert await call.admit(router, granted, Need(prompt=3, completion=50))
    await call.next_provider(3)
    call.tokens = Tokens(3, 5)
    return call


def test_who_stops_waiting_for_a_settlement_neither_stops_nor_repeats_it(ada, priced, monkeypatch):
    granted = Limits(rpm=None, rpd=None, tpm=1000, tpd=None)
    begin, wait = opengate_redis.begun, opengate_redis.arrived

    async def run() -> int:
        call = await serve(ada, priced, granted)
        call.tokens = Tokens(103, 5)
        arrived, asked = asyncio.Event(), 0

        def counted(commands):
            nonlocal asked
            asked += 1
            return begin(commands)

        async def slow(commands, answering):
            found = await wait(commands, answering)
            arrived.set()
            await asyncio.sleep(0.05)
            return found

        monkeypatch.setattr(opengate_redis, "begun", counted)
        monkeypatch.setattr(opengate_redis, "arrived", slow)

        async def work() -> None:
            async with call:
                await call.settle(200, Outcome.FINISHED)

        task = asyncio.ensure_future(work())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await loops.wind_down()
        monkeypatch.setattr(opengate_redis, "begun", begin)
        monkeypatch.setattr(opengate_redis, "arrived", wait)
        assert asked == 1
        admission = await limits.admit(principal(ada), priced, granted, 1, "next")
        assert not isinstance(admission, str)
        return admission.windows[0].taken

    assert in_loop(run()) == 104
    spool.drain()
    assert UsageRecord.objects.get().outcome == "finished"


def test_what_a_read_only_postgres_refuses_is_settled_by_the_worker(ada, priced, read_only):
    fund(ada, 100)
    call = in_loop(serve(ada, priced))

    async def settle() -> None:
        await call.settle(200, Outcome.FINISHED)

    read_only(True)
    in_loop(settle())
    read_only(False)
    assert Account.objects.get(user=ada).reserved == 53
    assert spool.drain() == 1
    assert (UsageRecord.objects.get().cost, left(ada)) == (8, 92)
    assert not Reservation.objects.exists()


def test_reservations_are_kept_alive_again_after_a_read_only_postgres(ada, priced, read_only, settings):
    settings.RESERVATION_LEASE_SECONDS = 0.3
    fund(ada, 100)

    async def run() -> datetime:
        await serve(ada, priced)
        await asyncio.to_thread(read_only, True)
        await asyncio.sleep(0.4)  # some beats
        resumed = timezone.now()
        await asyncio.to_thread(read_only, False)
        await asyncio.sleep(0.4)
        return resumed

    assert Reservation.objects.filter(expires__gt=in_loop(run())).count() == 1
