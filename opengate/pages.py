"""What pages for people do differently from the API: no NUL in their addresses, and refusals to be read."""

from collections.abc import Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import translation
from django.utils.decorators import sync_and_async_middleware

CONSOLE, PLAYGROUND, SIGN_IN = "/admin/", "/playground", "/auth/"


def is_page(request: HttpRequest) -> bool:
    return request.path.startswith((CONSOLE, PLAYGROUND, SIGN_IN))


def refusal(request: HttpRequest, status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A page that says why there is none, in the language of the person; it asks the database nothing."""
    is_playground = request.path.startswith((PLAYGROUND, SIGN_IN))
    language = translation.get_language_from_request(request) if is_playground else "en"
    context = {
        "status": status,
        "home": PLAYGROUND if is_playground else CONSOLE,
        "id": getattr(request, "id", ""),
        "app_title": settings.APP_TITLE,
    }
    with translation.override(language):
        response = render(request, "console/refused.html", context, status=status)
    for name, value in (headers or {}).items():
        response[name] = value
    return response


@sync_and_async_middleware
def refuse_nul(get_response: Any) -> Any:
    """Middleware: an address of a page with a NUL, which Postgres takes in no text, is a bad request wherever it is."""

    def has_nul(request: HttpRequest) -> bool:
        return ("\0" in request.path or "%00" in request.META["QUERY_STRING"]) and is_page(request)

    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> HttpResponse:
            return refusal(request, 400) if has_nul(request) else await get_response(request)

        return answer
    return lambda request: refusal(request, 400) if has_nul(request) else get_response(request)
