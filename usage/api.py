"""What the caller used."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from rest_framework.request import Request

from accounts.authentication import caller
from accounts.permissions import AnyKey
from opengate.pagination import Counted
from opengate.rows import RowView, listing
from usage import reporting
from usage.serializers import UsageQuery, UsageRowSerializer

DEFAULT_PERIOD = timedelta(days=30)

EXAMPLE = {
    "object": "me.usage",
    "model": "smollm2",
    "key": "notebook",
    "endpoint": "/v1/chat/completions",
    "method": "POST",
    "status": 200,
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 12,
        "total_tokens": 21,
        "cost": 0.000045,
        "carbon": {"kWh": {"min": 2e-05, "max": 4e-05}, "kgCO2eq": {"min": 2e-06, "max": 4e-06}},
        "impacts": {"kWh": 3e-05, "kgCO2eq": 3e-06},
        "metrics": {"latency": 840, "ttft": 120},
    },
    "created": 1_772_500_000,
}


class MyUsage(RowView):
    tag = "Me"
    permission_classes = (AnyKey,)

    @listing(
        "List your usage",
        id="list_my_usage",
        item=UsageRowSerializer,
        name="UsageRows",
        query=UsageQuery,
        example=EXAMPLE,
    )
    def get(self, request: Request, query: dict[str, Any]) -> Counted:
        """One row a call that was answered, the newest first."""
        start, end, endpoint = query.get("start_time"), query.get("end_time"), query.get("endpoint")
        since = datetime.fromtimestamp(start, UTC) if start is not None else timezone.now() - DEFAULT_PERIOD
        until = datetime.fromtimestamp(end, UTC).replace(microsecond=999_999) if end is not None else None
        which = caller(request).user_id, since, until, endpoint
        return Counted(reporting.answered(*which), reporting.number_answered(*which))
