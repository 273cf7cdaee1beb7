"""How an account or a key stands, as the console's pages show it: open or not, budgets, lockouts, usage."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import QuerySet, Sum
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from opengate.charts import Chart, Series
from usage.models import Account, DailyUsage

SHOWN_LOCKOUTS = 10
USAGE_DAYS = 30


def state_badge(expires: datetime | None, open_word: str = "open") -> SafeString:
    """Whether an account or a key opens anything, and until when."""
    now = timezone.now()
    if expires is None:
        return format_html('<span class="badge good">{}</span>', open_word)
    if expires <= now:
        return format_html('<span class="badge bad">{}</span>', "expired")
    is_soon = expires <= now + timedelta(days=30)
    return format_html('<span class="badge {}">until {}</span>', "fair" if is_soon else "good", f"{expires:%Y-%m-%d}")


def usage_charts(rows: QuerySet[DailyUsage]) -> list[Chart]:
    """Requests and cost of the last 30 days, of what an index of daily usage finds."""
    today = timezone.now().date()
    days = [today - timedelta(days=ago) for ago in range(USAGE_DAYS - 1, -1, -1)]
    sums: dict[date, Any] = {
        row["day"]: row
        for row in rows.filter(day__gte=days[0])
        .order_by()
        .values("day")
        .annotate(all=Sum("requests"), failed=Sum("errors"), money=Sum("cost"))
    }
    labels = [f"{day:%d %b}" for day in days]
    found = [sums.get(day, {"all": 0, "failed": 0, "money": Decimal(0)}) for day in days]
    requests = [
        Series("Answered", [row["all"] - row["failed"] for row in found]),
        Series("Errors", [row["failed"] for row in found], is_bad=True),
    ]
    return [
        Chart("usage-requests", f"Requests, last {USAGE_DAYS} days", labels, requests, stacked=True),
        Chart("usage-cost", f"Cost, last {USAGE_DAYS} days", labels, [Series("Cost", [row["money"] for row in found])]),
    ]


@dataclass(frozen=True, slots=True)
class Meter:
    """A budget: what is left of what was granted for now, both in its unit; `left` of None is unlimited."""

    name: str
    unit: str
    left: Decimal | None
    reserved: Decimal
    spent: Decimal
    whole: Decimal

    @property
    def low(self) -> Decimal:
        return self.whole / 10


def meters(account: Account | None) -> list[Meter]:
    if account is None:
        return [Meter("Budget", "", None, Decimal(0), Decimal(0), Decimal(0))]
    money, carbon = account.budget, account.carbon_budget
    return [
        Meter(
            *("Budget", "", money, account.reserved, account.spent),
            max(account.allowance or account.granted or Decimal(0), money or Decimal(0)),
        ),
        Meter(
            *("Carbon budget", " g", carbon, account.carbon_reserved, account.carbon_spent),
            max(account.carbon_allowance or account.carbon_granted or Decimal(0), carbon or Decimal(0)),
        ),
    ]


def lockouts(email: str) -> list[AccessAttempt]:
    """Addresses to which the account is closed now, for mistaken passwords."""
    since = timezone.now() - settings.AXES_COOLOFF_TIME
    found = AccessAttempt.objects.filter(username=email, attempt_time__gt=since)
    return list(found.filter(failures_since_start__gte=settings.AXES_FAILURE_LIMIT)[:SHOWN_LOCKOUTS])
