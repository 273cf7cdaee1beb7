"""The console: Django's admin, with a dashboard for its front page and the log of changes for each row's history."""

from collections.abc import Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction
from auditlog.mixins import AuditlogHistoryAdminMixin
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.template.response import TemplateResponse
from django.utils.decorators import sync_and_async_middleware

SECTIONS = ("routing", "accounts", "usage", "knowledge", "auditlog", "axes")  # apps in the order of the menu

PAGES = ("/admin/", "/playground")


@sync_and_async_middleware
def refuse_nul(get_response: Any) -> Any:
    """Middleware: an address of a page with a NUL, which Postgres takes in no text, is a bad request wherever it is."""

    def refused(request: HttpRequest) -> HttpResponse | None:
        if "\0" not in request.path and "%00" not in request.META["QUERY_STRING"]:
            return None
        if not request.path.startswith(PAGES):
            return None
        return HttpResponseBadRequest("There is a NUL in the address, which no name has.", content_type="text/plain")

    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> HttpResponse:
            return refused(request) or await get_response(request)

        return answer
    return lambda request: refused(request) or get_response(request)


class Console(admin.AdminSite):
    site_header = site_title = "OpenGate"
    index_title = "Dashboard"
    site_url = "/playground"
    empty_value_display = "–"

    def index(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> TemplateResponse:
        from opengate import dashboard  # not before: it looks at pages, which look at this module

        return super().index(request, dashboard.context(request) | dict(extra_context or {}))

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        found = super().get_app_list(request, app_label)
        return sorted(found, key=lambda app: SECTIONS.index(app["app_label"]))


class ConsoleAdmin(AuditlogHistoryAdminMixin, admin.ModelAdmin):
    """A page whose history is the log of changes, signed whether they came by the console, the API or a command."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        response: HttpResponse = self.auditlog_history_view(request, object_id, extra_context)
        return response
