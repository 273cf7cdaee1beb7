"""Forms of the console's pages of people and keys."""

from datetime import datetime
from typing import Any, ClassVar, Self

from django import forms
from django.contrib.auth.forms import (
    AdminPasswordChangeForm,
    AdminUserCreationForm,
    ReadOnlyPasswordHashField,
    ReadOnlyPasswordHashWidget,
    UserChangeForm,
)
from django.contrib.auth.hashers import is_password_usable
from django.utils import timezone

from accounts import keys, user_actions
from accounts.errors import KeyLivesTooLong
from accounts.models import Key, Permission, User
from opengate import once
from opengate.console_forms import MergingForm
from routing.models import Router
from usage.matrix import Heading, MatrixField
from usage.models import Limit


class RoleForm(MergingForm):
    permissions = forms.MultipleChoiceField(
        choices=Permission.choices, required=False, widget=forms.CheckboxSelectMultiple
    )
    limits = MatrixField(label="Limits")

    may_limit = True
    asking: User

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "limits" not in self.fields:
            return
        field: Any = self.fields["limits"]
        routers = Router.objects.order_by("name").values_list("id", "name", "type")
        field.fill((Heading(id, name, type) for id, name, type in routers), "router")
        field.disabled = not self.may_limit
        held = Limit.objects.filter(role=self.instance.pk) if self.instance.pk else Limit.objects.none()
        values = held.values_list("router", "type", "value")
        self.initial["limits"] = {(router, type): value for router, type, value in values}

    def clean(self) -> dict[str, Any]:
        given = super().clean()
        is_own = self.instance.pk is not None and self.instance.pk == self.asking.role_id
        if is_own and Permission.ADMIN not in given.get("permissions", [Permission.ADMIN]):
            self.add_error("permissions", "This is your own role: you would close the console to all who have it.")
        return given


USER_LABELS = {"sub": "Subject (sub)", "iss": "Issuer (iss)", "expires": "Expires (UTC)"}


def explain(usable_password: forms.Field) -> None:
    """In place of Django's words, which are of backends."""
    usable_password.label = "Signs in with a password"
    usable_password.help_text = "Without one, the user calls the API with keys alone."


class PasswordForm(AdminPasswordChangeForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "usable_password" in self.fields:  # who has no password has no choice yet
            explain(self.fields["usable_password"])


class UserCreationForm(AdminUserCreationForm):
    class Meta:
        model = User
        fields = ("email",)
        labels = USER_LABELS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        explain(self.fields["usable_password"])


class PasswordState(ReadOnlyPasswordHashWidget):
    """Whether there is a password; the parameters of its hash help nobody."""

    def get_context(self, name: str, value: Any, attrs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context(name, value, attrs)
        is_set = bool(value) and is_password_usable(value)
        context["summary"] = [{"label": "A password is set." if is_set else "None: no login, keys alone."}]
        return context


class UserForm(MergingForm, UserChangeForm):
    """Nobody closes the console to themselves by a slip."""

    asking: User

    password = ReadOnlyPasswordHashField(widget=PasswordState)

    class Meta(UserChangeForm.Meta):
        labels = USER_LABELS

    def _columns(self) -> list[str]:
        return [name for name in super()._columns() if name != "password"]  # it has a page of its own

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if self.instance.pk == self.asking.pk:
            if given.get("expires") is not None and given["expires"] != self.initial.get("expires"):
                self.add_error("expires", "This is your own account: you would lock out yourself.")
            role = given.get("role")
            if role is not None and Permission.ADMIN not in role.permissions:
                self.add_error("role", "This is your own account: you would demote yourself.")
        return given


class KeyForm(forms.ModelForm):
    class Meta:
        labels: ClassVar[dict[str, str]] = {"expires": "Expires (UTC)"}

    def clean_expires(self) -> datetime | None:
        try:
            return keys.expiry(self.cleaned_data["expires"])
        except KeyLivesTooLong as error:
            raise forms.ValidationError(str(error)) from None


class NewKeyForm(KeyForm):
    """Good for one key: loaded again, it makes no other."""

    expires = forms.DateTimeField(
        required=False,
        widget=user_actions.DateTimeInput,
        label="Expires (UTC)",
        help_text="Empty is never, or as late as keys may live.",
    )
    ticket = forms.CharField(widget=forms.HiddenInput, initial=once.new_ticket)

    class Meta:
        model = Key
        fields = ("name", "expires")

    def clean_expires(self) -> datetime | None:
        expires = super().clean_expires()
        if expires is not None and expires <= timezone.now():
            raise forms.ValidationError("This moment has passed.")
        return expires

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if not self.errors:
            try:
                once.use(self.cleaned_data["ticket"])
            except forms.ValidationError as error:
                self.add_error(None, error)

    def with_a_new_ticket(self) -> Self:
        """As it was filled in, to be sent again on purpose."""
        self.data = {**self.data.dict(), "ticket": once.new_ticket()}  # type: ignore[attr-defined]
        return self
