"""The user's own keys: made, shown once, revoked."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts.errors import TokenNotFound
from accounts.models import PLAYGROUND, Key
from opengate import once
from opengate.database import commit, found
from opengate.errors import APIError
from opengate.playground.pages import Page, signed_in

KEYS_A_PAGE = 50


class KeyForm(forms.Form):
    """The ticket is of this form alone: a key is made for it once, however often it is sent."""

    ticket = forms.CharField(widget=forms.HiddenInput, initial=once.new_ticket)
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=255,
        help_text=gettext_lazy("What it is for: it stands beside each call in your usage."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    expires = forms.DateField(
        label=gettext_lazy("Last day"),
        required=False,
        widget=forms.DateInput(format="%Y-%m-%d", attrs={"type": "date"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        today = timezone.now().date()
        expires = self.fields["expires"]
        expires.widget.attrs["min"] = today.isoformat()
        days = settings.KEY_MAX_EXPIRATION_DAYS
        if days is None:
            expires.help_text = _("The key closes at the end of this day (UTC). Empty: never.")
        else:
            expires.widget.attrs["max"] = (today + timedelta(days=days)).isoformat()
            expires.help_text = _(
                "The key closes at the end of this day (UTC). Keys live %(days)s days at most; empty: as long as that."
            ) % {"days": days}

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name == PLAYGROUND:
            raise forms.ValidationError(_("The gateway uses this name itself. Please choose another one."))
        return name

    def clean_expires(self) -> datetime | None:
        day: date | None = self.cleaned_data["expires"]
        if day is None:
            return None
        now = timezone.now()
        if day < now.date():
            raise forms.ValidationError(_("This day is over."))
        end = datetime.combine(day, time.max, UTC)
        days = settings.KEY_MAX_EXPIRATION_DAYS
        if days is not None and day > (now + timedelta(days=days)).date():
            raise forms.ValidationError(_("Keys live %(days)s days at most.") % {"days": days})
        return end if days is None else min(end, now + timedelta(days=days))


class Keys(Page):
    template = "keys"
    menu = "keys"

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request, KeyForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        """The new key is in the answer itself and nowhere else; a second time the form makes none."""
        user = signed_in(request)
        form = KeyForm(request.POST)
        if not form.is_valid():
            if "ticket" in form.errors:  # of no page of ours
                form.add_error(None, _("Please load the page again."))
            return self._show(request, form)
        try:
            once.use(form.cleaned_data["ticket"])
        except forms.ValidationError as error:
            match error.code:
                case "used":
                    return self._show(request, KeyForm(), was_sent=True)
                case "old":
                    form.add_error(None, _("Please load the page again."))
                case _:
                    form.add_error(None, _("No key can be made at the moment. Please try again later."))
            return self._show(request, form)
        name, expires = form.cleaned_data["name"], form.cleaned_data["expires"]
        key, text = commit(lambda: Key.objects.issue(user, name, expires))
        return self._show(request, KeyForm(), made=key, text=text)

    def _show(self, request: HttpRequest, form: KeyForm, **context: Any) -> HttpResponse:
        rows = Key.objects.filter(user=signed_in(request)).order_by("-id")
        page = Paginator(rows, KEYS_A_PAGE).get_page(request.GET.get("page"))
        return self.render(request, form=form, page=page, now=timezone.now(), playground=PLAYGROUND, **context)


class Revoke(Page):
    """The question, for those without scripts; where scripts run, the list has asked already."""

    template = "revoke"
    menu = "keys"

    def get(self, request: HttpRequest, key: int) -> HttpResponse:
        return self.render(request, key=self._key(request, key))

    def post(self, request: HttpRequest, key: int) -> HttpResponse:
        self._key(request, key)
        commit(lambda: found(Key.objects.filter(user=signed_in(request)), key, TokenNotFound).delete())
        return HttpResponseRedirect(reverse("playground:keys"))

    def _key(self, request: HttpRequest, id: int) -> Key:
        try:
            return found(Key.objects.filter(user=signed_in(request)), id, TokenNotFound)
        except APIError:
            raise Http404 from None
