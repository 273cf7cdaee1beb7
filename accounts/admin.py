"""The console's pages of people and keys."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminPasswordChangeForm, AdminUserCreationForm
from django.contrib.auth.models import Group
from django.db.models import Count, F, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html

from accounts import keys
from accounts.errors import KeyLivesTooLong
from accounts.models import Key, Organization, Permission, Role, User
from opengate.console import ConsoleAdmin
from routing.models import Router
from usage.admin import AccountInline, LimitInline
from usage.models import Limit

admin.site.unregister(Group)  # rights come from the role


class RoleForm(forms.ModelForm):
    permissions = forms.MultipleChoiceField(
        choices=Permission.choices, required=False, widget=forms.CheckboxSelectMultiple
    )
    open_routers = forms.ModelMultipleChoiceField(
        Router.objects.all(),
        required=False,
        help_text="Gives the role all four limits of these routers, unlimited; limits that it has stay as they are.",
    )


@admin.register(Role)
class RoleAdmin(ConsoleAdmin):
    form = RoleForm
    list_display = ("name", "permission_names", "user_count", "updated")
    search_fields = ("name",)
    readonly_fields = ("created", "updated")
    fields = ("name", "permissions", "open_routers", ("created", "updated"))
    inlines = (LimitInline,)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        for router in form.cleaned_data["open_routers"]:
            Limit.objects.open_router(form.instance, router)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Role]:
        return super().get_queryset(request).annotate(user_count=Count("users"))

    @admin.display(description="users", ordering="user_count")
    def user_count(self, role: Any) -> int:
        return int(role.user_count)

    @admin.display(description="permissions")
    def permission_names(self, role: Role) -> str:
        return ", ".join(role.permissions) or "none"


@admin.register(Organization)
class OrganizationAdmin(ConsoleAdmin):
    list_display = ("name", "user_count", "created")
    search_fields = ("name",)
    readonly_fields = ("created", "updated")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organization]:
        return super().get_queryset(request).annotate(user_count=Count("users"))

    @admin.display(description="users", ordering="user_count")
    def user_count(self, organization: Any) -> int:
        return int(organization.user_count)


class UserCreationForm(AdminUserCreationForm):
    class Meta:
        model = User
        fields = ("email",)


class KeyInline(admin.TabularInline):
    """Keys of a user: to see and revoke; a new one is made on its own page, where it is shown once."""

    model = Key
    extra = 0
    fields = readonly_fields = ("name", "token", "expires", "last_used", "created")
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class UserAdmin(ConsoleAdmin, DjangoUserAdmin):
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "name", "role", "organization", "budget", "reserved", "expires", "priority")
    list_filter = ("role", "organization")
    list_select_related = ("role", "organization", "account")
    search_fields = ("email", "name")
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
    inlines = (AccountInline, KeyInline)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else (AccountInline,)

    @admin.display(description="left to spend", ordering=F("account__granted") - F("account__spent"))
    def budget(self, user: User) -> Decimal | None:
        account = getattr(user, "account", None)
        return account.budget if account else None

    @admin.display(ordering="account__reserved")
    def reserved(self, user: User) -> Decimal | None:
        account = getattr(user, "account", None)
        return account.reserved if account else None


class KeyForm(forms.ModelForm):
    def clean_expires(self) -> datetime | None:
        try:
            return keys.expiry(self.cleaned_data["expires"])
        except KeyLivesTooLong as error:
            raise forms.ValidationError(str(error)) from None


@admin.register(Key)
class KeyAdmin(ConsoleAdmin):
    """To revoke a key, delete it; its usage stays."""

    form = KeyForm
    list_display = ("name", "user", "token", "state", "expires", "last_used", "created")
    list_select_related = ("user",)
    search_fields = ("name", "user__email", "token")
    autocomplete_fields = ("user",)
    fields = ("user", "name", "expires")
    actions = ("revoke",)

    @admin.display(description="state")
    def state(self, key: Key) -> str:
        return "expired" if key.expires and key.expires <= timezone.now() else "active"

    @admin.action(description="Revoke selected keys", permissions=["delete"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Key]) -> None:
        count = queryset.count()
        queryset.delete()
        self.message_user(request, f"{count} key{'' if count == 1 else 's'} revoked.", messages.SUCCESS)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("user", "token", "last_used", "created") if obj else ()

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("user", "name", "token", "expires", "last_used", "created") if obj else self.fields

    def save_model(self, request: HttpRequest, obj: Key, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        issued, text = Key.objects.issue(obj.user, obj.name, obj.expires)
        obj.pk, obj.digest, obj.token, obj.created = issued.pk, issued.digest, issued.token, issued.created
        obj._state.adding = False
        shown = format_html("The key is <code>{}</code>. Copy it now: it is not shown again.", text)
        self.message_user(request, shown, messages.WARNING)
