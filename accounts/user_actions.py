"""What the console does to many users at once: each action says what will happen, asks, and does it in one go."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from accounts.models import Key, Organization, Permission, Role, User, UserQuerySet
from opengate.database import commit
from opengate.errors import APIError
from opengate.fields import MAX_AMOUNT
from usage.models import Account

NAMED = 10  # of those whom it will happen to


class DateTimeInput(forms.DateTimeInput):
    """The browser's own; times are UTC, as everywhere in the console."""

    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M")


class BulkForm(forms.Form):
    """What an action asks beside its yes; who asks and whom it is about are given to it."""

    required_css_class = "required"

    def __init__(self, *args: Any, users: UserQuerySet, asking: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.users = users
        self.asking = asking

    def require_others(self, what: str) -> None:
        """Refuse to close the console to oneself."""
        if self.users.filter(pk=self.asking.pk).exists():
            raise ValidationError(f"Your own account is among them: you would {what} yourself. Take it out first.")

    def consequences(self) -> list[str]:
        """Sentences about what is not plain from the form."""
        return []


class ExpireForm(BulkForm):
    when = forms.DateTimeField(
        required=False, widget=DateTimeInput, label="Closes at (UTC)", help_text="Empty closes the accounts now."
    )

    def clean_when(self) -> datetime:
        return self.cleaned_data["when"] or timezone.now()

    def clean(self) -> None:
        self.require_others("lock out")

    def consequences(self) -> list[str]:
        return ["From then on their keys open nothing and their sessions end. Setting another date opens them again."]


class RoleForm(BulkForm):
    role = forms.ModelChoiceField(Role.objects.all())

    def clean_role(self) -> Role:
        role: Role = self.cleaned_data["role"]
        if Permission.ADMIN not in role.permissions:
            self.require_others("demote")
        return role

    def consequences(self) -> list[str]:
        return ["The limits and permissions of the new role are in force at the next request."]


class OrganizationForm(BulkForm):
    organization = forms.ModelChoiceField(Organization.objects.all(), required=False, empty_label="none")


class BudgetForm(BulkForm):
    amount = forms.DecimalField(min_value=0, max_value=MAX_AMOUNT, max_digits=24, decimal_places=6)

    def consequences(self) -> list[str]:
        limited = Account.objects.filter(user__in=self.users, granted__isnull=False)
        told = [f"{limited.count()} of them have a budget: they may spend this much more than is left to them."]
        unlimited = self.users.count() - limited.count()
        if unlimited:
            told.append(f"{unlimited} have no limit: they stay unlimited, and nothing is added.")
        refilled = limited.filter(allowance__isnull=False).count()
        if refilled:
            told.append(f"{refilled} have an allowance: what is added is gone when it refills.")
        return told


class RevokeForm(BulkForm):
    def consequences(self) -> list[str]:
        count = Key.objects.filter(user__in=self.users).count()
        return [f"{count} key{' is' if count == 1 else 's are'} deleted, and open nothing from the next request on."]


@dataclass(frozen=True, slots=True)
class Bulk:
    """`apply` does it, in a transaction, and answers how many it changed, of what `done` says happened to them."""

    title: str
    form: type[BulkForm]
    apply: Callable[[UserQuerySet, dict[str, Any]], int]
    done: str
    button: str


EXPIRE = Bulk(
    "Close accounts", ExpireForm, lambda users, given: users.change(expires=given["when"]), "accounts closed", "Close"
)
CHANGE_ROLE = Bulk(
    "Change the role", RoleForm, lambda users, given: users.change(role=given["role"]), "users changed", "Change"
)
CHANGE_ORGANIZATION = Bulk(
    "Change the organization",
    OrganizationForm,
    lambda users, given: users.change(organization=given["organization"]),
    "users changed",
    "Change",
)
ADD_BUDGET = Bulk(
    "Add to budgets",
    BudgetForm,
    lambda users, given: Account.objects.filter(user__in=users).raise_budgets(given["amount"]),
    "budgets raised",
    "Add",
)
REVOKE_KEYS = Bulk(
    "Revoke keys",
    RevokeForm,
    lambda users, given: Key.objects.filter(user__in=users).revoke(),
    "keys revoked",
    "Revoke",
)


def run(
    console: "ModelAdmin[User]", request: HttpRequest, selected: QuerySet[User], action: Bulk
) -> HttpResponse | None:
    """The page that asks, or, once confirmed, the deed: for exactly as many users as the page spoke of."""
    asking = request.user
    assert isinstance(asking, User)
    users: UserQuerySet = User.objects.filter(pk__in=selected.order_by().values("pk"))
    count = users.count()
    is_confirmed = "confirmed" in request.POST
    form = action.form(request.POST if is_confirmed else None, users=users, asking=asking)
    if is_confirmed and form.is_valid():
        if request.POST["confirmed"] != str(count):
            form.add_error(None, f"They are {count} by now: look again, and confirm.")
        else:
            try:
                changed = commit(lambda: action.apply(users, form.cleaned_data))
            except ValidationError as error:
                form.add_error(None, error)
            except APIError as error:
                form.add_error(None, error.detail)
            else:
                told = f"{changed:,} {action.done}."
                if action.form is not RevokeForm and changed < count:
                    told += f" {count - changed:,} stay as they were."
                messages.success(request, told)
                return None
    context = {
        **console.admin_site.each_context(request),
        "title": action.title,
        "opts": console.opts,
        "form": form,
        "bulk": action,
        "count": count,
        "names": users.order_by("email").values_list("email", flat=True)[:NAMED],
        "further": max(count - NAMED, 0),
        "consequences": form.consequences(),
        "action": request.POST.get("action"),
        "across": request.POST.get("select_across", "0"),
        "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
        "checkbox": ACTION_CHECKBOX_NAME,
    }
    return TemplateResponse(request, "admin/accounts/user/bulk.html", context)
