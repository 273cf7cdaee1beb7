"""Signing in and out at an identity provider: the way there, the way back, and a page where it went wrong.

What ties the way back to the browser that set out is in a signed cookie that lives for ten minutes: nothing is kept for
a visitor who never comes back, and an answer that somebody else began is nobody's here.
"""

import time
from typing import NamedTuple

from django.conf import settings
from django.contrib.auth import login, logout
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import path, reverse
from django.utils import translation
from django.utils.cache import add_never_cache_headers
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from accounts import sign_ins, single_sign_on
from accounts.errors import Reason, SignInRefused
from accounts.sign_ins import Attempt
from opengate.pages import CONSOLE, PLAYGROUND

BACKEND = "accounts.passwords.PasswordBackend"  # finds the user of a session, however it began
ID_TOKEN = "single_sign_on_id_token"  # noqa: S105  in sessions that end at the provider, too
LIFE_SECONDS = 600
MOST_ATTEMPTS = 4  # at a time, in as many tabs
MAX_NEXT = 300
CANCELLED, LOST = "cancelled", "lost"
_SALT = "opengate.single_sign_on"
_STATUS = {Reason.AWAY: 503, Reason.NOT_SET_UP: 503, Reason.NOT_GENUINE: 400, LOST: 400}


def offer(request: HttpRequest, wanted: str) -> dict[str, str] | None:
    """The button of a sign-in page that leads to `wanted`; None where there is no single sign-on."""
    if not sign_ins.is_configured():
        return None
    words = {"next": own_page(wanted), "language": translation.get_language() or settings.LANGUAGE_CODE}
    return {"url": f"{reverse('single-sign-on:login')}?{urlencode(words)}", "name": provider_name()}


def provider_name() -> str:
    return settings.OIDC_NAME or settings.OIDC_ISSUER.partition("://")[2].partition("/")[0]


def own_page(wanted: str) -> str:
    """A page of this site to go to after the sign-in, and none that signs in or out."""
    is_ours = len(wanted) <= MAX_NEXT and url_has_allowed_host_and_scheme(wanted, None)
    where = wanted.partition("?")[0].partition("#")[0]
    is_page = where == PLAYGROUND or where.startswith((f"{PLAYGROUND}/", CONSOLE))
    if is_ours and is_page and not where.rstrip("/").endswith(("/login", "/logout")) and wanted.isprintable():
        return wanted
    return CONSOLE if where.startswith(CONSOLE) else PLAYGROUND


def _address(request: HttpRequest, name: str) -> str:
    """The whole address of a view, as the provider knows it. A Host that nobody checked is never part of it."""
    from accounts import identity_provider

    if settings.PUBLIC_URL:
        return f"{settings.PUBLIC_URL}{reverse(name)}"
    if "*" in settings.ALLOWED_HOSTS:
        raise identity_provider.away("is not asked: OPENGATE_PUBLIC_URL is not set, and every Host is allowed")
    return request.build_absolute_uri(reverse(name))


# The cookie of those who are under way.


def _cookie() -> str:
    return "__Host-opengate-sign-in" if settings.HTTPS else "opengate-sign-in"


class Journey(NamedTuple):
    """One sign-in that has begun; `began` in Unix seconds."""

    state: str
    nonce: str
    verifier: str
    wanted: str
    language: str
    began: int

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.state, self.nonce, self.verifier)


def _under_way(request: HttpRequest) -> list[Journey]:
    """Those of this browser, the oldest first."""
    try:
        found = signing.loads(request.COOKIES.get(_cookie(), ""), salt=_SALT, max_age=LIFE_SECONDS)
        journeys = [Journey(*one) for one in found]
    except (signing.BadSignature, TypeError):  # the last: of another release
        return []
    oldest = time.time() - LIFE_SECONDS
    return [journey for journey in journeys if journey.began > oldest]


def _remember(response: HttpResponse, journeys: list[Journey]) -> None:
    """The newest of them; with none the cookie ends, said with its attributes, or browsers keep a `__Host-` one."""
    response.set_cookie(
        _cookie(),
        signing.dumps(journeys[-MOST_ATTEMPTS:], salt=_SALT, compress=True) if journeys else "",
        max_age=LIFE_SECONDS if journeys else 0,
        secure=settings.HTTPS,
        httponly=True,
        samesite="Lax",
    )


# The way there and back.


@require_GET
def start(request: HttpRequest) -> HttpResponse:
    """To the provider. A link leads here, not a form: a form may go to no other site (form-action)."""
    from accounts import identity_provider

    _closed_unless_configured()
    language = _language(request.GET.get("language", ""), request)
    wanted = own_page(request.GET.get("next", ""))
    attempt = Attempt.begin()
    try:
        url = identity_provider.authorization_url(attempt, _address(request, "single-sign-on:callback"))
    except SignInRefused as refused:
        return _refused(request, refused.reason, language, wanted)
    response = HttpResponseRedirect(url)
    begun = Journey(attempt.state, attempt.nonce, attempt.verifier, wanted, language, int(time.time()))
    _remember(response, [*_under_way(request), begun])
    add_never_cache_headers(response)
    return response


