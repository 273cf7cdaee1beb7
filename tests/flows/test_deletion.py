"""Users who are deleted while their calls go on."""

import time
from collections import Counter

import pytest

from accounts.models import User
from routing.models import Router
from tests.conftest import CHAT, person
from tests.flows.load import Callers
from tests.upstream import completion
from tests.usage.records import fund
from usage import auditing, spool
from usage.models import Account, Reservation, UsageRecord

USERS = 6


@pytest.fixture
def priced(router):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    return router


def test_deleting_users_while_they_call_breaks_neither_calls_nor_books(gateway, priced, role, admin, key_of, upstream):
    upstream.route("/v1/chat/completions", completion(), wait=0.02)
    users = [person(f"{n}@example.org", role) for n in range(USERS)]
    for user in users:
        fund(user, 10**6)
    keys, doomed = [key_of(user) for user in users], [user.id for user in users]
    admin_key, begun = key_of(admin), time.monotonic()

    def call(client, number) -> int:
        if number == 0:
            time.sleep(0.15)
            client.headers["Authorization"] = f"Bearer {admin_key}"
            return client.delete(f"/v1/admin/users/{doomed.pop()}").status_code
        return client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 12}).status_code

    def enough(callers) -> bool:
        return not doomed or time.monotonic() > begun + 30

    counts = Counter(Callers([gateway], [keys[0], *keys, *keys], call, enough).join())
    print(f"\n{dict(counts)}")
    assert set(counts) <= {200, 204, 401}
    assert counts[204] == USERS
    spool.drain()
    assert UsageRecord.objects.count() == counts[200]
    assert not User.objects.filter(email__in=[user.email for user in users]).exists()
    assert (Account.objects.count(), Reservation.objects.count()) == (0, 0)
    assert auditing.audit().is_clean
