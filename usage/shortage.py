"""Budgets that are about to run out: the worker looks through all of them, a page at those that it found."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.db import connection

from usage.models import RollupProgress

DAYS = 7  # whose spending says how fast a budget goes
SHOWN = 10
REMEMBERED = 300

_SHORT = """
    WITH recent AS (
        SELECT user_id, sum(cost) AS cost, sum(gco2eq) AS gco2eq FROM usage_dailyusage
        WHERE day > %(since)s AND user_id IS NOT NULL {among} GROUP BY user_id
    ), budgets AS (
        SELECT account.user_id, 'cost' AS kind, greatest(granted - spent, 0) AS remains, reserved, allowance,
               coalesce(recent.cost, 0) AS recent
        FROM usage_account AS account LEFT JOIN recent USING (user_id) WHERE granted IS NOT NULL {among}
        UNION ALL
        SELECT account.user_id, 'gco2eq', greatest(carbon_granted - carbon_spent, 0), carbon_reserved,
               carbon_allowance, coalesce(recent.gco2eq, 0)
        FROM usage_account AS account LEFT JOIN recent USING (user_id) WHERE carbon_granted IS NOT NULL {among}
    )
    SELECT user_id, email, kind, remains, reserved, recent
    FROM budgets JOIN accounts_user ON accounts_user.id = user_id
    WHERE (remains < recent OR remains < allowance / 10)
      AND (%(organization)s::bigint IS NULL OR organization_id = %(organization)s)
    ORDER BY remains / nullif(recent, 0) NULLS LAST, remains, user_id, kind LIMIT %(shown)s
"""


@dataclass(frozen=True, slots=True)
class Short:
    """What a user has left, of money or grams of CO2eq, and what was spent of it in the last DAYS."""

    user_id: int
    email: str
    kind: str
    left: Decimal
    reserved: Decimal
    recent: Decimal

    @property
    def is_carbon(self) -> bool:
        return self.kind == "gco2eq"

    @property
    def days(self) -> int | None:
        """How long it lasts at that pace; None when nothing was spent."""
        return int(self.left / self.recent * DAYS) if self.recent else None


def find(now: datetime) -> None:
    """Remember who has the REMEMBERED budgets that end first."""
    found = _short(_SHORT.format(among=""), now, REMEMBERED)
    RollupProgress.objects.update(short_users=sorted({row.user_id for row in found}))


def budgets_running_out(now: datetime, organization_id: int | None = None) -> list[Short]:
    """Budgets with less left than the last DAYS took, or than a tenth of their allowance: the first to end first.

    Figures are those of now, of users that `find` found.
    """
    users = RollupProgress.objects.values_list("short_users", flat=True).first() or []
    return _short(_SHORT.format(among="AND user_id = ANY(%(users)s)"), now, SHOWN, organization_id, users)


def _short(
    query: str, now: datetime, most: int, organization_id: int | None = None, users: Sequence[int] = ()
) -> list[Short]:
    arguments = {
        "since": now.astimezone(UTC).date() - timedelta(days=DAYS),
        "organization": organization_id,
        "shown": most,
        "users": list(users),
    }
    with connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return [Short(*row) for row in cursor.fetchall()]
