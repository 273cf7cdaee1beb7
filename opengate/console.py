"""The console: Django's admin, with a dashboard for its front page and the log of changes for each row's history."""

from collections.abc import Mapping, Sequence
from typing import Any

from auditlog.mixins import AuditlogHistoryAdminMixin
from django.apps import apps
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import FieldDoesNotExist, PermissionDenied
from django.db import IntegrityError, connection
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.text import capfirst

from opengate.console_forms import PLAIN_NUMBERS, ROW_ID, RowSelect
from opengate.pages import CONSOLE
from opengate.request_id import current_request

SECTIONS = ("routing", "accounts", "usage", "knowledge", "auditlog", "axes")  # apps in the order of the menu
PAGES_OF_SECTION = (  # and what each has, the most used first
    *("Router", "Provider"),
    *("User", "Key", "Role", "Organization"),
    *("UsageRecord", "DailyUsage", "Limit", "Reservation"),
    *("Collection", "Document", "Chunk", "Space"),
    *("LogEntry", "AccessAttempt"),
)

# What an address may ask of a list. Regular expressions and ranges fail at values that nobody planned for.
LOOKUPS = frozenset({"exact", "in", "isnull", "gt", "gte", "lt", "lte"})


class Console(admin.AdminSite):
    site_header = site_title = "OpenGate"
    index_title = "Dashboard"
    site_url = "/playground"
    empty_value_display = "–"

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        return super().each_context(request) | {"password_login": settings.PASSWORD_LOGIN}

    def login(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        from opengate import single_sign_on  # not before: it looks at accounts, which look at this module

        wanted = request.POST.get(REDIRECT_FIELD_NAME, request.GET.get(REDIRECT_FIELD_NAME, CONSOLE))
        offered = {"single_sign_on": single_sign_on.offer(request, wanted)}
        return super().login(request, offered | dict(extra_context or {}))

    def logout(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> Any:
        from opengate import single_sign_on

        page = single_sign_on.signed_out(request, reverse("admin:login")) if request.method == "POST" else None
        return page or super().logout(request, dict(extra_context or {}))

    def index(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> TemplateResponse:
        from opengate import dashboard  # not before: it looks at pages, which look at this module

        return super().index(request, dashboard.context(request) | dict(extra_context or {}))

    def app_index(
        self, request: HttpRequest, app_label: str, extra_context: Mapping[str, Any] | None = None
    ) -> TemplateResponse:
        title = apps.get_app_config(app_label).verbose_name if apps.is_installed(app_label) else ""
        return super().app_index(request, app_label, {"title": title, **(extra_context or {})})

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Sections of the same name are one in the menu."""
        found: dict[str, Any] = {}
        for app in sorted(super().get_app_list(request, app_label), key=lambda app: SECTIONS.index(app["app_label"])):
            section = found.setdefault(str(app["name"]), app)
            if section is not app:
                section["models"] += app["models"]
            section["models"].sort(key=lambda model: PAGES_OF_SECTION.index(model["object_name"]))
        return list(found.values())


class ReadonlyField(helpers.AdminReadonlyField):
    """Links to another row only whom its page is open to."""

    def get_admin_url(self, remote_field: Any, remote_obj: Any) -> str:
        request, opts = current_request.get(), remote_field.model._meta
        if request is None or not request.user.has_perm(f"{opts.app_label}.view_{opts.model_name}"):
            return str(remote_obj)
        return str(super().get_admin_url(remote_field, remote_obj))


helpers.AdminReadonlyField = ReadonlyField  # type: ignore[misc]  # the forms have no other place for it


class PlainLookups(admin.ModelAdmin):
    """A list whose address asks for what filters and links ask for, and no more."""

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Django's own answer holds for columns of other rows; those of the row itself it leaves open."""
        name, *path = lookup.split("__")
        if (path and path[-1] not in LOOKUPS) or not self._is_open(name):
            return False
        return super().lookup_allowed(lookup, value, request)

    def _is_open(self, name: str) -> bool:
        """Of the row's own columns, those that a filter shows: another may be a secret, or of a kind that fails."""
        try:
            field: Any = self.opts.get_field(name)
        except FieldDoesNotExist:  # a filter of ours
            return True
        shown = {getattr(one, "parameter_name", one) for one in self.list_filter}
        return bool(field.is_relation or field.primary_key or name in shown)


class ConsoleAdmin(PlainLookups, AuditlogHistoryAdminMixin, admin.ModelAdmin):
    """A page whose history is the log of changes, signed whether they came by the console, the API or a command."""

    list_per_page = 50  # what a page takes is the writing of its rows
    show_facets = admin.ShowFacets.NEVER  # counts beside filters read whole tables
    formfield_overrides = dict(PLAIN_NUMBERS)
    empty_help = ""  # what to do where the list has nothing yet

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Titled as the menu calls it."""
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def get_ordering(self, request: HttpRequest) -> Any:
        """Said outright: a list that counts what hangs on its rows would forget the model's own order."""
        return self.ordering or self.opts.ordering

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name in self.get_autocomplete_fields(request):
            kwargs.setdefault("widget", RowSelect(db_field, self.admin_site))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def may_read_history(self, request: HttpRequest) -> bool:
        """Whoever may change such rows, or read the whole log: history names people."""
        rights = (f"{self.opts.app_label}.change_{self.opts.model_name}", "auditlog.view_logentry")
        return any(request.user.has_perm(right) for right in rights)

    def related_changes(self, row: Any) -> str | None:
        """Where the log has the changes of the row and of what belongs to it."""
        return None

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return self.auditlog_history_view(request, object_id, extra_context)

    def auditlog_history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        if not self.may_read_history(request):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404(f"There is no {self.opts.verbose_name} {object_id}.")
        related = self.related_changes(row) if request.user.has_perm("auditlog.view_logentry") else None
        context = {"title": f"History: {row}", "related_changes": related, **(extra_context or {})}
        response: HttpResponse = super().auditlog_history_view(request, object_id, context)
        return response

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        context["shows_history"] = self.may_read_history(request)
        if context["original"] is not None and str(context["title"]).endswith(f" {self.opts.verbose_name}"):
            context |= {"title": capfirst(self.opts.verbose_name)}  # no verb: those who may not change it see it too
        return super().render_change_form(request, context, *args, **kwargs)


def shortened(names: Sequence[str], nobody: str, most: int = 5) -> str:
    """The first of many names, for a list."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "") or nobody


class RacedAdmin(ConsoleAdmin):
    """A page whose rows must be unique in something: of two who take it at a time, the later is told."""

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except IntegrityError:
            if request.method != "POST":
                raise
            messages.error(request, "Somebody changed this, or took one of the names, meanwhile. Please try again.")
            return HttpResponseRedirect(request.get_full_path())

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        # Of two who save it, the second sees what the first did.
        if request.method == "POST" and connection.in_atomic_block and ROW_ID.fullmatch(object_id):
            self.model._default_manager.select_for_update(no_key=True).filter(pk=object_id).first()
        return super().get_object(request, object_id, from_field)
