"""The console's pages of limits, accounts and usage."""

import re
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from django import forms
from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property

from accounts.models import User
from opengate.console import ConsoleAdmin
from opengate.fields import MAX_AMOUNT
from routing.models import Router
from usage.models import Account, DailyUsage, Limit, Reservation, UsageRecord


class LimitInline(admin.TabularInline):
    """Limits of a role. A router needs all four to be open."""

    model = Limit
    extra = 0
    autocomplete_fields = ("router",)
    fields = ("router", "type", "value")


@admin.register(Limit)
class LimitAdmin(ConsoleAdmin):
    list_display = ("role", "router", "type", "limit_value")
    list_filter = ("role", "router", "type")
    list_select_related = ("role", "router")
    autocomplete_fields = ("role", "router")
    search_fields = ("role__name", "router__name")

    @admin.display(description="value", ordering="value")
    def limit_value(self, limit: Limit) -> str:
        return limit.shown_value


ALLOWANCE_FIELDS = ("allowance", "carbon_allowance", "period", "time_zone", "refill_day", "refill_hour")


class AccountForm(forms.ModelForm):
    """What is left, and what refills it. Calls go on meanwhile: what nobody changed in the form is left alone."""

    budget = forms.DecimalField(
        max_digits=24,
        decimal_places=6,
        min_value=0,
        max_value=MAX_AMOUNT,
        required=False,
        show_hidden_initial=True,  # changed means changed by a person, not by the calls since the page was opened
        label="Left to spend",
        help_text="Empty is unlimited, 0 closes every model that has a price.",
    )
    carbon_budget = forms.DecimalField(
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
        choices=lambda: [(name, name) for name in sorted(available_timezones())],
        initial="UTC",
        help_text="Whose clock counts.",
    )

    class Meta:
        model = Account
        fields = ALLOWANCE_FIELDS

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
    readonly_fields = ("reserved", "spent", "carbon_reserved", "carbon_spent", "next_refill")
    fields = (
        ("budget", "reserved", "spent"),
        ("carbon_budget", "carbon_reserved", "carbon_spent"),
        ("allowance", "carbon_allowance", "period"),
        ("time_zone", "refill_day", "refill_hour", "next_refill"),
    )

    @admin.display(empty_value="never")
    def next_refill(self, account: Account) -> str | None:
        """By the clock that counts."""
        if account.refills is None:
            return None
        return f"{account.refills.astimezone(ZoneInfo(account.time_zone)):%d %B %Y, %H:%M} {account.time_zone}"


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
    list_per_page = 50  # what a page takes is the writing of its rows
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

    list_display = ("created", "user", "router", "cost", "gco2eq", "prompt_tokens", "completion_tokens", "expires")
    list_select_related = ("user",)
    search_fields = ("=request_id", "user__email")
    fields = readonly_fields = ("request_id", "key", *list_display)

    def router(self, reservation: Reservation) -> str:
        return str(reservation.record["router_name"])

    def key(self, reservation: Reservation) -> str:
        return str(reservation.record["key_name"])


REQUEST_ID = re.compile("[0-9a-f]{32}")
SEARCHED_AT_MOST = 50  # users, or routers, whose records one search shows


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """Each admitted call, newest first."""

    list_display = (
        "created",
        "user_email",
        "key_name",
        "router_name",
        "status",
        "outcome",
        "total_tokens",
        "cost",
        "latency_ms",
        "ttft_ms",
        "gco2eq",
    )
    list_filter = ("outcome",)  # the others would read the whole table to know their values
    sortable_by = ()  # nor is the table sorted by anything but time
    search_fields = ("request_id",)
    search_help_text = "A request id, or a part of a user's e-mail or of a router's name."
    fields = readonly_fields = tuple(field.name for field in UsageRecord._meta.fields if not field.is_relation)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[UsageRecord], search_term: str
    ) -> tuple[QuerySet[UsageRecord], bool]:
        """By what has an index: a scan for a text would read every record there is."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if REQUEST_ID.fullmatch(term):
            return queryset.filter(request_id=term), False
        users = list(User.objects.filter(email__icontains=term).values_list("id", flat=True)[:SEARCHED_AT_MOST])
        routers = list(Router.objects.filter(name__icontains=term).values_list("id", flat=True)[:SEARCHED_AT_MOST])
        if not routers:
            return queryset.filter(user_id__in=users), False
        if not users:
            return queryset.filter(router_id__in=routers), False
        return queryset.filter(Q(user_id__in=users) | Q(router_id__in=routers)), False


@admin.register(DailyUsage)
class DailyUsageAdmin(ReadOnlyAdmin):
    """The sums that reports are made of."""

    list_display = (
        "day",
        "user_email",
        "key_name",
        "organization_name",
        "router_name",
        "provider_model_name",
        "endpoint",
        "requests",
        "errors",
        "prompt_tokens",
        "completion_tokens",
        "cost",
        "gco2eq",
    )
    sortable_by = ()
    search_fields = ("=user_email", "=router_name", "=organization_name")
    search_help_text = "A whole e-mail, or a whole name of a router or an organization."
    fields = readonly_fields = (*list_display, "kwh", "records_deleted")
