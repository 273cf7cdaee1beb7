"""A request id for every answer: the caller's handle on one call, and the key of its usage row and audit entries."""

import os
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from ipaddress import ip_address

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from opengate import work
from opengate.work import Work

HEADER = "x-request-id"

# The request that is being answered; none in commands and tasks.
current_request: ContextVar[HttpRequest | None] = ContextVar("current_request", default=None)


def client_address(request: HttpRequest) -> str | None:
    """The caller's IP address, as the server knows it; None when it is none (a socket, a proxy's garbage).

    Behind a proxy of TRUSTED_PROXIES it is the one that the proxy tells.
    """
    try:
        address = ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return None
    # An address of IPv4 is the same one when a socket of IPv6 sees it.
    return str(getattr(address, "ipv4_mapped", None) or address).partition("%")[0]


def new_request_id() -> str:
    """32 hex digits, never taken from the caller: usage rows are unique by it.

    The first 12 are the time in milliseconds, so that the index of ten million of them grows at one end.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


class RequestIdMiddleware:
    """Sets `request.id`, the answer's `x-request-id`, and the current request."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        noted = work.current()
        if noted.request_id is None or noted.request is not None:  # nobody stands before Django: a test's client
            noted = work.begin(Work(new_request_id()))
        noted.request = request
        request.id = noted.request_id  # type: ignore[attr-defined]
        if self.is_async:
            return self._answer(request)
        token = current_request.set(request)
        try:
            response = self.get_response(request)
        finally:
            current_request.reset(token)
        response[HEADER] = request.id  # type: ignore[attr-defined,index]
        return response

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        current_request.set(request)  # in the task of this request alone
        response: HttpResponseBase = await self.get_response(request)  # type: ignore[misc]
        response[HEADER] = request.id  # type: ignore[attr-defined]
        return response
