"""The console's pages of limits, accounts and usage."""

from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from psycopg.errors import QueryCanceled

from accounts.models import Organization, User
from opengate.console import ConsoleAdmin, RacedAdmin
from opengate.console_forms import PLAIN_NUMBERS, LongSelect, PlainDecimal
from opengate.csv_export import rows_as_csv
from opengate.fields import MAX_AMOUNT
from opengate.templatetags.figures import amount, milliseconds
from routing.models import Router
from usage import calendar
from usage.explorer import COLUMNS, RequestFilter, Story, rows_of, status_badge
from usage.models import Account, DailyUsage, Limit, Reservation, UsageRecord


@admin.register(Limit)
class LimitAdmin(RacedAdmin):
    list_display = ("role", "router", "type", "limit_value")
    list_filter = ("role", "router", "type")
    list_select_related = ("role", "router")
    autocomplete_fields = ("role", "router")
    search_fields = ("role__name", "router__name")
    search_help_text = "A part of the role's or the router's name. All limits of a role are on its page, too."
    empty_help = "Without limits no role may use any router. They are set on the pages of roles and routers."

    @admin.display(description="value", ordering="value")
    def limit_value(self, limit: Limit) -> str:
        return limit.shown_value if not limit.value else amount(limit.value)


ALLOWANCE_FIELDS = ("allowance", "carbon_allowance", "period", "time_zone", "refill_day", "refill_hour")


class AccountForm(forms.ModelForm):
    """What is left, and what refills it. Calls go on meanwhile: what nobody changed in the form is left alone."""

    budget = PlainDecimal(
        max_digits=24,
        decimal_places=6,
        min_value=0,
        max_value=MAX_AMOUNT,
        required=False,
        show_hidden_initial=True,  # changed means changed by a person, not by the calls since the page was opened
        label="Left to spend",
        help_text="Empty is unlimited, 0 closes every model that has a price.",
    )
    carbon_budget = PlainDecimal(
        max_digits=24,
        decimal_places=6,
        min_value=0,
        max_value=MAX_AMOUNT,
        required=False,
        show_hidden_initial=True,
        label="Grams of CO2eq left",
        help_text="Empty is unlimited.",
    )

    time_zone = forms.ChoiceField(
        choices=lambda: [(name, name) for name in calendar.time_zones()],
        widget=LongSelect,
        initial="UTC",
        help_text="Whose clock counts.",
    )

    class Meta:
        model = Account
        fields = ALLOWANCE_FIELDS
        labels = {"carbon_allowance": "Carbon allowance, g", "period": "Refills every"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ALLOWANCE_FIELDS:
            self.fields[name].show_hidden_initial = True
        self.initial.update(budget=self.instance.budget, carbon_budget=self.instance.carbon_budget)

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        for budget, allowance in (("budget", "allowance"), ("carbon_budget", "carbon_allowance")):
            is_lifted = budget in self.changed_data and budget in given and given[budget] is None
            if is_lifted and allowance not in self.changed_data and given.get(allowance) is not None:
                self.add_error(budget, "An allowance sets this: clear the allowance first.")
        return given

    def save(self, commit: bool = True) -> Account:
        """Into the account as it is now, not as it was when the form was read."""
        account = Account.objects.of(self.instance.user)
        if set(self.changed_data) & set(ALLOWANCE_FIELDS):
            for name in ALLOWANCE_FIELDS:
                setattr(account, name, self.cleaned_data[name])
            account.set_allowances(timezone.now())
        if "budget" in self.changed_data:
            account.set_budget(self.cleaned_data["budget"])
        if "carbon_budget" in self.changed_data:
            account.set_carbon_budget(self.cleaned_data["carbon_budget"])
        return account


class AccountInline(admin.StackedInline):
    """A user's budgets: left, reserved by calls under way, spent ever, and what refills them."""

    model = Account
    form = AccountForm
    can_delete = False
    verbose_name = "budgets"
    formfield_overrides = dict(PLAIN_NUMBERS)
    readonly_fields = ("held", "used", "held_carbon", "used_carbon", "next_refill")
    fields = (
        ("budget", "held", "used"),
        ("carbon_budget", "held_carbon", "used_carbon"),
        ("allowance", "carbon_allowance", "period"),
        ("time_zone", "refill_day", "refill_hour", "next_refill"),
    )

    @admin.display(description="reserved")
    def held(self, account: Account) -> str:
        return amount(account.reserved)

    @admin.display(description="spent, ever")
    def used(self, account: Account) -> str:
        return amount(account.spent)

    @admin.display(description="reserved, g")
    def held_carbon(self, account: Account) -> str:
        return amount(account.carbon_reserved)

    @admin.display(description="spent, g")
    def used_carbon(self, account: Account) -> str:
        return amount(account.carbon_spent)

    def next_refill(self, account: Account) -> str:
        """By the clock that counts."""
        if account.refills is None:
            return "never"
        return f"{account.refills.astimezone(ZoneInfo(account.time_zone)):%Y-%m-%d %H:%M} {account.time_zone}"


class CappedPaginator(Paginator):
    """Counts no further than somebody would turn pages: the table may have ten million rows."""

    MOST = 10_000

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: self.MOST].count())