@require_GET
def callback(request: HttpRequest) -> HttpResponse:
    """Back from the provider, once for each attempt."""
    _closed_unless_configured()
    journeys = {journey.state: journey for journey in _under_way(request)}
    journey = journeys.pop(request.GET.get("state", ""), None)
    if journey is None:
        reason = CANCELLED if request.GET.get("error") == "access_denied" else LOST
        return _refused(request, reason, _language("", request), PLAYGROUND)
    response = _back(request, journey)
    _remember(response, list(journeys.values()))
    add_never_cache_headers(response)
    return response


def _back(request: HttpRequest, journey: Journey) -> HttpResponse:
    from accounts import identity_provider

    error, code = request.GET.get("error"), request.GET.get("code")
    if error is not None:
        reason = CANCELLED if error == "access_denied" else Reason.AWAY
        return _refused(request, reason, journey.language, journey.wanted)
    try:
        if not code:
            raise identity_provider.not_genuine("it has no code")
        address = _address(request, "single-sign-on:callback")
        identity, id_token = identity_provider.identity(code, journey.attempt, address, request.GET.get("iss"))
        user = single_sign_on.user_of(identity)
    except SignInRefused as refused:
        return _refused(request, refused.reason, journey.language, journey.wanted)
    login(request, user, backend=BACKEND)
    if settings.OIDC_LOGOUT:
        request.session[ID_TOKEN] = id_token
    return HttpResponseRedirect(journey.wanted)


def signed_out(request: HttpRequest, back: str) -> HttpResponse | None:
    """A page that goes on to the provider, the session ended, where that is wished and possible; else None, and nothing
    is done.

    It is a page and no redirect: the answer to a form may lead to no other site.
    """
    from accounts import identity_provider

    id_token = request.session.get(ID_TOKEN) if settings.OIDC_LOGOUT else None
    if id_token is None or not sign_ins.is_configured():
        return None
    try:
        url = identity_provider.end_session_url(id_token, _address(request, "playground:login"))
    except SignInRefused:
        return None
    if url is None:
        return None
    logout(request)
    context = {"url": url, "back": back, "name": provider_name(), "app_title": settings.APP_TITLE}
    response = render(request, "single_sign_on/signed_out.html", context)
    add_never_cache_headers(response)
    return response


def _closed_unless_configured() -> None:
    if not sign_ins.is_configured():
        raise Http404("There is no single sign-on.")


def _language(wanted: str, request: HttpRequest) -> str:
    return wanted if wanted in dict(settings.LANGUAGES) else translation.get_language_from_request(request)


# Where it went wrong.


def _refused(request: HttpRequest, reason: str, language: str, wanted: str) -> HttpResponse:
    """A page that says why nobody came in, and what to do; nothing that the provider wrote is on it."""
    status = _STATUS.get(reason, 403)
    is_console = wanted.startswith(CONSOLE)
    with translation.override("en" if is_console else language):
        login_page = reverse("admin:login" if is_console else "playground:login")
        context = {
            "title": _titles()[reason] if reason in _titles() else _("You were not signed in"),
            "words": _words(reason),
            "login": f"{login_page}?{urlencode({'next': wanted})}",
            "id": getattr(request, "id", ""),
            "app_title": settings.APP_TITLE,
        }
        response = render(request, "single_sign_on/refused.html", context, status=status)
        response.headers["Content-Language"] = translation.get_language() or settings.LANGUAGE_CODE
    if status == 503:
        response.headers["Retry-After"] = "30"
    add_never_cache_headers(response)
    return response


def _titles() -> dict[str, str]:
    return {CANCELLED: _("You did not sign in"), Reason.AWAY: _("Sign-in is not possible at the moment")}


def _words(reason: str) -> str:
    name = {"name": provider_name()}
    return {
        CANCELLED: _("The sign-in at %(name)s was cancelled, or you may not use this service.") % name,
        LOST: _("This sign-in is too old, was finished before, or was begun in another browser. Please begin anew."),
        Reason.AWAY: _("%(name)s cannot be reached, or does not answer as it should. Please try again later.") % name,
        Reason.NOT_GENUINE: _("The answer of %(name)s could not be verified. Please begin anew.") % name,
        Reason.NO_EMAIL: _("%(name)s did not tell your e-mail address. Please ask your administrator.") % name,
        Reason.UNVERIFIED: _(
            "%(name)s has not verified your e-mail address. Verify it there, or ask your administrator."
        )
        % name,
        Reason.OTHER_DOMAIN: _("Your e-mail address is not of an organization that may sign in here."),
        Reason.UNKNOWN: _("You have no account here. Please ask your administrator for one."),
        Reason.AMBIGUOUS: _("Several accounts have your e-mail address. Please ask your administrator."),
        Reason.LINKED: _(
            "The account with your e-mail address belongs to another person at %(name)s. Please ask your administrator."
        )
        % name,
        Reason.EXPIRED: _("Your account has expired. Please ask your administrator."),
        Reason.NOT_SET_UP: _("Accounts for new people are not set up correctly. Please ask your administrator."),
    }[reason]


app_name = "single-sign-on"
urlpatterns = [path("login", start, name="login"), path("callback", callback, name="callback")]
