"""The console's pages of limits and usage."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from usage.models import Limit, UsageRecord


class LimitInline(admin.TabularInline):
    """Limits of a role. A router needs all four to be open."""

    model = Limit
    extra = 0
    autocomplete_fields = ("router",)
    fields = ("router", "type", "value")


@admin.register(Limit)
class LimitAdmin(admin.ModelAdmin):
    list_display = ("role", "router", "type", "limit_value")
    list_filter = ("role", "router", "type")
    list_select_related = ("role", "router")
    autocomplete_fields = ("role", "router")
    search_fields = ("role__name", "router__name")

    @admin.display(description="value", ordering="value")
    def limit_value(self, limit: Limit) -> str:
        return limit.shown_value


@admin.register(UsageRecord)
class UsageRecordAdmin(admin.ModelAdmin):
    """Read-only: history is not edited."""

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
        "kgco2eq_max",
    )
    list_filter = ("outcome",)  # the others would read the whole table to know their values
    search_fields = ("request_id", "user_email", "router_name", "key_name")
    show_full_result_count = False
    fields = readonly_fields = tuple(field.name for field in UsageRecord._meta.fields if not field.is_relation)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
