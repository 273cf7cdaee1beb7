"""Usage records, daily sums and accounts in Postgres: what is written here is the truth about money.

One statement settles any number of calls: it inserts their records, adds them to the day's sums and to what their
users have spent, and frees their reservations. A record whose request id is known changes nothing, so settling twice
does no harm, and the figures agree at any moment (`usage.auditing` proves it). Rows of a kind are locked in the order
of their ids, so that two statements never wait for each other in a ring.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, NotRequired, TypedDict

from django.db import DataError, IntegrityError, connection
from pydantic_core import to_json

from accounts.models import Key
from opengate.database import commit, in_thread
from opengate.loops import PerLoop
from usage.models import DailyUsage, Outcome, UsageRecord


class Record(TypedDict):
    """A usage record on its way to Postgres, as JSON types; the fields of UsageRecord."""

    request_id: str
    created: str
    user_id: int | None
    user_email: str
    organization_id: int | None
    organization_name: str | None
    key_id: int | None
    key_name: str
    router_id: int | None
    router_name: str
    provider_id: int | None
    provider_model_name: str | None
    endpoint: str
    method: str
    status: int
    outcome: str
    latency_ms: int
    ttft_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    tokens_estimated: bool
    cost_prompt_tokens: str
    cost_completion_tokens: str
    cost: str
    estimated_cost: str | None
    kwh_min: float
    kwh_max: float
    kgco2eq_min: float
    kgco2eq_max: float
    gco2eq: str
    flight: NotRequired[dict[str, Any] | None]  # `usage.flight`


# What storing raises for what is no record, or does not fit the table.
UNFIT = (DataError, IntegrityError, KeyError, TypeError, ValueError, ArithmeticError)

# How Postgres reads each field of a record. Text stays text here, so that what is too long is refused and not cut.
_TYPES = {
    field.attname: kind if (kind := (field.db_type(connection) or "").partition("(")[0]) != "varchar" else "text"
    for field in UsageRecord._meta.concrete_fields
    if not field.primary_key
}
# What a record of an earlier release may lack.
_DEFAULTS = {
    field.attname: None if field.null else field.get_default()
    for field in UsageRecord._meta.concrete_fields
    if not field.primary_key and (field.null or field.has_default())
}
_COLUMNS = ", ".join(_TYPES)
_DECLARED = ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
_DAY = "(created AT TIME ZONE 'UTC')::date"
_GROUP = "user_id, key_id, organization_id, router_id, provider_id, endpoint"
_NAMES = ("user_email", "key_name", "organization_name", "router_name", "provider_model_name")
_SUMS = {
    "requests": "count(*)",
    "errors": "count(*) FILTER (WHERE status NOT BETWEEN 200 AND 299)",
    "prompt_tokens": "sum(prompt_tokens)",
    "completion_tokens": "sum(completion_tokens)",
    "cost": "sum(cost)",
    "gco2eq": "sum(gco2eq)",
    "kwh": "sum((kwh_min + kwh_max) / 2)",
}
# The sums of records, as a query over any table or expression that has their columns; `usage.auditing` asks it too.
DAILY_SUMS = f"""
    SELECT {_DAY} AS day, {_GROUP},
           {", ".join(f"(array_agg({name} ORDER BY created DESC))[1] AS {name}" for name in _NAMES)},
           {", ".join(f"{expression} AS {name}" for name, expression in _SUMS.items())}
    FROM {{records}} GROUP BY 1, {_GROUP}
