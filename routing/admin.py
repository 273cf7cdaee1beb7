"""The console's pages of routers and providers."""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import render
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.models import Role
from inference import discovery, trials
from opengate.console import ConsoleAdmin, RacedAdmin, shortened
from opengate.console_forms import PLAIN_NUMBERS, ROW_ID
from opengate.errors import APIError
from opengate.templatetags.figures import amount
from routing import circuit, health
from routing.errors import ProviderUnreachable
from routing.forms import ProviderForm, RouterForm
from routing.health import Health
from routing.models import Provider, Router
from usage.models import Limit

LONGEST_WAIT_SECONDS = 10  # of a person at a page, for an upstream


PROVIDER_FIELDS = (
    ("type", "model_name"),
    ("url", "timeout"),
    ("new_key", "remove_key"),
    ("model_hosting_zone", "model_total_params", "model_active_params"),
    ("cost_prompt_tokens", "cost_completion_tokens"),
    ("qos_metric", "qos_limit"),
)


class ProviderList(ChangeList):
    """A page of providers, with the health of each, asked for together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found = list(self.result_list)
        tell_health(found)
        self.result_list = found


class RouterList(ChangeList):
    """A page of routers, with the health of their providers and the roles they are open to, asked for together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found = list(self.result_list)
        tell_health(provider for router in found for provider in router.providers.all())
        opened = open_roles(found)
        for router in found:
            router.open_roles = opened.get(router.pk, [])
        self.result_list = found


def tell_health(providers: Iterable[Any], *, with_figures: bool = False) -> None:
    """Give each provider its `health`."""
    rows = list(providers)
    found = health.of_now(rows, with_figures=with_figures)
    for provider in rows:
        provider.health = found[provider.pk]


def open_roles(routers: Iterable[Router]) -> Mapping[int, list[str]]:
    """Names of the roles that may use these routers, by the router's id."""
    names = dict(Role.objects.values_list("id", "name"))
    found: dict[int, list[str]] = {}
    for role, router in Limit.objects.filter(router__in=[router.pk for router in routers]).open_pairs():
        found.setdefault(router, []).append(names.get(role, "a role that is gone"))
    return {router: sorted(opened) for router, opened in found.items()}


def health_of(provider: Any) -> Health | None:
    if not hasattr(provider, "health"):
        provider.health = health.of_now([provider]).get(provider.pk) if provider.pk else None
    found: Health | None = provider.health
    return found


def badge(found: Health | None) -> SafeString:
    if found is None:
        return format_html('<span class="badge">{}</span>', "unknown")
    return format_html('<span class="badge {}">{}</span>', found.level, found.words)


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


def answer_trial(request: Any, router: Router, provider: Provider | None = None) -> HttpResponse:
    """Call the model for whoever is signed in, and show what came of it: a page, or the part of it that a script wants.

    It takes half a minute at most, and holds no connection to the database meanwhile.
    """
    user_id = request.user.pk
    connection.close()
    found, refusal = None, ""
    try:
        found = async_to_sync(trials.of_router)(user_id, router.pk, provider.pk if provider else None)
    except APIError as error:  # before any call: a row that went, an account that closed
        refusal = str(error.detail)
    context = {
        **admin.site.each_context(request),
        "title": f"Test of {router.name}",
        "opts": Router._meta,
        "router": router,
        "provider": provider,
        "trial": found,
        "refusal": refusal,
    }
    is_part = "part" in request.POST
    return render(request, "console/trial.html" if is_part else "admin/routing/trial.html", context)


class ProviderFormSet(forms.BaseInlineFormSet):
    """A router's providers, each with its health."""

    def get_queryset(self) -> Any:
        is_new = not hasattr(self, "_queryset")
        rows = super().get_queryset()  # the same rows each time
        if is_new:
            for provider in rows:
                provider.router = self.instance
            tell_health(rows, with_figures=True)
        return rows


class ProviderInline(admin.StackedInline):
    model = Provider
    form = ProviderForm
    formset = ProviderFormSet
    extra = 0
    formfield_overrides = dict(PLAIN_NUMBERS)
    fields = PROVIDER_FIELDS
    template = "admin/routing/router/providers.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Provider]:
        return super().get_queryset(request).order_by("id")


