"""Budgets that are about to run out."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.db import connection

DAYS = 7  # whose spending says how fast a budget goes
SHOWN = 10

_SHORT = """
    WITH recent AS (
        SELECT user_id, sum(cost) AS cost, sum(gco2eq) AS gco2eq FROM usage_dailyusage
        WHERE day > %(since)s AND user_id IS NOT NULL GROUP BY user_id
    ), budgets AS (
        SELECT account.user_id, 'cost' AS kind, greatest(granted - spent, 0) AS remains, reserved, allowance,
               coalesce(recent.cost, 0) AS recent
        FROM usage_account AS account LEFT JOIN recent USING (user_id) WHERE granted IS NOT NULL
        UNION ALL
        SELECT account.user_id, 'gco2eq', greatest(carbon_granted - carbon_spent, 0), carbon_reserved,
               carbon_allowance, coalesce(recent.gco2eq, 0)
        FROM usage_account AS account LEFT JOIN recent USING (user_id) WHERE carbon_granted IS NOT NULL
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


def budgets_running_out(now: datetime, organization_id: int | None = None) -> list[Short]:
    """Budgets with less left than the last DAYS took, or than a tenth of their allowance: the first to end first."""
    since = now.astimezone(UTC).date() - timedelta(days=DAYS)
    with connection.cursor() as cursor:
        cursor.execute(_SHORT, {"since": since, "organization": organization_id, "shown": SHOWN})
        return [Short(*row) for row in cursor.fetchall()]
