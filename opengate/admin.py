"""The console's log of changes, and its door."""

from typing import Any

from auditlog.admin import LogEntryAdmin as AuditlogLogEntryAdmin
from auditlog.filters import ResourceTypeFilter
from auditlog.models import LogEntry
from axes.models import AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest

admin.site.unregister(LogEntry)
for unused in (AccessFailureLog, AccessLog):  # of axes, we keep failed attempts alone
    admin.site.unregister(unused)


class SignInForm(AdminAuthenticationForm):
    """Says so when the account is closed to this address for a while."""

    def get_invalid_login_error(self) -> ValidationError:
        if getattr(self.request, "axes_locked_out", False):
            return ValidationError("Too many failed logins, please try again later.", code="locked_out")
        return super().get_invalid_login_error()


admin.site.login_form = SignInForm


@admin.register(LogEntry)
class LogEntryAdmin(AuditlogLogEntryAdmin):
    """Who changed what. Read-only: history is not edited."""

    list_display = ["timestamp", "who", "action", "resource_url", "msg_short"]
    list_filter = ["action", ResourceTypeFilter, "timestamp"]
    search_fields = ["object_repr", "actor_email", "cid"]
    readonly_fields = ["timestamp", "who", "action", "resource_url", "remote_addr", "cid", "msg"]
    fieldsets = [(None, {"fields": tuple(readonly_fields)})]
    show_full_result_count = False

    @admin.display(description="who", ordering="actor_email")
    def who(self, entry: LogEntry) -> str:
        return entry.actor_email or "command line"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not here; with the user who signed them, entries stay and lose only the link to that user."""
        return False
