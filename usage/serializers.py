"""Limits and usage as the API writes them."""

from typing import Any

from rest_framework import serializers

from opengate.fields import MAX_ID, MAX_TIMESTAMP, Constant, Id, Integer, QueryInteger, Timestamp, value_error
from opengate.pagination import PageQuery
from usage.models import Endpoint, LimitType, UsageRecord


class LimitSerializer(serializers.Serializer):
    """How much a user of the role may ask of a router."""

    router = Id(source="router_id", help_text="Id of the router.")
    type = serializers.ChoiceField(
        choices=LimitType.choices, help_text="Prompt tokens a minute or day, requests a minute or day."
    )
    value = Integer(
        min_value=0,
        max_value=MAX_ID,
        allow_null=True,
        default=None,
        help_text="Null is unlimited, 0 closes the router. It is open when all four types are there and none is 0.",
    )


def distinct_limits(limits: list[dict[str, Any]] | None) -> dict[tuple[int, str], int | None] | None:
    """Limits by router and type; a pair that comes twice is a fault."""
    if limits is None:
        return None
    found: dict[tuple[int, str], int | None] = {}
    for limit in limits:
        pair = (limit["router_id"], limit["type"])
        if pair in found:
            value_error(f"Duplicate limit found: ({pair[0]}, {pair[1]}).")
        found[pair] = limit["value"]
    return found


class SpanSerializer(serializers.Serializer):
    """The least and the most it may have been."""

    min = serializers.FloatField(help_text="The least.")
    max = serializers.FloatField(help_text="The most.")


class CarbonSerializer(serializers.Serializer):
    """Energy and carbon of a call, from least to most."""

    kWh = SpanSerializer(help_text="Energy.")
    kgCO2eq = SpanSerializer(help_text="Carbon.")


class ImpactsSerializer(serializers.Serializer):
    """Energy and carbon of a call, one figure each."""

    kWh = serializers.FloatField(help_text="Energy.")
    kgCO2eq = serializers.FloatField(help_text="Carbon.")


class MetricsSerializer(serializers.Serializer):
    """How long a call took."""

    latency = serializers.IntegerField(allow_null=True, source="latency_ms", help_text="Milliseconds in all.")
    ttft = serializers.IntegerField(
        allow_null=True, source="ttft_ms", help_text="Milliseconds to the first token; streams only."
    )


class UsageFiguresSerializer(serializers.Serializer):
    """What a call used."""

    prompt_tokens = serializers.IntegerField(help_text="Tokens in.")
    completion_tokens = serializers.IntegerField(help_text="Tokens out.")
    total_tokens = serializers.IntegerField(help_text="Their sum.")
    cost = serializers.FloatField(help_text="By the router's prices at that time.")
    carbon = serializers.SerializerMethodField(help_text="Energy and carbon, from least to most.")
    impacts = serializers.SerializerMethodField(help_text="Energy and carbon, one figure each.")
    metrics = MetricsSerializer(source="*", help_text="How long it took.")

    def get_carbon(self, record: UsageRecord) -> CarbonSerializer:
        return {  # type: ignore[return-value]
            "kWh": {"min": record.kwh_min, "max": record.kwh_max},
            "kgCO2eq": {"min": record.kgco2eq_min, "max": record.kgco2eq_max},
        }

    def get_impacts(self, record: UsageRecord) -> ImpactsSerializer:
        return {  # type: ignore[return-value]
            "kWh": (record.kwh_min + record.kwh_max) / 2,
            "kgCO2eq": (record.kgco2eq_min + record.kgco2eq_max) / 2,
        }


class UsageRowSerializer(serializers.Serializer):
    """One call that was answered."""

    object = Constant("me.usage")
    model = serializers.CharField(allow_null=True, source="router_name", help_text="Name of the router.")
    key = serializers.CharField(allow_null=True, source="key_name", help_text="Name of the key.")
    endpoint = serializers.CharField(allow_null=True, help_text="Path of the call.")
    method = serializers.CharField(allow_null=True, help_text="HTTP method.")
    status = serializers.IntegerField(allow_null=True, help_text="HTTP status of the answer.")
    usage = UsageFiguresSerializer(source="*", help_text="What it used.")
    created = Timestamp(help_text="Unix seconds.")


class UsageQuery(PageQuery):
    """Which rows of usage."""

    start_time = QueryInteger(
        min_value=0, max_value=MAX_TIMESTAMP, required=False, help_text="From, Unix seconds; 30 days ago by default."
    )
    end_time = QueryInteger(
        min_value=0, max_value=MAX_TIMESTAMP, required=False, help_text="To, Unix seconds; now by default."
    )
    endpoint = serializers.ChoiceField(choices=Endpoint.choices, required=False, help_text="Calls of this path only.")