class ReadOnlyAdmin(ConsoleAdmin):
    """History is not edited."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count the whole table
    paginator = CappedPaginator

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Reservation)
class ReservationAdmin(ReadOnlyAdmin):
    """What calls under way may cost; one that expires is settled at that."""

    list_display = ("created", "user", "router", "money", "carbon", "prompts", "completions", "expires")
    empty_help = "No call is under way that has a budget to ask."
    search_help_text = "A request id, or a part of the user's e-mail."
    list_select_related = ("user",)
    search_fields = ("=request_id", "user__email")
    fields = readonly_fields = ("request_id", "key", *list_display)

    @admin.display(description="cost")
    def money(self, reservation: Reservation) -> str:
        return amount(reservation.cost)

    @admin.display(description="carbon, g")
    def carbon(self, reservation: Reservation) -> str:
        return amount(reservation.gco2eq)

    @admin.display(description="prompt tokens")
    def prompts(self, reservation: Reservation) -> str:
        return amount(reservation.prompt_tokens)

    @admin.display(description="completion tokens")
    def completions(self, reservation: Reservation) -> str:
        return amount(reservation.completion_tokens)

    def router(self, reservation: Reservation) -> str:
        return str(reservation.record["router_name"])

    def key(self, reservation: Reservation) -> str:
        return str(reservation.record["key_name"])


class RequestPaginator(CappedPaginator):
    """Whoever wants more than this narrows the list, or takes the CSV file."""

    MOST = 2_000


LIST_SECONDS = 3  # after which a list gives up, and asks for a shorter period


class Requests(ChangeList):
    """The requests that the form above the list asks for; other words of the address say nothing."""

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        return {}

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.result_count:
            self.result_list = self.queryset.none()  # it was looked for once: that may have taken its time

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[UsageRecord]:
        found: QuerySet[UsageRecord] = super().get_queryset(request, exclude_parameters)
        search: RequestFilter | None = getattr(request, "search", None)
        return found.none() if search is None else search.of(found)


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """Each admitted call, newest first: the request explorer."""

    paginator = RequestPaginator
    change_list_template = "admin/usage/usagerecord/change_list.html"
    change_form_template = "admin/usage/usagerecord/change_form.html"
    list_display = (
        "moment",
        "user_email",
        "key_name",
        "router_name",
        "provider_model_name",
        "shown_status",
        "shown_outcome",
        "tokens",
        "shown_cost",
        "latency",
    )
    list_display_links = ("moment",)
    empty_help = "Once a model was called, its requests are here."
    sortable_by = ()  # the table is sorted by nothing but time
    fields = readonly_fields = tuple(field.name for field in UsageRecord._meta.fields if not field.is_relation)

    @admin.display(description="time (UTC)")
    def moment(self, record: UsageRecord) -> str:
        return f"{record.created:%Y-%m-%d %H:%M:%S}"

    @admin.display(description="status")
    def shown_status(self, record: UsageRecord) -> str:
        return format_html('<span class="badge {}">{}</span>', status_badge(record.status), record.status)

    @admin.display(description="outcome")
    def shown_outcome(self, record: UsageRecord) -> str:
        return record.get_outcome_display()

    @admin.display(description="tokens")
    def tokens(self, record: UsageRecord) -> str:
        return amount(record.total_tokens)

    @admin.display(description="cost")
    def shown_cost(self, record: UsageRecord) -> str:
        return amount(record.cost)

    @admin.display(description="latency")
    def latency(self, record: UsageRecord) -> str:
        return milliseconds(record.latency_ms)

    def get_urls(self) -> list[URLPattern]:
        export = self.admin_site.admin_view(self.export_view)
        return [path("export/", export, name="usage_usagerecord_export"), *super().get_urls()]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Requests

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        found: QuerySet[UsageRecord] = super().get_queryset(request)
        is_list = hasattr(request, "search")
        return found.defer("flight") if is_list else found

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        search = request.search = RequestFilter(request.GET)  # type: ignore[attr-defined]
        context = (extra_context or {}) | {"title": "Requests", "search": search, "most": RequestPaginator.MOST}
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = '{LIST_SECONDS}s'")
                return super().changelist_view(request, context)
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled):
                raise
        request.search = None  # type: ignore[attr-defined]
        context["too_slow"] = True
        return super().changelist_view(request, context)

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """What the list shows, all of it, as CSV."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        search = RequestFilter(request.GET)
        if not search.is_valid():
            return redirect(f"{reverse('admin:usage_usagerecord_changelist')}?{request.GET.urlencode()}")
        records = search.of(UsageRecord.objects.all())
        return rows_as_csv(f"requests-{timezone.now():%Y-%m-%d-%H%M}.csv", COLUMNS, rows_of(records))

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **how: Any) -> HttpResponse:
        context |= {"story": Story(context["original"]), "title": "Request", "subtitle": None}
        return super().render_change_form(request, context, *args, **how)


