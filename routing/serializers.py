"""Routers and providers as the API reads and writes them."""

from typing import Any

from django.core.exceptions import ValidationError as ModelValidationError
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from opengate.encryption import mask
from opengate.fields import (
    MAX_INTEGER,
    Amount,
    Constant,
    Id,
    Integer,
    List,
    Number,
    QueryInteger,
    Text,
    Timestamp,
    value_error,
)
from opengate.pagination import ordered_query
from routing.models import (
    KEY_PATTERN,
    LoadBalancingStrategy,
    Metric,
    ModelType,
    Provider,
    ProviderType,
    Router,
    check_url,
)
from routing.zones import ZONES

RouterQuery = ordered_query("id", "name", "created", by="sort_by", direction="sort_order")

COST = "Price of a million {kind} tokens."
STRATEGY = (
    "Which provider is tried first: by chance (`shuffle`), the lowest 95th percentile of the time to first token "
    "(`least_busy`), the quicker of two by chance (`lowest_latency`), what the upstream charges least (`cheapest`), "
    "the fewest grams of CO2eq a token (`lowest_carbon`)."
)
MAX_ALIASES = 100
MAX_TIMEOUT = 3600


def _aliases(**options: Any) -> List:
    return List(
        child=Text(max_length=64),
        max_length=MAX_ALIASES,
        help_text="Further names of the model; unique over all routers.",
        **options,
    )


class CreateRouterSerializer(serializers.Serializer):
    """A router to make."""

    name = Text(help_text="The name callers use; unique over all routers and aliases.")
    type = serializers.ChoiceField(choices=ModelType.choices, help_text="What the model does.")
    aliases = _aliases(default=list)
    load_balancing_strategy = serializers.ChoiceField(
        choices=LoadBalancingStrategy.choices, default=LoadBalancingStrategy.SHUFFLE.value, help_text=STRATEGY
    )
    cost_prompt_tokens = Amount(default=0, help_text=COST.format(kind="prompt"))
    cost_completion_tokens = Amount(default=0, help_text=COST.format(kind="completion"))


class RouterUpdateRequestSerializer(serializers.Serializer):
    """What to change of a router; null or absent is unchanged, `aliases` replace the former ones."""

    name = Text(required=False, allow_null=True, help_text="The name callers use; unique over all routers and aliases.")
    type = serializers.ChoiceField(
        choices=ModelType.choices, required=False, allow_null=True, help_text="What the model does."
    )
    aliases = _aliases(required=False, allow_null=True)
    load_balancing_strategy = serializers.ChoiceField(
        choices=LoadBalancingStrategy.choices, required=False, allow_null=True, help_text=STRATEGY
    )
    cost_prompt_tokens = Amount(required=False, allow_null=True, help_text=COST.format(kind="prompt"))
    cost_completion_tokens = Amount(required=False, allow_null=True, help_text=COST.format(kind="completion"))


class CreatedRouterSerializer(serializers.Serializer):
    """The router that was made."""

    id = serializers.IntegerField(help_text="Id of the router.")
    name = serializers.CharField(help_text="The name callers use.")
    type = serializers.ChoiceField(choices=ModelType.choices, help_text="What the model does.")
    aliases = serializers.SerializerMethodField(help_text="Further names of the model.")
    load_balancing_strategy = serializers.ChoiceField(choices=LoadBalancingStrategy.choices, help_text=STRATEGY)
    cost_prompt_tokens = serializers.FloatField(help_text=COST.format(kind="prompt"))
    cost_completion_tokens = serializers.FloatField(help_text=COST.format(kind="completion"))

    def get_aliases(self, router: Router) -> list[str]:
        return [name.value for name in router.names.all() if name.is_alias]


class RouterSerializer(CreatedRouterSerializer):
    """A model as callers know it."""

    object = Constant("router")
    user_id = serializers.SerializerMethodField(help_text="Id of the user who made it; 0 without one.")
    vector_size = serializers.IntegerField(allow_null=True, help_text="Numbers of a vector, says the first provider.")
    max_context_length = serializers.IntegerField(allow_null=True, help_text="Tokens, says the first provider.")
    providers = serializers.IntegerField(source="provider_count", help_text="How many providers serve it.")
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")

    def get_user_id(self, router: Router) -> int:
        return router.user_id or 0


QOS = (
    "What is watched: `inflight`, calls at a time; over the last two minutes `ttft` and `latency`, 95th percentile in "
    "ms, and `performance`, median of completion tokens a second; null for nothing."
)
QOS_LIMIT = "Beyond it calls go elsewhere or wait (for figures, one call at a time goes on); needed with `qos_metric`."
UPSTREAM_COST = "What the upstream charges for a million {kind} tokens, for the strategy `cheapest`; null if unknown."


