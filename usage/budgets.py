"""Budgets under parallel calls: what a call may cost is taken from its user's account before the call starts.

A reservation is one statement in Postgres that takes or refuses, so any number of processes agree. It is what the
caller allows the answer to have, else what this router's answers usually need, times what its last calls cost more than
was expected of them. A guess refuses nobody who has no other call under way and enough for what is certain: so a small
budget can be spent to its end, by one call at a time, and is overrun by what one call was misjudged.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DataError, connection, transaction
from django.db.models.functions import Now
from pydantic_core import to_json

from opengate.database import commit, in_thread, in_time
from opengate.epoch import Replica
from opengate.errors import APIError, DatabaseAway
from opengate.loops import PerLoop, Tasks
from routing.snapshot import Router
from usage import ledger, pricing
from usage.errors import InsufficientBudget, InsufficientCarbonBudget
from usage.ledger import Record
from usage.models import Account, Outcome, Reservation

logger = logging.getLogger(__name__)

LEARNED_FROM = 200  # calls of a router
MOST_OVERRUN = 10  # so that some odd calls of one user do not close the budgets of all others
RECOVERED_AT_ONCE = 200
BEATS_A_LEASE = 3
TRIES = 4
RECOVERED_STATUS = 500  # nobody knows what the caller saw; no answer came to its end

# Over `last`, a router's last answers. What they cost beyond expectation is multiplied into the next reservations.
_LEARNED = f"""
    percentile_disc(0.95) WITHIN GROUP (ORDER BY prompt_tokens) AS prompt_tokens,
    percentile_disc(0.95) WITHIN GROUP (ORDER BY completion_tokens) AS completion_tokens,
    coalesce(percentile_disc(0.95) WITHIN GROUP (
        ORDER BY round(least(greatest(cost / nullif(estimated_cost, 0), 1), {MOST_OVERRUN}), 3)), 1) AS overrun,
    count(*) AS calls
"""
_LAST = f"""
    SELECT prompt_tokens, completion_tokens, cost, estimated_cost FROM usage_usagerecord AS record
    WHERE record.router_id = {{router}} AND outcome = '{Outcome.FINISHED}' ORDER BY created DESC LIMIT {LEARNED_FROM}
"""  # noqa: S608

# What a call is expected to cost, what of that is certain, and what is held: taken when that fits, or when what is
# certain does and nothing else is under way: so what has a price holds something. A router that nobody has learned of
# yet is looked at on the way.
_RESERVE = f"""
WITH learned AS (
    SELECT prompt_tokens, completion_tokens, overrun FROM usage_estimate WHERE router_id = %(router)s
    UNION ALL
    SELECT prompt_tokens, completion_tokens, overrun
    FROM (SELECT {_LEARNED} FROM ({_LAST.format(router="%(router)s")}) AS last) AS at_once
    WHERE NOT EXISTS (SELECT FROM usage_estimate WHERE router_id = %(router)s)
), tokens AS (
    SELECT CASE WHEN %(prompt)s::bigint + %(overhead)s > 0 THEN least(%(prompt)s::bigint + %(overhead)s, 2147483647)
               ELSE coalesce(prompt_tokens, %(unknown_prompt)s) END AS prompt,
           coalesce(%(completion)s, least(coalesce(completion_tokens, %(unknown_completion)s)
               * %(answers)s::bigint, 2147483647)) AS completion,
           coalesce(%(completion)s, 0) AS certain_completion, overrun,
           %(price_prompt)s::numeric AS price_prompt, %(price_completion)s::numeric AS price_completion,
           %(grams_a_token)s::numeric AS grams_a_token
    FROM learned
), costs AS (
    SELECT *, round((prompt * price_prompt + completion * price_completion) / 1000000, 6) AS expected,
           round((%(prompt)s * price_prompt + certain_completion * price_completion) / 1000000, 6) AS certain,
           round(completion * grams_a_token, 6) AS grams, round(certain_completion * grams_a_token, 6) AS certain_grams
    FROM tokens
), need AS (
    SELECT *, CASE WHEN %(is_free)s THEN 0
                   ELSE least(greatest(round(expected * overrun, 6), 0.000001), 1000000000000) END AS cost
    FROM costs
), taken AS (
    UPDATE usage_account SET reserved = reserved + cost, carbon_reserved = carbon_reserved + grams FROM need
    WHERE user_id = %(user)s AND (refills IS NULL OR refills > now())
      AND (granted IS NULL OR %(is_free)s OR granted > spent + reserved AND (
          granted >= spent + reserved + cost OR reserved = 0 AND granted >= spent + certain))
      AND (carbon_granted IS NULL OR grams = 0 OR carbon_granted > carbon_spent + carbon_reserved AND (
          carbon_granted >= carbon_spent + carbon_reserved + grams
          OR carbon_reserved = 0 AND carbon_granted >= carbon_spent + certain_grams))
    RETURNING user_id
), held AS (
    INSERT INTO usage_reservation
        (request_id, user_id, cost, gco2eq, prompt_tokens, completion_tokens, record, created, expires)
    SELECT %(request_id)s, user_id, cost, grams, prompt, completion, %(record)s::jsonb, now(),
           now() + %(lease)s * interval '1 second'
    FROM taken, need
    RETURNING request_id
)
SELECT EXISTS (SELECT FROM held), expected, cost, grams, now() FROM need
"""  # noqa: S608

# A reservation that is locked is being settled, and needs no more time: waiting for it could be waiting in a ring.
_KEEP_ALIVE = """
UPDATE usage_reservation SET expires = now() + %s * interval '1 second' WHERE request_id IN (
    SELECT request_id FROM usage_reservation WHERE request_id = ANY(%s) FOR UPDATE SKIP LOCKED
)
"""

_LEARN = f"""
INSERT INTO usage_estimate (router_id, prompt_tokens, completion_tokens, overrun, calls)
SELECT router.id, {_LEARNED}
FROM routing_router AS router CROSS JOIN LATERAL ({_LAST.format(router="router.id")}) AS last
GROUP BY router.id
ON CONFLICT (router_id) DO UPDATE SET prompt_tokens = EXCLUDED.prompt_tokens,
    completion_tokens = EXCLUDED.completion_tokens, overrun = EXCLUDED.overrun, calls = EXCLUDED.calls
