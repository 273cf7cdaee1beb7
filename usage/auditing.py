"""Proof that the ledger agrees with itself: records, daily sums, accounts and reservations, as of one moment.

Each rule is a query that finds what breaks it. All look at one snapshot, so calls may go on meanwhile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import redis
from django.db import connection, transaction

from opengate import redis as opengate_redis
from usage import spool
from usage.ledger import DAILY_SUMS

SHOWN = 20  # findings of a rule
OVERDUE_SECONDS = 60  # beyond its lease; the worker looks every few seconds
SPOOLED_SECONDS = 60

# Energy is a float, whose sums depend on their order.
_SAME_ENERGY = "abs(coalesce(daily.kwh, 0) - coalesce(sums.kwh, 0)) <= 1e-9 * greatest(daily.kwh, sums.kwh, 1)"
_DELETED = "(SELECT day FROM usage_dailyusage WHERE records_deleted)"
_RECORDS = f"""(
    SELECT * FROM usage_usagerecord
    WHERE created >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
      AND (created AT TIME ZONE 'UTC')::date NOT IN {_DELETED}
) AS kept"""  # noqa: S608  our own query

RULES: Mapping[str, str] = {
    "an account's reservations are those there are": """
        SELECT account.user_id, account.reserved, coalesce(sum(held.cost), 0) AS reservations,
               account.carbon_reserved, coalesce(sum(held.gco2eq), 0) AS carbon_reservations
        FROM usage_account AS account LEFT JOIN usage_reservation AS held ON held.user_id = account.user_id
        GROUP BY account.user_id
        HAVING account.reserved <> coalesce(sum(held.cost), 0)
            OR account.carbon_reserved <> coalesce(sum(held.gco2eq), 0)
        ORDER BY 1
    """,
    "an account's spending is the sum of its days": """
        SELECT coalesce(account.user_id, daily.user_id) AS user_id, account.spent, daily.cost AS daily_cost,
               account.carbon_spent, daily.gco2eq AS daily_gco2eq
        FROM usage_account AS account FULL JOIN (
            SELECT user_id, sum(cost) AS cost, sum(gco2eq) AS gco2eq FROM usage_dailyusage
            WHERE user_id IN (SELECT id FROM accounts_user) GROUP BY user_id
        ) AS daily ON daily.user_id = account.user_id
        WHERE coalesce(account.spent, 0) <> coalesce(daily.cost, 0)
           OR coalesce(account.carbon_spent, 0) <> coalesce(daily.gco2eq, 0)
        ORDER BY 1
    """,
    "a day's sums are those of its records": f"""
        SELECT coalesce(daily.day, sums.day) AS day, coalesce(daily.user_email, sums.user_email) AS user_email,
               coalesce(daily.router_name, sums.router_name) AS router_name, daily.requests,
               sums.requests AS records, daily.cost, sums.cost AS cost_of_records, daily.gco2eq,
               sums.gco2eq AS gco2eq_of_records
        FROM (
            SELECT * FROM usage_dailyusage WHERE day >= %(since)s AND requests > 0 AND day NOT IN {_DELETED}
        ) AS daily
        FULL JOIN ({DAILY_SUMS.format(records=_RECORDS)}) AS sums
          ON (daily.day, coalesce(daily.user_id, 0), coalesce(daily.key_id, 0), coalesce(daily.organization_id, 0),
              coalesce(daily.router_id, 0), coalesce(daily.provider_id, 0), daily.endpoint)
           = (sums.day, coalesce(sums.user_id, 0), coalesce(sums.key_id, 0), coalesce(sums.organization_id, 0),
              coalesce(sums.router_id, 0), coalesce(sums.provider_id, 0), sums.endpoint)
        WHERE (daily.requests, daily.errors, daily.prompt_tokens, daily.completion_tokens, daily.cost, daily.gco2eq)
            IS DISTINCT FROM (sums.requests, sums.errors, sums.prompt_tokens, sums.completion_tokens, sums.cost,
                              sums.gco2eq)
           OR NOT ({_SAME_ENERGY})
        ORDER BY 1, 2, 3
    """,  # noqa: S608  our own query
    # Once what came last is surely in the roll-ups: they follow by some seconds.
    "a day's roll-ups are its sums": """
        SELECT coalesce(rolled.day, sums.day) AS day, rolled.requests, sums.requests AS requests_of_sums, rolled.cost,
               sums.cost AS cost_of_sums, rolled.gco2eq, sums.gco2eq AS gco2eq_of_sums
        FROM (
            SELECT (start AT TIME ZONE 'UTC')::date AS day, sum(requests) AS requests, sum(errors) AS errors,
                   sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                   sum(cost) AS cost, sum(gco2eq) AS gco2eq
            FROM usage_rollup WHERE grain = 'day' AND start >= %(since)s::date::timestamp AT TIME ZONE 'UTC' GROUP BY 1
        ) AS rolled
        FULL JOIN (
            SELECT day, sum(requests) AS requests, sum(errors) AS errors, sum(prompt_tokens) AS prompt_tokens,
                   sum(completion_tokens) AS completion_tokens, sum(cost) AS cost, sum(gco2eq) AS gco2eq
            FROM usage_dailyusage WHERE day >= %(since)s AND requests > 0 GROUP BY 1
        ) AS sums ON sums.day = rolled.day
        JOIN usage_rollupprogress AS progress ON progress.is_backfilled
        WHERE (rolled.requests, rolled.errors, rolled.prompt_tokens, rolled.completion_tokens, rolled.cost,
               rolled.gco2eq)
           IS DISTINCT FROM (sums.requests, sums.errors, sums.prompt_tokens, sums.completion_tokens, sums.cost,
                             sums.gco2eq)
          AND coalesce(rolled.day, sums.day) NOT IN (
            SELECT (created AT TIME ZONE 'UTC')::date FROM usage_usagerecord WHERE id > progress.settled_id
          )
        ORDER BY 1
    """,
    "a record's cost is that of its tokens": """
        SELECT request_id, cost,
               round((prompt_tokens * cost_prompt_tokens + completion_tokens * cost_completion_tokens) / 1000000, 6)
                   AS price, total_tokens
        FROM usage_usagerecord
        WHERE created >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
          AND (cost <> round((prompt_tokens * cost_prompt_tokens + completion_tokens * cost_completion_tokens)
                             / 1000000, 6)
               OR total_tokens <> prompt_tokens::bigint + completion_tokens)
        ORDER BY 1
    """,
    "a settled call holds no reservation": """
        SELECT held.request_id, held.user_id, held.cost FROM usage_reservation AS held
        JOIN usage_usagerecord AS record USING (request_id) ORDER BY 1
    """,
    "no reservation outlives its lease": f"""
        SELECT request_id, user_id, cost, expires FROM usage_reservation
        WHERE expires < now() - interval '{OVERDUE_SECONDS} seconds' ORDER BY 1
    """,  # noqa: S608
}


@dataclass(frozen=True)
class Finding:
    """What breaks a rule, by name."""

    rule: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """`checked` rows of each kind, and what was found; of each rule at most SHOWN findings, `found` counts all."""

    checked: dict[str, int]
    found: dict[str, int]
    findings: list[Finding]

    @property
    def is_clean(self) -> bool:
        return not any(self.found.values())


def audit(since: date = date.min) -> Audit:
    """Try all rules on one snapshot, with the records since that day; Redis is asked for what waits there."""
    found: dict[str, int] = {}
    findings: list[Finding] = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for rule, query in RULES.items():
            cursor.execute(query, {"since": max(since, date(1, 1, 1))})
            names = [column.name for column in cursor.description]
            rows = cursor.fetchmany(SHOWN)
            found[rule] = len(rows) + sum(1 for _ in cursor)
            findings += [Finding(rule, dict(zip(names, row, strict=True))) for row in rows]
        checked = dict(_counts(cursor, since))
    for rule, broken in _waiting():
        found[rule] = len(broken)
        findings += [Finding(rule, {"entry": text}) for text in broken[:SHOWN]]
    return Audit(checked, found, findings)


def _counts(cursor: Any, since: date) -> Iterator[tuple[str, int]]:
    for name, table in (("accounts", "usage_account"), ("reservations", "usage_reservation")):
        cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608
        yield name, cursor.fetchone()[0]
    cursor.execute("SELECT coalesce(sum(requests), 0)::bigint, count(*) FROM usage_dailyusage WHERE day >= %s", [since])
    records, days = cursor.fetchone()
    yield "records", records
    yield "daily sums", days


def _waiting() -> Iterator[tuple[str, list[str]]]:
    """What Redis holds of settled calls for longer than it should."""
    with opengate_redis.sync_client() as client:
        try:
            now_ms = client.time()[0] * 1000
            oldest = client.xrange(spool.STREAM, max=f"{now_ms - SPOOLED_SECONDS * 1000}", count=1)
            refused = client.xrange(spool.REJECTED, count=1000)
        except (redis.RedisError, OSError) as error:
            yield "Redis can be asked what waits there", [str(error)]
            return
    yield "no settled call waits for the worker", [entry_id.decode() for entry_id, _ in oldest]
    yield "no settled call was refused by Postgres", [entry_id.decode() for entry_id, _ in refused]
