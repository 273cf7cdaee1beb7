"""The HTTP metrics of prometheus-fastapi-instrumentator, by its labels and buckets, for every route.

No label holds what a caller wrote: `handler` is a route's template, "none" where no route answered; methods that are
none of HTTP's are "other"; statuses are classes like 2xx.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

from prometheus_client import Counter, Histogram, Summary

from opengate import metrics
from opengate.metrics import Observed

Headers = Iterable[tuple[bytes, bytes]]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
NO_ROUTE: Final = "none"
_CONTENT_LENGTH: Final = (b"content-length", b"Content-Length")  # as servers and Django write it
_LONGEST_LENGTH: Final = 15  # digits of a Content-Length; a number beyond is no length

_TOTAL = Counter(
    "ogl_http_requests",
    "Total number of requests by method, status and handler.",
    ("method", "status", "handler"),
    registry=metrics.registry,
)
_REQUEST_SIZE = Summary(
    "ogl_http_request_size_bytes",
    "Content length of incoming requests by handler, as the header says.",
    ("handler",),
    registry=metrics.registry,
)
_RESPONSE_SIZE = Summary(
    "ogl_http_response_size_bytes",
    "Content length of outgoing responses by handler, as the header says.",
    ("handler",),
    registry=metrics.registry,
)
_DURATION_FINE = Histogram(
    "ogl_http_request_duration_highr_seconds",
    "Latency with many buckets and no labels.",
    registry=metrics.registry,
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
_DURATION = Histogram(
    "ogl_http_request_duration_seconds",
    "Latency by handler, with few buckets.",
    ("method", "handler"),
    registry=metrics.registry,
    buckets=(0.1, 0.5, 1),
)


_fine = Observed(_DURATION_FINE)


class _Exchange:
    """All series of one kind of request and answer, so that they are looked up once."""

    def __init__(self, method: str, status: str, handler: str) -> None:
        self.add = metrics.adder(_TOTAL.labels(method, status, handler))
        self.request_size = Observed(_REQUEST_SIZE.labels(handler))
        self.response_size = Observed(_RESPONSE_SIZE.labels(handler))
        self.duration = Observed(_DURATION.labels(method, handler))


_exchanges: dict[tuple[str, int, str | None], _Exchange] = {}


def count(method: str, route: str | None, status: int, asked: Headers, answered: Headers, seconds: float) -> None:
    """Count one exchange, by the headers of both sides."""
    if method not in METHODS:
        method = "other"
    kind = (method, status // 100, route)
    exchange = _exchanges.get(kind)
    if exchange is None:
        exchange = _exchanges[kind] = _Exchange(method, f"{status // 100}xx", handler_of(route))
        metrics.begin()
    exchange.add(1)
    exchange.request_size.observe(_length(asked))
    exchange.response_size.observe(_length(answered))
    _fine.observe(seconds)
    exchange.duration.observe(seconds)


def _length(headers: Headers) -> int:
    for name, value in headers:
        if name in _CONTENT_LENGTH:
            return int(value) if value.isdigit() and len(value) <= _LONGEST_LENGTH else 0
    return 0


@cache
def handler_of(route: str | None) -> str:
    """A route's template as FastAPI writes it: `/v1/models/<path:model>` is `/v1/models/{model}`."""
    if route is None:
        return NO_ROUTE
    plain = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"{\1}", route)
    plain = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", plain)
    return "/" + re.sub(r"[\^$\\?]", "", plain).removeprefix("/")
