"""Coming in, going out, and one's password."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import login, logout, update_session_auth_hash
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm, SetPasswordForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.formats import date_format
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_post_parameters

from accounts.models import User
from accounts.serializers import MAX_PASSWORD
from opengate import single_sign_on
from opengate.playground.pages import Page, signed_in

MAX_TYPED = 1024  # of a password that is tried


class LoginForm(AuthenticationForm):
    username = forms.CharField(
        label=gettext_lazy("E-mail"),
        max_length=254,
        widget=forms.TextInput(attrs={"autocomplete": "username", "inputmode": "email", "autofocus": True}),
    )
    password = forms.CharField(
        label=gettext_lazy("Password"),
        strip=False,
        max_length=MAX_TYPED,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

    def clean(self) -> dict[str, Any]:
        if not settings.PASSWORD_LOGIN:
            raise ValidationError(_("Signing in with a password is switched off here."), code="closed")
        return super().clean()

    def get_invalid_login_error(self) -> ValidationError:
        if getattr(self.request, "axes_locked_out", False):
            return ValidationError(_("Too many failed sign-ins. Please try again later."), code="locked_out")
        return ValidationError(_("E-mail and password do not match."), code="invalid_login")

    def confirm_login_allowed(self, user: Any) -> None:
        if not user.is_active:
            raise ValidationError(expired_words(user), code="expired")


def expired_words(user: User) -> str:
    if user.expires is None:
        return _("Your account has expired. Please ask your administrator.")
    day = date_format(user.expires, "j F Y")
    return _("Your account expired on %(day)s. Please ask your administrator.") % {"day": day}


@method_decorator(sensitive_post_parameters("password"), name="dispatch")
class Login(Page):
    is_open = True
    template = "login"

    def get(self, request: HttpRequest) -> HttpResponse:
        if request.user.is_authenticated:
            return HttpResponseRedirect(next_of(request))
        return self._show(request, LoginForm(request))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = LoginForm(request, data=request.POST)
        if not form.is_valid():
            return self._show(request, form)
        login(request, form.get_user())
        return HttpResponseRedirect(next_of(request))

    def _show(self, request: HttpRequest, form: LoginForm) -> HttpResponse:
        has_expired = request.method == "GET" and "expired" in request.GET
        wanted = next_of(request)
        return self.render(
            request,
            form=form,
            next=wanted,
            has_expired=has_expired,
            single_sign_on=single_sign_on.offer(request, wanted),
            password_login=settings.PASSWORD_LOGIN,
        )


def next_of(request: HttpRequest) -> str:
    """The page of this site that was asked for before the login, else the chat."""
    wanted = request.POST.get("next", request.GET.get("next", ""))
    is_ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if is_ours and not wanted.startswith(reverse("playground:login")) else reverse("playground:chat")


class Logout(Page):
    def post(self, request: HttpRequest) -> HttpResponse:
        login_page = reverse("playground:login")
        page = single_sign_on.signed_out(request, login_page)
        if page is not None:
            return page
        logout(request)
        return HttpResponseRedirect(login_page)


def has_password(user: User) -> bool:
    """Whether the account is one for a password: whom an identity provider vouches for needs none of ours, which would
    still open the door when the provider no longer does."""
    return settings.PASSWORD_LOGIN and (user.has_usable_password() or not user.sub)


class NewPassword(SetPasswordForm):
    """For an account without a password."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("new_password1", "new_password2"):
            _bounded(self.fields[name])


def _bounded(field: Any) -> None:
    """Longer ones could not be used at the API's login."""
    field.max_length = MAX_PASSWORD
    field.validators.append(forms.CharField(max_length=MAX_PASSWORD).validators[0])
    field.widget.attrs["maxlength"] = str(MAX_PASSWORD)


class ChangedPassword(PasswordChangeForm, NewPassword):
    """Takes the current one, as the API does."""


@method_decorator(sensitive_post_parameters(), name="dispatch")
class Password(Page):
    template = "password"
    menu = "password"

    def get(self, request: HttpRequest) -> HttpResponse:
        if not has_password(signed_in(request)):
            return self._show(request, None)
        return self._show(request, self._form(request))

    def post(self, request: HttpRequest) -> HttpResponse:
        if not has_password(signed_in(request)):
            return self._show(request, None, status=403)
        form = self._form(request, request.POST)
        if not form.is_valid():
            return self._show(request, form)
        update_session_auth_hash(request, form.save())
        return self._show(request, self._form(request), is_changed=True)

    def _form(self, request: HttpRequest, data: Any = None) -> Any:
        user = signed_in(request)
        return (ChangedPassword if user.has_usable_password() else NewPassword)(user, data)

    def _show(self, request: HttpRequest, form: Any, *, is_changed: bool = False, status: int = 200) -> HttpResponse:
        return self.render(request, form=form, is_changed=is_changed, status=status)
