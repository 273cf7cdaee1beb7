"""One bearer key, three entrances: the consumer, Ninja and Django REST framework."""

import time
from collections.abc import Awaitable
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest
from ninja.security.http import HttpAuthBase
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys, principals
from accounts.errors import CHALLENGE, InsufficientRights, InvalidKey, NotAuthenticated
from accounts.models import Permission
from accounts.principals import Principal
from opengate import epoch
from opengate.database import in_time
from opengate.errors import DatabaseAway


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header; raises NotAuthenticated without one."""
    scheme, _, text = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise NotAuthenticated
    return text.strip()


def authenticate(authorization: str | None) -> Awaitable[Principal]:
    """The caller as remembered; for calls whose admission compares epochs afterwards."""
    return principals.find(bearer(authorization))


async def authenticate_now(authorization: str | None, *, expired_account: bool = False) -> Principal:
    """The caller as of now: asks for the epoch first. For all that passes no admission."""
    text = bearer(authorization)
    await epoch.refresh()
    return await principals.find(text, expired_account=expired_account)


class HTTPBearer(HttpAuthBase):
    """For Ninja: `request.auth` is the principal. The class is named as the OpenAPI document names the scheme.

    With `form` the request's form is read once the caller is known, in a thread: a large file must not hold up others.
    With `permission` the caller must hold it. With `patience_seconds` a Postgres that does not answer by then is no
    reason to refuse whoever came last, as long as nothing has changed since.
    """

    openapi_scheme = "bearer"

    def __init__(
        self, *, form: bool = False, permission: Permission | None = None, patience_seconds: float | None = None
    ) -> None:
        super().__init__()
        self.is_async = True
        self.form = form
        self.permission = permission
        self.patience_seconds = patience_seconds
        self._last: tuple[Principal, int] | None = None  # and the epoch then

    async def __call__(self, request: HttpRequest) -> Principal:
        authorization = request.headers.get("Authorization")
        if self.patience_seconds is None:
            principal = await authenticate_now(authorization)
        else:
            principal = await self._authenticate_soon(authorization, self.patience_seconds)
        if self.permission is not None and not principal.grants(self.permission):
            raise InsufficientRights
        if self.form:
            await sync_to_async(getattr, thread_sensitive=False)(request, "POST")
        return principal

    async def _authenticate_soon(self, authorization: str | None, seconds: float) -> Principal:
        try:
            principal = await in_time(authenticate_now(authorization), seconds)
        except DatabaseAway:
            if self._last is None or self._last[1] != epoch.known():
                raise
            principal = self._last[0]
            if principal.digests != keys.digests(bearer(authorization)) or not principal.is_valid(time.time()):
                raise
            return principal
        if self.permission is None or principal.grants(self.permission):
            self._last = principal, epoch.known()
        return principal


class KeyAuthentication(BaseAuthentication):
    """For Django REST framework: `request.user` and `request.auth` are the principal.

    A view with `for_expired_accounts` lets the owner of an expired account see that it has expired.
    """

    REFUSALS = (NotAuthenticated(), InvalidKey())

    def authenticate(self, request: Request) -> tuple[Any, Any]:
        view = request.parser_context["view"]
        principal = async_to_sync(authenticate_now)(
            request.headers.get("Authorization"), expired_account=getattr(view, "for_expired_accounts", False)
        )
        return principal, principal

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE["WWW-Authenticate"]


def caller(request: Request) -> Principal:
    """Whose key the request carries, once it is authenticated."""
    principal: Any = request.auth
    found: Principal = principal
    return found
