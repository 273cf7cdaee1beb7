"""What the roll-ups say of a period: over time, beside the period before, and of each router."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection

from usage.models import Grain, Rollup
from usage.rollups import percentile, sum_of_histograms

ROUTERS_SHOWN = 100
NEVER = datetime.max.replace(tzinfo=UTC)

_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost", "gco2eq", "kwh")
_SUMMED = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _SUMS)
_WHERE = """
    WHERE grain = %(grain)s AND start >= %(first)s AND start < %(end)s
      AND (%(organization)s::bigint IS NULL OR rollup.organization_id = %(organization)s)
"""
_OVER_TIME = f"""
    SELECT date_bin(%(step)s, start, %(first)s) AS moment, {_SUMMED}
    FROM {Rollup._meta.db_table} AS rollup {_WHERE} GROUP BY 1 ORDER BY 1
"""  # noqa: S608  our own query
_TOTAL = f"SELECT {_SUMMED} FROM {Rollup._meta.db_table} AS rollup {_WHERE}"  # noqa: S608
_ROUTERS = f"""
    SELECT summed.*, router.name AS name FROM (
        SELECT router_id, max(router_name) AS last_name, {_SUMMED},
               {sum_of_histograms("latency")} AS latency, {sum_of_histograms("ttft")} AS ttft
        FROM {Rollup._meta.db_table} AS rollup {_WHERE} GROUP BY router_id
    ) AS summed LEFT JOIN routing_router AS router ON router.id = router_id
    ORDER BY requests DESC, last_name LIMIT {ROUTERS_SHOWN}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Sums:
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)
    gco2eq: Decimal = Decimal(0)
    kwh: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in _SUMS))

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def error_share(self) -> float | None:
        return self.errors / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class RouterFigures:
    """A router's calls; `exists` says whether it can still be looked at. Times are of answered calls, in ms."""

    id: int | None
    name: str
    exists: bool
    sums: Sums
    latency: Mapping[str, float | None]
    ttft: Mapping[str, float | None]


def over_time(
    grain: Grain, first: datetime, step: timedelta, organization_id: int | None = None
) -> Mapping[datetime, Sums]:
    """The sums of each step since then that has any; UTC."""
    arguments = {"grain": grain.value, "first": first, "end": NEVER, "step": step, "organization": organization_id}
    return {row.pop("moment"): _sums(row) for row in _rows(_OVER_TIME, arguments)}


def total(grain: Grain, first: datetime, end: datetime, organization_id: int | None = None) -> Sums:
    """The sums from `first` to before `end`."""
    arguments = {"grain": grain.value, "first": first, "end": end, "organization": organization_id}
    return _sums(_rows(_TOTAL, arguments)[0])


def of_routers(grain: Grain, first: datetime, organization_id: int | None = None) -> list[RouterFigures]:
    """Those with the most requests first, ROUTERS_SHOWN at most."""
    arguments = {"grain": grain.value, "first": first, "end": NEVER, "organization": organization_id}
    return [
        RouterFigures(
            id=row["router_id"],
            name=row["name"] or row["last_name"],
            exists=row["name"] is not None,
            sums=_sums(row),
            latency=_percentiles(row["latency"]),
            ttft=_percentiles(row["ttft"]),
        )
        for row in _rows(_ROUTERS, arguments)
    ]


def _percentiles(histogram: Sequence[int]) -> Mapping[str, float | None]:
    return {f"p{share}": percentile(histogram, share / 100) for share in (50, 95, 99)}


def _rows(query: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _sums(row: Mapping[str, Any]) -> Sums:
    kinds = {"cost": Decimal, "gco2eq": Decimal, "kwh": float}
    return Sums(**{name: kinds.get(name, int)(row[name]) for name in _SUMS})