class CreateProviderSerializer(serializers.Serializer):
    """A provider to add to a router. Its upstream is asked about the model first."""

    router = Id(help_text="Id of the router it serves.")
    type = serializers.ChoiceField(choices=ProviderType.choices, help_text="The dialect its API speaks.")
    url = Text(
        max_length=500,
        allow_null=True,
        default=None,
        help_text="Address without `/v1`; albert, openai and mistral have one of their own.",
    )
    key = Text(
        max_length=4096, pattern=KEY_PATTERN, allow_null=True, default=None, help_text="Its API key; kept encrypted."
    )
    timeout = Integer(min_value=1, max_value=MAX_TIMEOUT, default=300, help_text="Seconds to wait for it.")
    model_name = Text(help_text="The model's name there.")
    model_hosting_zone = serializers.ChoiceField(
        choices=ZONES, default="WOR", help_text="Where it is hosted: ISO 3166-1 alpha-3, or WOR for the world."
    )
    model_total_params = Integer(
        min_value=0, max_value=MAX_INTEGER, default=0, help_text="Billions of parameters, for the carbon footprint."
    )
    model_active_params = Integer(
        min_value=0, max_value=MAX_INTEGER, default=0, help_text="Billions of active parameters."
    )
    cost_prompt_tokens = Amount(allow_null=True, default=None, help_text=UPSTREAM_COST.format(kind="prompt"))
    cost_completion_tokens = Amount(allow_null=True, default=None, help_text=UPSTREAM_COST.format(kind="completion"))
    qos_metric = serializers.ChoiceField(choices=Metric.choices, allow_null=True, default=None, help_text=QOS)
    qos_limit = Number(min_value=0, allow_null=True, default=None, help_text=QOS_LIMIT)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["qos_metric"] and attrs["qos_limit"] is None:
            value_error(QOS_NEEDS_LIMIT)
        attrs["url"] = Provider(type=attrs["type"], url=attrs["url"] or "").completed_url()
        if not attrs["url"]:
            value_error("URL is required for this model provider type.")
        try:
            check_url(attrs["url"])
        except ModelValidationError as error:
            faults = [ErrorDetail(f"Value error, {text}", code="value_error") for text in error.messages]
            raise serializers.ValidationError({"url": faults}) from None
        return attrs


QOS_NEEDS_LIMIT = "QoS value is required if QoS metric is provided."


class ProviderUpdateRequestSerializer(serializers.Serializer):
    """What to change of a provider; null or absent is unchanged, but a null QoS field or cost clears it."""

    router = Id(required=False, allow_null=True, help_text="Id of the router it is to serve.")
    timeout = Integer(
        min_value=1, max_value=MAX_TIMEOUT, required=False, allow_null=True, help_text="Seconds to wait for it."
    )
    model_hosting_zone = serializers.ChoiceField(
        choices=ZONES, required=False, allow_null=True, help_text="Where it is hosted."
    )
    model_total_params = Integer(
        min_value=0, max_value=MAX_INTEGER, required=False, allow_null=True, help_text="Billions of parameters."
    )
    model_active_params = Integer(
        min_value=0, max_value=MAX_INTEGER, required=False, allow_null=True, help_text="Billions of active parameters."
    )
    cost_prompt_tokens = Amount(required=False, allow_null=True, help_text=UPSTREAM_COST.format(kind="prompt"))
    cost_completion_tokens = Amount(required=False, allow_null=True, help_text=UPSTREAM_COST.format(kind="completion"))
    qos_metric = serializers.ChoiceField(choices=Metric.choices, required=False, allow_null=True, help_text=QOS)
    qos_limit = Number(min_value=0, required=False, allow_null=True, help_text=QOS_LIMIT)


class CreatedProviderSerializer(serializers.Serializer):
    """The provider that was made."""

    id = serializers.IntegerField(help_text="Id of the provider.")
    router_id = serializers.IntegerField(help_text="Id of the router it serves.")
    user_id = serializers.SerializerMethodField(help_text="Id of the user who made it; 0 without one.")
    type = serializers.ChoiceField(choices=ProviderType.choices, help_text="The dialect its API speaks.")
    url = serializers.CharField(allow_null=True, help_text="Its address, with a slash at the end.")
    key = serializers.SerializerMethodField(help_text="Its API key, masked; null without one.")
    timeout = serializers.IntegerField(help_text="Seconds to wait for it.")
    model_name = serializers.CharField(help_text="The model's name there.")
    model_hosting_zone = serializers.ChoiceField(choices=ZONES, help_text="Where it is hosted.")
    model_total_params = serializers.IntegerField(help_text="Billions of parameters.")
    model_active_params = serializers.IntegerField(help_text="Billions of active parameters.")
    cost_prompt_tokens = serializers.FloatField(allow_null=True, help_text=UPSTREAM_COST.format(kind="prompt"))
    cost_completion_tokens = serializers.FloatField(allow_null=True, help_text=UPSTREAM_COST.format(kind="completion"))
    qos_metric = serializers.ChoiceField(choices=Metric.choices, allow_null=True, help_text=QOS)
    qos_limit = serializers.FloatField(allow_null=True, help_text=QOS_LIMIT)
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")

    def get_user_id(self, provider: Provider) -> int:
        return provider.user_id or 0

    def get_key(self, provider: Provider) -> str | None:
        return mask(provider.key) if provider.key else None


class ProviderSerializer(CreatedProviderSerializer):
    """An upstream that serves a router's model."""

    object = Constant("provider")


class ProviderQuery(ordered_query("id", "model_name", "created")):  # type: ignore[misc]
    """Which providers."""

    router = QueryInteger(required=False, help_text="Providers of this router only.")
