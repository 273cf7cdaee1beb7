"""The console's log of changes, and its door."""

import re
from typing import Any

from auditlog.admin import LogEntryAdmin as AuditlogLogEntryAdmin
from auditlog.models import LogEntry
from auditlog.registry import auditlog
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Max, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from accounts.models import Key, User
from opengate.console import ConsoleAdmin, PlainLookups
from opengate.console_forms import ROW_ID
from routing.models import Provider, Router, RouterName
from usage.admin import CappedPaginator
from usage.models import Limit

SEARCHED_ENTRIES = 100_000  # the newest, for a text
ABOUT_AT_MOST = 200  # rows that belong to one, or people whom a search finds

# The packages' own names say how they work, and not what an administrator finds there.
for package in ("auditlog", "axes"):
    apps.get_app_config(package).verbose_name = "Security"
LogEntry._meta.verbose_name, LogEntry._meta.verbose_name_plural = "change", "change log"
AccessAttempt._meta.verbose_name, AccessAttempt._meta.verbose_name_plural = "failed login", "failed logins"

admin.site.unregister(LogEntry)
for theirs in (AccessAttempt, AccessFailureLog, AccessLog):  # of axes, we keep failed attempts alone
    admin.site.unregister(theirs)


class SignInForm(AdminAuthenticationForm):
    """Says so when the account is closed to this address for a while, or no password opens any."""

    def clean(self) -> dict[str, Any]:
        if not settings.PASSWORD_LOGIN:
            raise ValidationError("Signing in with a password is switched off here.", code="closed")
        return super().clean()

    def get_invalid_login_error(self) -> ValidationError:
        if getattr(self.request, "axes_locked_out", False):
            return ValidationError("Too many failed logins, please try again later.", code="locked_out")
        return super().get_invalid_login_error()


admin.site.login_form = SignInForm


@admin.register(AccessAttempt)
class FailedLoginAdmin(ConsoleAdmin):
    """Mistaken passwords, by account and address. To let somebody try again, delete them."""

    list_display = ("attempt_time", "email", "ip_address", "mistakes", "state")
    search_fields = ("username", "ip_address")
    search_help_text = "A part of the e-mail or of the address that it was tried from."
    empty_help = "Nobody has mistaken a password."
    fields = readonly_fields = (*list_display, "browser", "page")
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="e-mail")
    def email(self, attempt: AccessAttempt) -> str:
        return attempt.username or "–"

    @admin.display(description="mistakes")
    def mistakes(self, attempt: AccessAttempt) -> int:
        return int(attempt.failures_since_start)

    @admin.display(description="browser")
    def browser(self, attempt: AccessAttempt) -> str:
        return attempt.user_agent or "–"

    @admin.display(description="page")
    def page(self, attempt: AccessAttempt) -> str:
        return attempt.path_info or "–"

    @admin.display
    def state(self, attempt: AccessAttempt) -> str:
        is_full = attempt.failures_since_start >= settings.AXES_FAILURE_LIMIT
        is_locked = is_full and attempt.attempt_time > timezone.now() - settings.AXES_COOLOFF_TIME
        return "locked out" if is_locked else "may try again"


class ModelFilter(admin.SimpleListFilter):
    """By what changed; the models are known, so nobody asks a million entries for them."""

    title = "what"
    parameter_name = "resource_type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        types = ContentType.objects.get_for_models(*auditlog.get_models()).items()
        return sorted(
            ((str(type.pk), str(model._meta.verbose_name)) for model, type in types), key=lambda pair: pair[1]
        )

    def queryset(self, request: HttpRequest, queryset: QuerySet[LogEntry]) -> QuerySet[LogEntry]:
        value = self.value() or ""
        return queryset.filter(content_type_id=int(value)) if ROW_ID.fullmatch(value) else queryset


