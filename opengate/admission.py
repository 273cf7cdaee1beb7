"""Who may send a long body: whoever has a valid key, or is signed in. Everybody else is heard for a few words only."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from django.contrib import auth
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse

from accounts import authentication
from accounts.errors import NotAuthenticated
from opengate.database import in_thread


async def admit(scope: Mapping[str, Any]) -> None:
    """Raises what the API answers to a caller without a key; it says nothing of what a caller may do besides."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if scope["path"].startswith("/v1/"):
        await authentication.authenticate(values[0].decode("latin-1") if len(values) == 1 else None)
    elif not await in_thread(_is_signed_in)(scope):
        raise NotAuthenticated


def _is_signed_in(scope: Mapping[str, Any]) -> bool:
    headers = [(name, value) for name, value in scope["headers"] if name == b"cookie"]
    request = ASGIRequest({**scope, "headers": headers}, BytesIO())
    SessionMiddleware(lambda request: HttpResponse()).process_request(request)
    return bool(auth.get_user(request).is_authenticated)
