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


async def admit(scope: Mapping[str, Any]) -> int:
    """The caller's id; raises what the API answers to one without a key. It says nothing of what he may do besides."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if scope["path"].startswith("/v1/"):
        return (await authentication.authenticate(values[0].decode("latin-1") if len(values) == 1 else None)).user_id
    user_id = await in_thread(_signed_in)(scope)
    if user_id is None:
        raise NotAuthenticated
    return user_id


def _signed_in(scope: Mapping[str, Any]) -> int | None:
    headers = [(name, value) for name, value in scope["headers"] if name == b"cookie"]
    request = ASGIRequest({**scope, "headers": headers}, BytesIO())
    SessionMiddleware(lambda request: HttpResponse()).process_request(request)
    return auth.get_user(request).pk