class AboutFilter(admin.SimpleListFilter):
    """What belongs to one row, by the links of histories: `user-1` is the user and the keys that the user has."""

    title = parameter_name = "about"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = request.GET.get(self.parameter_name)
        return [(value, value.replace("-", " "))] if value else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[LogEntry]) -> QuerySet[LogEntry]:
        name, _, id = (self.value() or "").partition("-")
        if name not in ("user", "router") or not ROW_ID.fullmatch(id):
            return queryset
        owner = User if name == "user" else Router
        parts = (Key,) if name == "user" else (RouterName, Provider, Limit)
        wanted = Q(content_type=ContentType.objects.get_for_model(owner), object_id=int(id))
        for part in parts:
            ids = list(part._default_manager.filter(**{name: int(id)}).values_list("pk", flat=True)[:ABOUT_AT_MOST])
            wanted |= Q(content_type=ContentType.objects.get_for_model(part), object_id__in=ids)
        return queryset.filter(wanted)


@admin.register(LogEntry)
class LogEntryAdmin(PlainLookups, AuditlogLogEntryAdmin):
    """Who changed what. Read-only: history is not edited."""

    rows_name = "changes"
    list_display = ["moment", "who", "action", "what", "changed"]
    list_filter = ["action", ModelFilter, AboutFilter, "timestamp"]
    list_select_related = ["content_type"]
    search_fields = ["object_repr"]
    search_help_text = "A request id, a part of the e-mail of who did it, or of the name of what changed lately."
    readonly_fields = ["moment", "who", "action", "what", "address", "request_id", "msg"]
    fieldsets = [(None, {"fields": tuple(readonly_fields)})]
    sortable_by = ()
    date_hierarchy = None  # type: ignore[assignment]  # it would read every entry
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[LogEntry], search_term: str
    ) -> tuple[QuerySet[LogEntry], bool]:
        """By what has an index; texts are looked for among the newest entries alone."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if re.fullmatch("[0-9a-f]{32}", term):
            return queryset.filter(cid=term), False
        newest = LogEntry.objects.aggregate(newest=Max("pk"))["newest"] or 0
        text = Q(object_repr__icontains=term) | Q(actor_email__icontains=term)
        people = list(User.objects.filter(email__icontains=term).values_list("pk", flat=True)[:ABOUT_AT_MOST])
        return queryset.filter(Q(text, pk__gt=newest - SEARCHED_ENTRIES) | Q(actor__in=people)), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().changelist_view(request, {"title": "Change log", **(extra_context or {})})

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        return super().change_view(
            request, object_id, form_url, {"title": "Change", "shows_history": False, **(extra_context or {})}
        )

    @admin.display(description="time (UTC)")
    def moment(self, entry: LogEntry) -> str:
        return f"{entry.timestamp:%Y-%m-%d %H:%M:%S}"

    @admin.display(description="what")
    def what(self, entry: LogEntry) -> Any:
        """The row by its kind and name, with a way to its page where it has one."""
        kind = entry.content_type.model_class()
        name = kind._meta.verbose_name if kind else entry.content_type.model
        if kind is None or not admin.site.is_registered(kind):
            return f"{name} {entry.object_repr}"
        address = reverse(f"admin:{kind._meta.app_label}_{kind._meta.model_name}_change", args=[entry.object_pk])
        return format_html('{} <a href="{}">{}</a>', name, address, entry.object_repr)

    @admin.display(description="changed")
    def changed(self, entry: LogEntry) -> str:
        return ", ".join(entry.changes_dict) if entry.action == LogEntry.Action.UPDATE else ""

    @admin.display(description="from address")
    def address(self, entry: LogEntry) -> str:
        return entry.remote_addr or "–"

    @admin.display(description="request id")
    def request_id(self, entry: LogEntry) -> str:
        return entry.cid or "–"

    @admin.display(description="who")
    def who(self, entry: LogEntry) -> str:
        return entry.actor_email or "command line"

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return redirect("admin:auditlog_logentry_change", object_id)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not here; with the user who signed them, entries stay and lose only the link to that user."""
        return False