WHERE (usage_estimate.prompt_tokens, usage_estimate.completion_tokens, usage_estimate.overrun, usage_estimate.calls)
    IS DISTINCT FROM (EXCLUDED.prompt_tokens, EXCLUDED.completion_tokens, EXCLUDED.overrun, EXCLUDED.calls)
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Need:
    """What is known of a call before it starts, in tokens.

    `overhead` counts what a model reads beside the prompt, when it is asked; `completion` is the most that the caller
    allows, None where it does not say; `answers` is how many it wants. Where nothing is known, `unknown_prompt` and
    `unknown_completion` stand in until the router has answered.
    """

    prompt: int = 0
    overhead: Callable[[], int] = int  # none
    completion: int | None = None
    answers: int = 1
    unknown_prompt: int = 0
    unknown_completion: int = 0


class Held(NamedTuple):
    """What a call is expected to cost, and what is held of its user's account for it."""

    expected: Decimal
    cost: Decimal
    grams: Decimal


@dataclass(frozen=True, slots=True)
class Limited:
    """What of a user is limited."""

    money: bool = False
    carbon: bool = False


def _load(user_id: int) -> Limited:
    account = Account.objects.filter(user_id=user_id).values_list("granted", "carbon_granted").first()
    return Limited() if account is None else Limited(account[0] is not None, account[1] is not None)


_limited = Replica(_load)


def limited(user_id: int) -> Awaitable[Limited]:
    """What of the user is limited, as of the newest epoch this process knows."""
    return _limited.get(user_id)


def reserve(user_id: int, record: Record, router: Router, need: Need, grams_a_token: float) -> Held | None:
    """Take what the call may cost from its user's account, and answer what is held.

    `record` is what is stored if its process dies. None when there is no account to take it from. Raises
    InsufficientBudget or InsufficientCarbonBudget.
    """
    parameters: dict[str, Any] = {
        "request_id": record["request_id"],
        "user": user_id,
        "router": router.id,
        "is_free": not router.has_price,
        "price_prompt": router.cost_prompt_tokens,
        "price_completion": router.cost_completion_tokens,
        "grams_a_token": Decimal(repr(grams_a_token)),
        "prompt": need.prompt,
        "overhead": need.overhead(),
        "completion": need.completion,
        "answers": need.answers,
        "unknown_prompt": need.unknown_prompt,
        "unknown_completion": need.unknown_completion,
        "record": to_json(record).decode(),
        "lease": settings.RESERVATION_LEASE_SECONDS,
    }
    for _ in range(TRIES):
        with connection.cursor() as cursor:
            cursor.execute(_RESERVE, parameters)
            is_held, expected, cost, grams, now = cursor.fetchone()
        if is_held:
            return Held(Decimal(expected), Decimal(cost), Decimal(grams))
        account = Account.objects.filter(user_id=user_id).first()
        if account is None:
            return None  # a user who is gone, or whose limits were lifted with it
        if account.refills is not None and account.refills <= now:
            refill_due(now, user_id=account.pk)
        elif router.has_price and not _is_there(account.granted, account.spent + account.reserved, cost):
            raise InsufficientBudget
        elif grams and not _is_there(account.carbon_granted, account.carbon_spent + account.carbon_reserved, grams):
            raise InsufficientCarbonBudget
    raise InsufficientBudget  # what was short was there again at each look, and gone at each try