"""  # noqa: S608  names of our own columns
_DAILY = DailyUsage._meta.db_table

_SETTLE = f"""
WITH given AS (
    SELECT DISTINCT ON (request_id) * FROM jsonb_to_recordset(%s) AS given({_DECLARED}) ORDER BY request_id
), new AS (
    INSERT INTO usage_usagerecord ({_COLUMNS}) SELECT {_COLUMNS} FROM given ORDER BY created
    ON CONFLICT (request_id) DO NOTHING
    RETURNING {_COLUMNS}
), freed AS (
    DELETE FROM usage_reservation USING given WHERE usage_reservation.request_id = given.request_id
    RETURNING usage_reservation.user_id, usage_reservation.cost, usage_reservation.gco2eq
), moved AS (
    SELECT user_id, sum(spent) AS spent, sum(grams) AS grams, sum(cost) AS freed, sum(gco2eq) AS grams_freed
    FROM (
        SELECT user_id, cost AS spent, gco2eq AS grams, 0 AS cost, 0 AS gco2eq FROM new WHERE cost > 0 OR gco2eq > 0
        UNION ALL
        SELECT user_id, 0, 0, cost, gco2eq FROM freed
    ) AS movements GROUP BY user_id
), accounts AS (
    INSERT INTO usage_account AS account (user_id, spent, carbon_spent, reserved, carbon_reserved, period, time_zone,
                                          refill_day, refill_hour)
    SELECT existing.id, moved.spent, moved.grams, 0, 0, '', 'UTC', 1, 0
    FROM moved JOIN accounts_user AS existing ON existing.id = moved.user_id ORDER BY existing.id
    ON CONFLICT (user_id) DO UPDATE SET
        spent = account.spent + EXCLUDED.spent,
        carbon_spent = account.carbon_spent + EXCLUDED.carbon_spent,
        reserved = account.reserved - (SELECT freed FROM moved WHERE user_id = EXCLUDED.user_id),
        carbon_reserved = account.carbon_reserved - (SELECT grams_freed FROM moved WHERE user_id = EXCLUDED.user_id)
), days AS (
    INSERT INTO {_DAILY} AS daily (day, {_GROUP}, {", ".join((*_NAMES, *_SUMS))}, records_deleted)
    SELECT sums.*, false FROM ({DAILY_SUMS.format(records="new")}) AS sums ORDER BY day, {_GROUP}
    ON CONFLICT (day, {_GROUP}) DO UPDATE SET
        {", ".join(f"{name} = EXCLUDED.{name}" for name in _NAMES)},
        {", ".join(f"{name} = daily.{name} + EXCLUDED.{name}" for name in _SUMS)}
), keys AS (
    UPDATE accounts_key SET last_used = used.moment
    FROM (
        SELECT id, moment FROM accounts_key
        JOIN (SELECT key_id, max(created) AS moment FROM new GROUP BY key_id) AS latest ON key_id = id
        ORDER BY id FOR NO KEY UPDATE OF accounts_key
    ) AS used
    WHERE accounts_key.id = used.id AND (last_used IS NULL OR last_used < used.moment)
)
SELECT request_id FROM new
"""  # noqa: S608

_REPLACE = f"""
WITH old AS (
    SELECT * FROM usage_usagerecord WHERE request_id = %s AND outcome = '{Outcome.RECOVERED}' FOR UPDATE
), accounts AS (
    UPDATE usage_account AS account
    SET spent = account.spent - old.cost, carbon_spent = account.carbon_spent - old.gco2eq
    FROM old WHERE account.user_id = old.user_id
), days AS (
    UPDATE {_DAILY} AS daily
    SET {", ".join(f"{name} = daily.{name} - sums.{name}" for name in _SUMS)}
    FROM ({DAILY_SUMS.format(records="old")}) AS sums
    WHERE daily.day = sums.day
      AND {" AND ".join(f"daily.{name} IS NOT DISTINCT FROM sums.{name}" for name in _GROUP.split(", "))}
)
DELETE FROM usage_usagerecord USING old WHERE usage_usagerecord.id = old.id
"""  # noqa: S608


def store(records: Sequence[Record]) -> int:
    """Settle calls in one transaction; answers how many records were new.

    A record whose request id is known is left out and charges nothing, but for one thing: what was charged at its
    estimate, because its process seemed dead, gives way to the call's own figures. Raises one of UNFIT, with nothing
    written, for what is no record or does not fit the table.
    """
    if not records:
        return 0
    new = commit(lambda: _settle(records))
    late = [record for record in records if record["request_id"] not in new and record["outcome"] != Outcome.RECOVERED]
    return len(new) + sum(commit(partial(_replace, record)) for record in late)


_astore = in_thread(store)


def _settle(records: Sequence[Record]) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(_SETTLE, [_json(records)])
        return {request_id for (request_id,) in cursor.fetchall()}


def _replace(record: Record) -> int:
    """Put the truth in the place of a guess; 0 when there is no guess. Run it in a transaction."""
    # Keys first, as in the other statement: the two would wait for each other.
    list(Key.objects.select_for_update(no_key=True).filter(id__in=[record["key_id"]]).values_list("id"))
    with connection.cursor() as cursor:
        cursor.execute(_REPLACE, [record["request_id"]])
        if not cursor.rowcount:
            return 0
    _settle([record])
    return 1


def _json(records: Sequence[Record]) -> str:
    whole = [_DEFAULTS | record for record in records]
    for record in whole:
        if missing := _TYPES.keys() - record.keys():
            raise KeyError(*sorted(missing))
    return to_json(whole).decode()


# Calls that end at the same time are settled together


BATCH = 200
PATIENCE_SECONDS = 0.2
MOST_AT_ONCE = 4  # statements, and so connections


async def settle(record: Record) -> None:
    """Settle one call; those that end while a statement is under way share the next one. Raises as `store` does."""
    await _line().settled(record)


class _Line:
    """Calls of one event loop that wait to be settled.

    One statement at a time, as a rule: so they share it. One that takes long, since somebody holds the row of one of
    its accounts, does not hold up the next.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Record, asyncio.Future[None]]] = []
        self.task: asyncio.Task[None] | None = None
        self.under_way: set[asyncio.Task[None]] = set()

    def settled(self, record: Record) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((record, future))
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self._serve())
        return future

    async def _serve(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
            task = asyncio.ensure_future(self._settle(batch))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
            await asyncio.wait((task,), timeout=PATIENCE_SECONDS)
            if len(self.under_way) >= MOST_AT_ONCE:
                await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _settle(self, batch: list[tuple[Record, "asyncio.Future[None]"]]) -> None:
        try:
            await self._carry(batch)
        except UNFIT:  # one of them does not fit, and the others are not to suffer
            for one in batch:
                try:
                    await self._carry([one])
                except UNFIT as error:
                    _tell([one], error)

    async def _carry(self, batch: list[tuple[Record, "asyncio.Future[None]"]]) -> None:
        try:
            await _astore([record for record, _ in batch])
        except UNFIT:
            raise
        except BaseException as error:
            _tell(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            _tell(batch, None)


def _tell(batch: list[tuple[Record, "asyncio.Future[None]"]], error: BaseException | None) -> None:
    for _, future in batch:
        if future.done():
            continue  # whoever asked has gone
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


_line = PerLoop(_Line)
