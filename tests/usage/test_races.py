"""Settlements, recoveries, late truths and renewed leases of the same users at once: nobody waits in a ring."""

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import Key, Role, User
from routing.models import Router
from routing.snapshot import _router
from tests.usage.records import fund, record
from usage import auditing, budgets, ledger
from usage.budgets import Need
from usage.models import Reservation

USERS, THREADS, BATCHES, BATCH = 12, 8, 40, 8


@pytest.mark.usefixtures("transactional_db", "redis_client")
def test_parallel_settlements_of_the_same_users_never_deadlock():
    role = Role.objects.create(name="many")
    users = [User.objects.create(email=f"{n}@example.org", role=role) for n in range(USERS)]
    keys = {user.id: Key.objects.issue(user, "k")[0].id for user in users}
    row = Router.objects.create(
        name="m", type="text-generation", cost_prompt_tokens=10**6, cost_completion_tokens=10**6
    )
    router = _router(Router.objects.get(id=row.id))
    for user in users:
        fund(user, 10**6)

    def call(user: User):
        prices = {"cost_prompt_tokens": "1000000", "cost_completion_tokens": "1000000", "cost": "2"}
        now = timezone.now().isoformat()
        return record(
            secrets.token_hex(16), user=user, key_id=keys[user.id], router_id=router.id, created=now, **prices
        )

    under_way: set[str] = set()

    def work(seed: int) -> None:
        chance, now = random.Random(seed), timezone.now()
        try:
            for _ in range(BATCHES):
                batch = [call(user) for user in chance.sample(users, BATCH)]
                for each in batch:
                    budgets.reserve(each["user_id"] or 0, each, router, Need(1, completion=1), 0.0)
                    under_way.add(each["request_id"])
                alive = list(under_way)  # those of other threads, too, which are being settled
                chance.shuffle(alive)
                budgets.keep_alive(alive)
                dead = [each["request_id"] for each in batch if chance.random() < 0.2]
                silent = Reservation.objects.filter(request_id__in=dead)
                silent.update(created=now - timedelta(seconds=61), expires=now - timedelta(seconds=1))
                if chance.random() < 0.3:
                    budgets.recover()
                chance.shuffle(batch)
                ledger.store(batch)
                under_way.difference_update(each["request_id"] for each in batch)
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    audit = auditing.audit()
    assert (audit.is_clean, audit.checked["records"]) == (True, THREADS * BATCHES * BATCH)
    assert not Reservation.objects.exists()
