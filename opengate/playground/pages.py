"""What all pages of the playground have in common: who may see them, in which language, and that nobody keeps them."""

from typing import Any, ClassVar
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import logout
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.views import View

from accounts.models import User

LANGUAGE = "language"  # in an address: show the page in it, and remember that
YEAR_SECONDS = 365 * 86_400


class Page(View):
    """Closed to everybody who is not signed in to an open account; `menu` names its entry in the menu."""

    is_open: ClassVar[bool] = False  # only the login page is
    template: ClassVar[str] = ""
    menu: ClassVar[str] = ""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        chosen = request.GET.get(LANGUAGE, "")
        if chosen in dict(settings.LANGUAGES) and request.method == "GET":
            return _remember(request, chosen)
        with translation.override(translation.get_language_from_request(request)):
            response = self._answer(request, *args, **kwargs)
            response.headers["Content-Language"] = translation.get_language() or settings.LANGUAGE_CODE
        patch_vary_headers(response, ["Accept-Language", "Cookie"])
        response.headers["Cache-Control"] = "no-store"
        return response

    def _answer(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not self.is_open and not request.user.is_authenticated:
            return to_login(request)
        if request.user.is_authenticated and not request.user.is_active:
            logout(request)
            return to_login(request, expired="1")
        try:
            return super().dispatch(request, *args, **kwargs)
        except Http404:
            return self.render(request, template="missing", status=404)

    def render(
        self, request: HttpRequest, template: str | None = None, *, status: int = 200, **context: Any
    ) -> HttpResponse:
        """The page, of a template in `templates/playground`."""
        others = request.GET.copy()
        switches = []
        for code, name in settings.LANGUAGES:
            others[LANGUAGE] = code
            switches.append({"code": code, "name": name, "url": f"?{others.urlencode()}"})
        shared = {"menu": self.menu, "switches": switches, "app_title": settings.APP_TITLE}
        return render(request, f"playground/{template or self.template}.html", {**shared, **context}, status=status)


def _remember(request: HttpRequest, language: str) -> HttpResponse:
    """The same page without the choice in its address; what changes is this browser's view of it, and no more."""
    others = request.GET.copy()
    del others[LANGUAGE]
    response = HttpResponseRedirect(request.path + (f"?{others.urlencode()}" if others else ""))
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=YEAR_SECONDS,
        path=settings.LANGUAGE_COOKIE_PATH,
        secure=request.is_secure(),
        httponly=True,
        samesite="Lax",
    )
    return response


def to_login(request: HttpRequest, **words: str) -> HttpResponse:
    """To the login page, which leads back here."""
    if request.method == "GET":
        words["next"] = request.get_full_path()
    address = reverse("playground:login")
    return HttpResponseRedirect(f"{address}?{urlencode(words)}" if words else address)


def signed_in(request: HttpRequest) -> User:
    """Whose page it is."""
    user = request.user
    assert isinstance(user, User)
    return user
