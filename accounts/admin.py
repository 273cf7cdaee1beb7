"""The console's pages of people and keys."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from axes.utils import reset
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db.models import Count, F, OuterRef, ProtectedError, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.cache import add_never_cache_headers
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from accounts import user_actions
from accounts.errors import UserOwns
from accounts.forms import KeyForm, NewKeyForm, PasswordForm, RoleForm, UserCreationForm, UserForm
from accounts.models import Key, Organization, Role, User
from accounts.standing import lockouts, meters, state_badge, usage_charts
from knowledge.models import Collection
from opengate import audit
from opengate.console import ConsoleAdmin, RacedAdmin, shortened
from opengate.database import commit
from opengate.errors import Conflict
from opengate.templatetags.figures import amount
from routing.models import Router
from usage.admin import AccountInline
from usage.models import DailyUsage, Limit, UsageRecord

SHOWN_KEYS = 20
SHOWN_CALLS = 20
SHOWN_OWNED = 10  # names in the refusal to delete their owner

admin.site.unregister(Group)  # rights come from the role


class RoleList(ChangeList):
    """A page of roles, with the routers that are open to each, asked for together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found = list(self.result_list)
        opened = open_routers(found)
        for role in found:
            role.open_routers = opened.get(role.pk, [])
        self.result_list = found


def open_routers(roles: Iterable[Role]) -> Mapping[int, list[str]]:
    """Names of the routers that these roles may use, by the role's id."""
    names = dict(Router.objects.values_list("id", "name"))
    found: dict[int, list[str]] = {}
    for role, router in Limit.objects.filter(role__in=[role.pk for role in roles]).open_pairs():
        found.setdefault(role, []).append(names.get(router, "a router that is gone"))
    return {role: sorted(opened) for role, opened in found.items()}


@admin.register(Role)
class RoleAdmin(RacedAdmin):
    form = RoleForm
    list_display = ("name", "permission_names", "open_routers", "user_count", "updated")
    empty_help = "A role says what its users may do, and how much they may ask of each router. Every user has one."
    search_fields = ("name",)
    readonly_fields = ("created", "updated")
    fieldsets = (
        (None, {"fields": ("name", "permissions", ("created", "updated"))}),
        ("What it may use", {"fields": ("limits",), "classes": ("limits-set",)}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RoleList

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.may_limit = request.user.has_perm("usage.change_limit")
        form.asking = request.user  # the class is made for this request
        return form

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        changes, role_id = form.cleaned_data["limits"], form.instance.pk
        Limit.objects.write(
            {(role_id, router, type): value for (router, type), value in changes.cells.items()},
            {(role_id, router, type) for router, type in changes.emptied},
        )

    @admin.display(description="open routers")
    def open_routers(self, role: Any) -> str:
        return shortened(role.open_routers, "none")

    @admin.display(description="open routers")
    def limits(self, role: Role) -> str:
        return shortened(open_routers([role]).get(role.pk, []), "none", most=100)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Role]:
        return super().get_queryset(request).annotate(user_count=Count("users"))

    @admin.display(description="users", ordering="user_count")
    def user_count(self, role: Any) -> int:
        return int(role.user_count)

    @admin.display(description="permissions")
    def permission_names(self, role: Role) -> str:
        return ", ".join(role.permissions) or "none"


@admin.register(Organization)
class OrganizationAdmin(RacedAdmin):
    list_display = ("name", "user_count", "created")
    empty_help = "Users may belong to an organization; the dashboard adds up what each of them uses."
    search_fields = ("name",)
    readonly_fields = ("created", "updated")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organization]:
        return super().get_queryset(request).annotate(user_count=Count("users"))

    @admin.display(description="users", ordering="user_count")
    def user_count(self, organization: Any) -> int:
        return int(organization.user_count)