@admin.register(DailyUsage)
class DailyUsageAdmin(ReadOnlyAdmin):
    """The sums that reports are made of."""

    list_display = (
        "day",
        "user_email",
        "router_name",
        "requests",
        "errors",
        "prompts",
        "completions",
        "money",
        "carbon",
        "key_name",
        "organization_name",
        "provider_model_name",
        "endpoint",
    )
    rows_name = "sums"
    empty_help = "The first call of a day begins its sums."
    sortable_by = ()
    search_fields = ("user_email",)
    search_help_text = "A whole e-mail, or a whole name of a router or an organization."
    fields = readonly_fields = (*list_display, "energy", "records_deleted")

    @admin.display(description="prompt tokens")
    def prompts(self, usage: DailyUsage) -> str:
        return amount(usage.prompt_tokens)

    @admin.display(description="completion tokens")
    def completions(self, usage: DailyUsage) -> str:
        return amount(usage.completion_tokens)

    @admin.display(description="cost")
    def money(self, usage: DailyUsage) -> str:
        return amount(usage.cost)

    @admin.display(description="carbon, g")
    def carbon(self, usage: DailyUsage) -> str:
        return amount(usage.gco2eq)

    @admin.display(description="energy, kWh")
    def energy(self, usage: DailyUsage) -> str:
        return amount(usage.kwh)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[DailyUsage], search_term: str
    ) -> tuple[QuerySet[DailyUsage], bool]:
        """By ids, which an index or one pass finds; those of names that are in use."""
        term = search_term.strip()
        if not term:
            return queryset, False
        found = Q()
        for field, rows in (
            ("user_id", User.objects.filter(email__iexact=term)),
            ("router_id", Router.objects.filter(name__iexact=term)),
            ("organization_id", Organization.objects.filter(name__iexact=term)),
        ):
            found |= Q(**{f"{field}__in": list(rows.values_list("pk", flat=True))})
        return queryset.filter(found), False