def _is_there(granted: Decimal | None, taken: Decimal, wanted: Decimal) -> bool:
    return granted is None or (granted > taken and granted - taken >= wanted)


def refill_due(now: datetime, **which: Any) -> int:
    """Begin the new period of accounts whose time has come; answers how many."""
    refilled = 0
    for pk in Account.objects.due(now).filter(**which).values_list("pk", flat=True).iterator():
        try:
            refilled += _refill(pk, now)
        except DataError:
            logger.exception("The account of user %s cannot be refilled.", pk)
    return refilled


@transaction.atomic
def _refill(pk: int, now: datetime) -> bool:
    account = Account.objects.due(now).select_for_update().filter(pk=pk).first()
    if account is not None:
        account.refill(now)
    return account is not None


def release(request_id: str) -> None:
    """Free a reservation whose call never began."""
    with transaction.atomic():
        held = Reservation.objects.select_for_update().filter(request_id=request_id).first()
        if held is not None:
            Account.objects.release(held)
            held.delete()


def recover() -> int:
    """Settle at their estimates the calls whose processes fell silent; answers how many."""
    recovered = 0
    while True:
        # Not locked: whoever settles one of them meanwhile is as welcome, and the ledger takes only one of the two.
        found = list(Reservation.objects.filter(expires__lt=Now()).order_by("expires")[:RECOVERED_AT_ONCE])
        for row in found:
            try:
                recovered += ledger.store([_recovered(row)])
            except (*ledger.UNFIT, AttributeError):
                logger.exception("Reservation %s cannot be settled, and is freed.", row.request_id)
                release(row.request_id)
        if len(found) < RECOVERED_AT_ONCE:
            return recovered


def _recovered(row: Reservation) -> Record:
    record: Record = row.record
    cost = pricing.cost(
        row.prompt_tokens,
        row.completion_tokens,
        Decimal(record["cost_prompt_tokens"]),
        Decimal(record["cost_completion_tokens"]),
    )
    return record | {
        "status": RECOVERED_STATUS,
        "outcome": Outcome.RECOVERED.value,
        "latency_ms": round((row.expires - row.created).total_seconds() * 1000),
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        "tokens_estimated": True,
        "cost": str(cost),
        "estimated_cost": str(cost),
        "gco2eq": str(row.gco2eq),
    }


def learn() -> None:
    """Look at each router's last calls, and remember what they needed."""

    def learned() -> None:
        with connection.cursor() as cursor:
            cursor.execute(_LEARN)

    commit(learned)


# Reservations under way in this process


_areserve = in_thread(reserve)
_arelease = in_thread(release)


def keep_alive(request_ids: Sequence[str]) -> None:
    """Let these reservations begin their leases anew."""
    with connection.cursor() as cursor:
        cursor.execute(_KEEP_ALIVE, [settings.RESERVATION_LEASE_SECONDS, list(request_ids)])


_akeep_alive = in_thread(keep_alive)


async def areserve(user_id: int, record: Record, router: Router, need: Need, grams_a_token: float) -> Held | None:
    """`reserve`, kept alive by this event loop until `forget`; raises DatabaseAway, too, when Postgres takes too long.

    Whoever is not there any more when it is taken, leaves nothing behind.
    """
    # Of a body of a million parts this takes seconds, for which Postgres is not to blame.
    overhead = await sync_to_async(need.overhead, thread_sensitive=False)()
    need = replace(need, overhead=lambda: overhead)
    taking = asyncio.ensure_future(_areserve(user_id, record, router, need, grams_a_token))
    try:
        held = await in_time(taking)
    except (asyncio.CancelledError, DatabaseAway):
        _heart().undoing.start(_undo(taking, record["request_id"]))
        raise
    if held is not None:
        _heart().request_ids.add(record["request_id"])
    return held


async def _undo(taking: "asyncio.Future[Held | None]", request_id: str) -> None:
    try:
        await taking
        await _arelease(request_id)
    except APIError:
        pass  # refused, or the lease expires


def forget(request_id: str) -> None:
    """Keep a reservation alive no longer."""
    _heart().request_ids.discard(request_id)


class _Heart:
    """Keeps the reservations of one event loop alive."""

    def __init__(self) -> None:
        self.request_ids: set[str] = set()
        self.undoing = Tasks()
        self.task = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(settings.RESERVATION_LEASE_SECONDS / BEATS_A_LEASE)
            if self.request_ids:
                try:
                    await _akeep_alive(sorted(self.request_ids))
                except DatabaseAway:
                    pass  # a call that is recovered meanwhile is put right when it is settled
                except Exception:
                    logger.exception("Reservations are not renewed; this is tried again.")

    async def end(self) -> None:
        """Once reservations that nobody wants any more are released; none is kept alive from here."""
        await self.undoing.end()
        self.task.cancel()


_heart = PerLoop(_Heart, _Heart.end)