class StateFilter(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("soon", "expires within 30 days"), ("expired", "expired")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> QuerySet[User]:
        now = timezone.now()
        if self.value() == "open":
            return queryset.filter(Q(expires__isnull=True) | Q(expires__gt=now))
        if self.value() == "soon":
            return queryset.filter(expires__gt=now, expires__lte=now + timedelta(days=30))
        return queryset.filter(expires__lte=now) if self.value() == "expired" else queryset


class BudgetFilter(admin.SimpleListFilter):
    title = parameter_name = "budget"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("out", "used up"), ("limited", "limited"), ("unlimited", "unlimited")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> QuerySet[User]:
        if self.value() == "out":
            return queryset.filter(account__granted__lte=F("account__spent"))
        if self.value() == "limited":
            return queryset.filter(account__granted__isnull=False)
        return queryset.filter(account__granted__isnull=True) if self.value() == "unlimited" else queryset


@admin.register(User)
class UserAdmin(RacedAdmin, DjangoUserAdmin):
    form = UserForm
    add_form = UserCreationForm
    add_form_template = "admin/accounts/user/add_form.html"
    empty_help = "Nobody is here yet."
    change_password_form = PasswordForm
    list_display = ("email", "name", "role", "organization", "state", "budget", "key_count", "seen")
    list_filter = (StateFilter, BudgetFilter, "role", "organization")
    list_select_related = ("role", "organization", "account")
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False
    search_fields = ("email", "name")
    search_help_text = "A part of the e-mail, the name, or a key as it is shown: sk-3sQ0v...x1Y2z3A4."
    ordering = ("email",)
    autocomplete_fields = ("role", "organization")
    filter_horizontal = ()
    readonly_fields = ("last_login", "created", "updated")
    fieldsets = (
        (None, {"fields": ("email", "password", "name")}),
        ("May use", {"fields": ("role", "organization", "priority", "expires")}),
        ("Identity provider", {"fields": ("sub", "iss"), "classes": ("collapse",)}),
        ("Dates", {"fields": ("last_login", "created", "updated")}),
    )
    add_fieldsets = (
        (None, {"fields": ("email", "name", "usable_password", "password1", "password2")}),
        ("May use", {"fields": ("role", "organization", "priority", "expires")}),
    )
    inlines = (AccountInline,)
    actions = ("expire", "change_role", "change_organization", "add_budget", "revoke_keys")

    # the list

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        counted = Key.objects.filter(user=OuterRef("pk")).order_by().values("user").annotate(count=Count("pk"))
        return super().get_queryset(request).annotate(key_count=Coalesce(Subquery(counted.values("count")), 0))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[User], search_term: str
    ) -> tuple[QuerySet[User], bool]:
        term = search_term.strip()
        if term.startswith("sk-"):
            owners = Key.objects.filter(token__contains=term).values("user")
            return queryset.filter(pk__in=owners), False
        return super().get_search_results(request, queryset, search_term)

    @admin.display(ordering="expires")
    def state(self, user: User) -> SafeString:
        return state_badge(user.expires)

    @admin.display(description="left to spend", ordering=F("account__granted") - F("account__spent"))
    def budget(self, user: User) -> str:
        account = getattr(user, "account", None)
        left = account.budget if account else None
        return "unlimited" if left is None else amount(left)

    @admin.display(description="last login", ordering="last_login", empty_value="never")
    def seen(self, user: User) -> str | None:
        return f"{user.last_login:%Y-%m-%d %H:%M}" if user.last_login else None

    @admin.display(description="keys", ordering="key_count")
    def key_count(self, user: Any) -> int:
        return int(user.key_count)

    # many users at once

    def get_actions(self, request: HttpRequest) -> Any:
        found = super().get_actions(request)
        found.pop("delete_selected", None)  # one by one: what goes with a user is shown first
        return found

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.delete_key")

    @admin.action(description="Close accounts, now or at a date", permissions=["change"])
    def expire(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse | None:
        return user_actions.run(self, request, queryset, user_actions.EXPIRE)

    @admin.action(description="Change the role", permissions=["change"])
    def change_role(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse | None:
        return user_actions.run(self, request, queryset, user_actions.CHANGE_ROLE)

    @admin.action(description="Change the organization", permissions=["change"])
    def change_organization(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse | None:
        return user_actions.run(self, request, queryset, user_actions.CHANGE_ORGANIZATION)

    @admin.action(description="Add to budgets", permissions=["change"])
    def add_budget(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse | None:
        return user_actions.run(self, request, queryset, user_actions.ADD_BUDGET)

    @admin.action(description="Revoke all their keys", permissions=["revoke"])
    def revoke_keys(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse | None:
        return user_actions.run(self, request, queryset, user_actions.REVOKE_KEYS)

    # the page of one

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, obj, change=change, **kwargs)
        form.asking = request.user  # the class is made for this request
        return form

    def get_urls(self) -> list[Any]:
        def own(view: Any) -> Any:
            return self.admin_site.admin_view(require_POST(view))

        return [
            path("<int:user_id>/keys/", own(self.create_key), name="accounts_user_keys"),
            path("<int:user_id>/unlock/", own(self.unlock), name="accounts_user_unlock"),
            *super().get_urls(),
        ]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        user = context["original"]
        if user is not None:
            keys_ = user.keys.order_by("-pk")
            context |= {
                "meters": meters(getattr(user, "account", None)),
                "state": state_badge(user.expires),
                "lockouts": lockouts(user.email),
                "keys": [(key, state_badge(key.expires)) for key in keys_[:SHOWN_KEYS]],
                "key_total": user.key_count,
                "key_form": NewKeyForm(),
                "may_add_key": request.user.has_perm("accounts.add_key"),
                "calls": UsageRecord.objects.filter(user=user).order_by("-created")[:SHOWN_CALLS],
                "charts": usage_charts(DailyUsage.objects.filter(user=user)),
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def related_changes(self, row: Any) -> str | None:
        return reverse("admin:auditlog_logentry_changelist", query={"about": f"user-{row.pk}"})

    def create_key(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Answers with the key itself: it is in no message, session or address, and cannot be loaded again."""
        if not request.user.has_perm("accounts.add_key"):
            raise PermissionDenied
        user = get_object_or_404(User, pk=user_id)
        form = NewKeyForm(request.POST)
        if form.is_valid():
            key, text = commit(lambda: Key.objects.issue(user, form.cleaned_data["name"], form.cleaned_data["expires"]))
            return show_key(self, request, key, text)
        context = {
            **self.admin_site.each_context(request),
            "title": f"A key for {user}",
            "opts": self.opts,
            "owner": user,
            "key_form": form.with_a_new_ticket(),
        }
        return TemplateResponse(request, "admin/accounts/user/new_key.html", context)

    def unlock(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Forget the mistaken passwords of the account, from every address."""
        if not request.user.has_perm("accounts.change_user"):
            raise PermissionDenied
        user = get_object_or_404(User, pk=user_id)
        reset(username=user.email)
        audit.record(user, logins=("locked out", "unlocked"))
        messages.success(request, f"{user} may try to sign in again.")
        return redirect("admin:accounts_user_change", user.pk)

    # deletion

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        if not self.has_delete_permission(request):
            raise PermissionDenied
        user = self.get_object(request, unquote(object_id))
        refusal = self._no_deletion(request, user) if user else None
        if user and refusal:
            messages.error(request, refusal)
            return redirect("admin:accounts_user_change", user.pk)
        try:
            return super().delete_view(request, object_id, extra_context)
        except ProtectedError:  # a router came meanwhile
            return self.delete_view(request, object_id, extra_context)

    def _no_deletion(self, request: HttpRequest, user: User) -> str | None:
        if user == request.user:
            return "This is your own account: another administrator may delete it."
        for what, names in (
            ("routers", user.routers.order_by("name").values_list("name", flat=True)),
            ("providers", user.providers.order_by("model_name").values_list("model_name", flat=True)),
        ):
            owned = list(names[: SHOWN_OWNED + 1])
            if owned:
                return UserOwns(what, [*owned[:SHOWN_OWNED], *(["..."] if len(owned) > SHOWN_OWNED else [])]).detail
        return None

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Counts: the rows themselves may be thousands."""
        told = {
            "users": len(objs),
            "keys": Key.objects.filter(user__in=objs).count(),
            "collections, with their documents": Collection.objects.filter(owner__in=objs).count(),
        }
        return [str(user) for user in objs], told, set(), []


def show_key(console: Any, request: HttpRequest, key: Key, text: str) -> HttpResponse:
    """The one page on which the key can be read."""
    context = {
        **console.admin_site.each_context(request),
        "title": "The new key",
        "opts": Key._meta,
        "key": key,
        "text": text,
    }
    response = TemplateResponse(request, "admin/accounts/key/created.html", context)
    add_never_cache_headers(response)
    return response


@admin.register(Key)
class KeyAdmin(ConsoleAdmin):
    """To revoke a key, delete it; its usage stays."""

    form = KeyForm
    list_display = ("name", "user", "token", "state", "last_used", "created")
    empty_help = "A key opens the API to its user. It is shown once, when it is made."
    search_help_text = "A part of the key's name, of its user's e-mail, or of the key as it is shown."
    list_select_related = ("user",)
    search_fields = ("name", "user__email", "token")
    autocomplete_fields = ("user",)
    fields = ("user", "name", "expires", "ticket")
    actions = ("revoke",)
    show_full_result_count = False

    @admin.display(ordering="expires")
    def state(self, key: Key) -> SafeString:
        return state_badge(key.expires)

    def get_actions(self, request: HttpRequest) -> Any:
        found = super().get_actions(request)
        found.pop("delete_selected", None)  # the same in other words
        return found

    @admin.action(description="Revoke selected keys", permissions=["delete"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Key]) -> None:
        chosen = Key.objects.filter(pk__in=queryset.order_by().values("pk"))
        try:
            count = commit(chosen.revoke)
        except Conflict as error:
            self.message_user(request, error.detail, messages.ERROR)
            return
        self.message_user(request, f"{count} key{'' if count == 1 else 's'} revoked.", messages.SUCCESS)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **(kwargs if obj else {"form": NewKeyForm, **kwargs}))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("user", "token", "last_used", "created") if obj else ()

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("user", "name", "token", "expires", "last_used", "created") if obj else self.fields

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        issued, obj.text = Key.objects.issue(obj.user, obj.name, obj.expires)
        obj.pk, obj.digest, obj.token, obj.created = issued.pk, issued.digest, issued.token, issued.created
        obj._state.adding = False

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        return show_key(self, request, obj, obj.text)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        key = context["original"]
        if key is not None:
            context |= {"state": state_badge(key.expires), "show_delete": False}  # it is revoked above
            context["charts"] = usage_charts(DailyUsage.objects.filter(user=key.user_id, key=key))
        return super().render_change_form(request, context, *args, **kwargs)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return super().delete_view(request, object_id, {"title": "Revoke the key", **(extra_context or {})})

    def delete_model(self, request: HttpRequest, obj: Key) -> None:
        request.owner_of_key = obj.user_id  # type: ignore[attr-defined]
        super().delete_model(request, obj)

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: int) -> HttpResponse:
        messages.success(request, f"{obj_display} is revoked.")
        return redirect("admin:accounts_user_change", request.owner_of_key)  # type: ignore[attr-defined]
