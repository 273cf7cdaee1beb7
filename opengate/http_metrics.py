"""The HTTP metrics of prometheus-fastapi-instrumentator, by its names, labels and buckets, for every route.

No label holds what a caller wrote: `handler` is a route's template, "none" where no route answered; methods that are
none of HTTP's are "other"; statuses are classes like 2xx.
"""

import os
import re
import time
from collections.abc import Awaitable, Mapping
from functools import cache, partial
from typing import Any, Final

from django.conf import settings

from opengate import metrics
from opengate.bodies import Application, Receive, Send
from opengate.metrics import Counter, Histogram, Summary
from opengate.request_id import ROUTE

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
NO_ROUTE: Final = "none"
_CLIENT_LEFT: Final = 499
_CONTENT_LENGTH: Final = (b"content-length", b"Content-Length")  # as servers and Django write it
_LONGEST_LENGTH: Final = 15  # digits of a Content-Length; a number beyond is no length

_TOTAL = Counter(
    "http_requests", "Total number of requests by method, status and handler.", ("method", "status", "handler")
)
_REQUEST_SIZE = Summary(
    "http_request_size_bytes", "Content length of incoming requests by handler, as the header says.", ("handler",)
)
_RESPONSE_SIZE = Summary(
    "http_response_size_bytes", "Content length of outgoing responses by handler, as the header says.", ("handler",)
)
_DURATION_FINE = Histogram(
    "http_request_duration_highr_seconds",
    "Latency with many buckets and no labels.",
    bounds=(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
_DURATION = Histogram(
    "http_request_duration_seconds",
    "Latency by handler, with few buckets.",
    ("method", "handler"),
    bounds=(0.1, 0.5, 1),
)


class _Exchange:
    """All series of one kind of request and answer, so that they are looked up once."""

    def __init__(self, method: str, status: str, handler: str) -> None:
        self.total = _TOTAL.of(method, status, handler)
        self.request_size = _REQUEST_SIZE.of(handler)
        self.response_size = _RESPONSE_SIZE.of(handler)
        self.duration_fine = _DURATION_FINE.of()
        self.duration = _DURATION.of(method, handler)


_exchanges: dict[tuple[str, int, str | None], _Exchange] = {}
os.register_at_fork(after_in_child=_exchanges.clear)


def measured(application: Application) -> Application:
    """The application, its answers counted. A caller who left before one is a 4xx, an exception a 5xx."""
    return partial(_measured, application) if settings.METRICS else application


async def _measured(application: Application, scope: dict[str, Any], receive: Receive, send: Send) -> None:
    started = time.perf_counter()
    answer: Mapping[str, Any] | None = None
    status = _CLIENT_LEFT

    def noting(message: Mapping[str, Any]) -> Awaitable[None]:
        nonlocal answer
        if answer is None and message["type"] == "http.response.start":
            answer = message
        return send(message)

    try:
        await application(scope, receive, noting)
    except Exception:
        status = 500
        raise
    finally:
        if answer is not None:
            status = answer["status"]
        _count(scope, status, answer, time.perf_counter() - started)


def _count(scope: Mapping[str, Any], status: int, answer: Mapping[str, Any] | None, seconds: float) -> None:
    route = scope.get(ROUTE)
    if route is None and scope["path"].startswith(settings.STATIC_URL):
        route = f"{settings.STATIC_URL[1:]}<path>"
    method = scope["method"] if scope["method"] in METHODS else "other"
    kind = (method, status // 100, route)
    exchange = _exchanges.get(kind)
    if exchange is None:
        exchange = _exchanges[kind] = _Exchange(method, f"{status // 100}xx", handler_of(route))
        metrics.begin()
    exchange.total.add()
    exchange.request_size.observe(_length(scope["headers"]))
    exchange.response_size.observe(_length(answer["headers"]) if answer is not None else 0)
    exchange.duration_fine.observe(seconds)
    exchange.duration.observe(seconds)


def _length(headers: Any) -> int:
    for name, value in headers:
        if name in _CONTENT_LENGTH:
            return int(value) if value.isdigit() and len(value) <= _LONGEST_LENGTH else 0
    return 0


@cache
def handler_of(route: str | None) -> str:
    """A route's template as FastAPI writes it: `v1/models/<path:model>` is `/v1/models/{model}`."""
    if route is None:
        return NO_ROUTE
    plain = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"{\1}", route)
    plain = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", plain)
    return "/" + re.sub(r"[\^$\\?]", "", plain).removeprefix("/")