@admin.register(Router)
class RouterAdmin(RacedAdmin):
    form = RouterForm
    change_form_template = "admin/routing/change_form.html"
    list_display = ("name", "type", "alias_names", "provider_health", "prices", "roles")
    list_filter = ("type",)
    search_fields = ("name", "names__value")
    search_help_text = "A part of a name or an alias."
    empty_help = "A router is the name that callers use for a model; its providers are where the model runs."
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "type"),
                    "aliases",
                    "load_balancing_strategy",
                    ("cost_prompt_tokens", "cost_completion_tokens"),
                    ("created", "updated"),
                )
            },
        ),
        ("Who may use it", {"fields": ("limits",), "classes": ("limits-set", "after-inlines")}),
    )
    readonly_fields = ("created", "updated")
    inlines = (ProviderInline,)

    class Media:
        js = ("opengate/trial.js",)
        css = {"all": ("opengate/models.css",)}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RouterList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Router]:
        providers = Provider.objects.select_related("router")
        return super().get_queryset(request).prefetch_related("names", Prefetch("providers", providers))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.may_limit = request.user.has_perm("usage.change_limit")
        return form

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.test_view)
        return [path("<int:id>/test/", view, name="routing_router_test"), *super().get_urls()]

    def test_view(self, request: HttpRequest, id: int) -> HttpResponse:
        return _test_view(self, request, id)

    def related_changes(self, row: Any) -> str | None:
        return reverse("admin:auditlog_logentry_changelist", query={"about": f"router-{row.pk}"})

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Its limits go with a router, whoever may delete it."""
        rows, counts, missing, protected = super().get_deleted_objects(objs, request)
        return rows, counts, missing - {Limit._meta.verbose_name}, protected

    # the list

    @admin.display(description="aliases")
    def alias_names(self, router: Router) -> str:
        return ", ".join(row.value for row in router.names.all() if row.is_alias) or "–"

    @admin.display(description="providers")
    def provider_health(self, router: Router) -> str:
        rows = ((provider.model_name, badge(health_of(provider))) for provider in router.providers.all())
        return format_html_join("", "<div>{} {}</div>", rows) or "none"

    @admin.display(description="prices of a million tokens", ordering="cost_completion_tokens")
    def prices(self, router: Router) -> str:
        if not (router.cost_prompt_tokens or router.cost_completion_tokens):
            return "free"
        return f"{amount(router.cost_prompt_tokens)} in, {amount(router.cost_completion_tokens)} out"

    @admin.display(description="open to")
    def roles(self, router: Any) -> str:
        return shortened(router.open_roles, "nobody")

    # for who may look and not change

    def aliases(self, router: Router) -> str:
        return self.alias_names(router)

    @admin.display(description="open to")
    def limits(self, router: Router) -> str:
        return ", ".join(open_roles([router]).get(router.pk, [])) or "nobody"

    # saving

    def save_model(self, request: HttpRequest, obj: Router, form: Any, change: bool) -> None:
        if not change:
            obj.user = request.user  # type: ignore[assignment]
        obj.rename(obj.name, form.cleaned_data["aliases"])

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        if formset.model is Provider:
            for provider in (*formset.new_objects, *(row for row, _ in formset.changed_objects)):
                ask_upstream(request, provider)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        changes = form.cleaned_data["limits"]
        router_id = form.instance.pk
        Limit.objects.write(
            {(role, router_id, type): value for (role, type), value in changes.cells.items()},
            {(role, router_id, type) for role, type in changes.emptied},
        )


@admin.register(Provider)
class ProviderAdmin(RacedAdmin):
    form = ProviderForm
    change_form_template = "admin/routing/change_form.html"
    list_display = (
        "model_name",
        "router",
        "type",
        "condition",
        "circuit",
        "inflight",
        "qos",
        "address",
        "country",
    )
    empty_help = "A provider is an upstream that serves a router's model."
    search_help_text = "A part of the model's name, the address or the router's name."
    list_filter = ("type", "router")
    list_select_related = ("router",)
    search_fields = ("model_name", "url", "router__name")
    autocomplete_fields = ("router",)
    fields = ("router", *PROVIDER_FIELDS)
    actions = ("close_circuits",)

    class Media:
        js = ("opengate/trial.js",)
        css = {"all": ("opengate/models.css",)}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ProviderList

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.test_view)
        return [path("<int:id>/test/", view, name="routing_provider_test"), *super().get_urls()]

    def test_view(self, request: HttpRequest, id: int) -> HttpResponse:
        return _test_view(self, request, id)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        provider = None
        if request.method == "GET" and ROW_ID.fullmatch(object_id):
            provider = Provider.objects.select_related("router").filter(pk=object_id).first()
        if provider is not None:
            tell_health([provider], with_figures=True)
        return super().change_view(request, object_id, form_url, {"watched": provider, **(extra_context or {})})

    @admin.display(description="QoS", ordering="qos_metric")
    def qos(self, provider: Provider) -> str:
        return f"{provider.qos_metric} {provider.qos_limit:g}" if provider.qos_metric else "–"

    @admin.display(description="address", ordering="url")
    def address(self, provider: Provider) -> str:
        return provider.url

    @admin.display(description="country", ordering="model_hosting_zone")
    def country(self, provider: Provider) -> str:
        return provider.model_hosting_zone

    @admin.display(description="in flight")
    def inflight(self, provider: Provider) -> str:
        found = health_of(provider)
        return "unknown" if found is None or found.load is None else str(found.load.inflight)

    @admin.display(description="health")
    def condition(self, provider: Provider) -> str:
        return badge(health_of(provider))

    @admin.display(description="circuit")
    def circuit(self, provider: Provider) -> str:
        found = health_of(provider)
        return "unknown" if found is None else found.circuit

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


def _test_view(page: ConsoleAdmin, request: HttpRequest, id: int) -> HttpResponse:
    """The test of a router's page, or a provider's, for who may change it."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    rows: Any = page.model._default_manager.all()
    row = rows.filter(pk=id).first()
    if not page.has_change_permission(request, row):
        raise PermissionDenied
    if row is None:
        name = page.opts.verbose_name
        messages.error(request, f"That {name} is gone.")
        return HttpResponseRedirect(reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist"))
    return answer_trial(request, row.router, row) if isinstance(row, Provider) else answer_trial(request, row)
