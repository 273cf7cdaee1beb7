"""What the user used: by day and by model, and each call as CSV."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.db.models import F, Max, Sum
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from opengate.charts import Chart, Series
from opengate.csv_export import newest_first, rows_as_csv
from opengate.playground.pages import Page, signed_in
from usage import reporting
from usage.models import DailyUsage, UsageRecord

PERIODS = (7, 30, 90, 365)  # days
COLUMNS = (
    "created",
    "request_id",
    "router_name",
    "key_name",
    "endpoint",
    "status",
    "outcome",
    "latency_ms",
    "ttft_ms",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "tokens_estimated",
    "cost",
    "gco2eq",
)


def days_of(request: HttpRequest) -> int:
    """The period that was asked for, in days up to today."""
    asked = request.GET.get("days", "")
    return int(asked) if asked in {str(days) for days in PERIODS} else 30


def first_day(days: int) -> date:
    return timezone.now().date() - timedelta(days=days - 1)


def _sums(rows: Any) -> Any:
    return rows.annotate(**{f"sum_{field}": Sum(field) for field in reporting.SUMS})


class Usage(Page):
    template = "usage"
    menu = "usage"

    def get(self, request: HttpRequest) -> HttpResponse:
        user, days = signed_in(request), days_of(request)
        rows = DailyUsage.objects.filter(user=user, day__gte=first_day(days), requests__gt=0)
        by_day = {row["day"]: row for row in _sums(rows.order_by().values("day"))}
        models = _sums(rows.order_by().values("router_id", "endpoint").annotate(name=Max("router_name")))
        return self.render(
            request,
            days=days,
            periods=PERIODS,
            charts=charts(by_day, days),
            models=models.order_by(F("sum_cost").desc(), "-sum_requests", "router_id", "endpoint")[:200],
            total={field: sum(row[f"sum_{field}"] for row in by_day.values()) for field in reporting.SUMS},
        )


def charts(by_day: dict[date, dict[str, Any]], days: int) -> list[Chart]:
    first = first_day(days)
    all_days = [first + timedelta(days=number) for number in range(days)]
    labels = [date_format(day, "j N") for day in all_days]

    def series(name: str, field: str, *, is_bad: bool = False) -> Series:
        return Series(name, [by_day[day][f"sum_{field}"] if day in by_day else 0 for day in all_days], is_bad)

    tokens = (series(_("prompt"), "prompt_tokens"), series(_("answers"), "completion_tokens"))
    requests = (series(_("requests"), "requests"), series(_("errors"), "errors", is_bad=True))
    return [
        Chart("requests", _("Requests"), labels, requests),
        Chart("tokens", _("Tokens"), labels, tokens, stacked=True),
        Chart("cost", _("Cost"), labels, (series(_("cost"), "cost"),)),
        Chart("carbon", _("Carbon"), labels, (series(_("CO₂e"), "gco2eq"),), unit="g"),
    ]


class UsageCSV(Page):
    """Each call of the period, the newest first, written as it is read."""

    def get(self, request: HttpRequest) -> HttpResponseBase:
        days = days_of(request)
        since = datetime.combine(first_day(days), time.min, UTC)
        rows = UsageRecord.objects.filter(user=signed_in(request), created__gte=since)
        lines = newest_first(rows.only(*COLUMNS), lambda row: [getattr(row, name) for name in COLUMNS])
        return rows_as_csv(f"usage-{days}-days.csv", COLUMNS, lines)
