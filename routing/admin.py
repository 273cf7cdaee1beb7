"""The console's pages of routers and providers."""

import math
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from inference import discovery
from opengate.console import ConsoleAdmin
from opengate.encryption import mask
from opengate.errors import APIError
from opengate.redis import RedisAway
from routing import circuit, load
from routing.circuit import State
from routing.errors import ProviderUnreachable
from routing.load import Load
from routing.models import Provider, Router, RouterName

LONGEST_WAIT_SECONDS = 10  # of a person at a page, for an upstream


class ProviderForm(forms.ModelForm):
    """The key is written, never shown: an empty field leaves it as it is."""

    new_key = forms.CharField(
        label="Key",
        required=False,
        strip=True,
        validators=Provider._meta.get_field("key").validators,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    remove_key = forms.BooleanField(required=False)

    class Meta:
        model = Provider
        fields = (
            "router",
            "type",
            "model_name",
            "url",
            "timeout",
            "model_hosting_zone",
            "model_total_params",
            "model_active_params",
            "cost_prompt_tokens",
            "cost_completion_tokens",
            "qos_metric",
            "qos_limit",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = self.instance.key if self.instance.pk else None
        self.fields["new_key"].help_text = f"Stored: {mask(stored)}. Empty leaves it." if stored else "None is stored."

    def save(self, commit: bool = True) -> Any:
        if self.cleaned_data.get("new_key"):
            self.instance.key = self.cleaned_data["new_key"]
        elif self.cleaned_data.get("remove_key"):
            self.instance.key = None
        return super().save(commit)


PROVIDER_FIELDS = (
    ("type", "model_name"),
    ("url", "timeout"),
    ("new_key", "remove_key"),
    ("model_hosting_zone", "model_total_params", "model_active_params"),
    ("cost_prompt_tokens", "cost_completion_tokens"),
    ("qos_metric", "qos_limit"),
)


def loads_of(providers: Iterable[Provider]) -> Mapping[int, Load]:
    """How busy and how well these providers are; nothing with Redis away."""
    try:
        return load.of_now(provider.pk for provider in providers)
    except RedisAway:
        return {}


def state_of(now: Load | None) -> str:
    """A circuit in words."""
    if now is None:
        return "unknown"
    if now.circuit.state == State.OPEN:
        return f"open, tried again in {math.ceil(now.circuit.seconds)} s"
    if now.circuit.state == State.HALF_OPEN:
        return "half open, the next call tries"
    return f"closed, {now.circuit.failures} outages" if now.circuit.failures else "closed"


class ProviderList(ChangeList):
    """A page of providers, with the load of each, asked for together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found = list(self.result_list)
        loads = loads_of(found)
        for provider in found:
            provider.load = loads.get(provider.pk)
        self.result_list = found


def ask_upstream(request: HttpRequest, provider: Provider) -> None:
    """Once the provider is stored, ask its upstream about the model, and tell the administrator what it says."""
    transaction.on_commit(lambda: _ask_upstream(request, provider.pk))


def _ask_upstream(request: HttpRequest, id: int) -> None:
    provider = Provider.objects.select_related("router").get(pk=id)
    asked = copy(provider)
    asked.timeout = min(asked.timeout, LONGEST_WAIT_SECONDS)
    try:
        found = async_to_sync(discovery.discover)(asked, provider.router.type)
        provider.learn(found.max_context_length, found.vector_size)
        provider.router.require_fit(provider)
    except ProviderUnreachable as error:
        messages.warning(request, f"{error.detail} It says: {error.reason}")
    except APIError as error:
        messages.warning(request, error.detail)


class AliasInline(admin.TabularInline):
    model = RouterName
    extra = 0
    fields = ("value",)
    verbose_name = "alias"
    verbose_name_plural = "aliases"

    def get_queryset(self, request: HttpRequest) -> QuerySet[RouterName]:
        return super().get_queryset(request).filter(is_alias=True)


class ProviderInline(admin.StackedInline):
    model = Provider
    form = ProviderForm
    extra = 0
    fields = PROVIDER_FIELDS


@admin.register(Router)
class RouterAdmin(ConsoleAdmin):
    list_display = ("name", "type", "provider_count", "cost_prompt_tokens", "cost_completion_tokens", "updated")
    list_filter = ("type",)
    search_fields = ("name", "names__value")
    fields = (
        ("name", "type"),
        "load_balancing_strategy",
        ("cost_prompt_tokens", "cost_completion_tokens"),
        ("created", "updated"),
    )
    readonly_fields = ("created", "updated")
    inlines = (AliasInline, ProviderInline)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Router]:
        return super().get_queryset(request).annotate(provider_count=Count("providers", distinct=True))

    @admin.display(description="providers", ordering="provider_count")
    def provider_count(self, router: Any) -> int:
        return int(router.provider_count)

    def save_model(self, request: HttpRequest, obj: Router, form: Any, change: bool) -> None:
        if not change:
            obj.user = request.user  # type: ignore[assignment]
        super().save_model(request, obj, form, change)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        if formset.model is Provider:
            for provider in (*formset.new_objects, *(row for row, _ in formset.changed_objects)):
                ask_upstream(request, provider)


@admin.register(Provider)
class ProviderAdmin(ConsoleAdmin):
    form = ProviderForm
    list_display = ("model_name", "router", "type", "circuit", "inflight", "qos", "url", "model_hosting_zone")
    list_filter = ("type", "router")
    list_select_related = ("router",)
    search_fields = ("model_name", "url", "router__name")
    autocomplete_fields = ("router",)
    fields = ("router", *PROVIDER_FIELDS, ("inflight", "circuit"))
    readonly_fields = ("inflight", "circuit")
    actions = ("close_circuits",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ProviderList

    @admin.display(description="QoS", ordering="qos_metric")
    def qos(self, provider: Provider) -> str:
        return f"{provider.qos_metric} {provider.qos_limit:g}" if provider.qos_metric else "-"

    @admin.display(description="in flight")
    def inflight(self, provider: Provider) -> str:
        now = _load(provider)
        return "unknown" if now is None else str(now.inflight)

    @admin.display(description="circuit")
    def circuit(self, provider: Provider) -> str:
        return state_of(_load(provider))

    @admin.action(description="Close circuits: try these providers again now", permissions=["change"])
    def close_circuits(self, request: HttpRequest, queryset: QuerySet[Provider]) -> None:
        for provider in queryset:
            circuit.forget(provider.pk)
        messages.success(request, "Their circuits are closed: the next calls try them.")

    def save_model(self, request: HttpRequest, obj: Provider, form: Any, change: bool) -> None:
        if not change:
            obj.user = request.user  # type: ignore[assignment]
        super().save_model(request, obj, form, change)
        ask_upstream(request, obj)


def _load(provider: Any) -> Load | None:
    if not hasattr(provider, "load"):
        provider.load = loads_of([provider]).get(provider.pk) if provider.pk else None
    found: Load | None = provider.load
    return found
