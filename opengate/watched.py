"""Every request from its first byte to its last: its id, its metrics, and for those who want them a log and traces."""

import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from opengate import http_metrics, traces, work
from opengate.bodies import Application, Receive, Send
from opengate.http_metrics import METHODS, Headers
from opengate.quick_settings import settings
from opengate.request_id import new_request_id
from opengate.work import Work

access = logging.getLogger("opengate.access")

CLIENT_LEFT_STATUS = 499  # no answer was begun


def watched(application: Application) -> Application:
    """The application, with a note of each request that it answers."""

    async def behind(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, send)
        try:
            await application(scope, receive, exchange.answer)
        except Exception:
            exchange.status = 500
            raise
        finally:
            exchange.tell()

    return behind


class _Exchange:
    """A request and what is known of its answer."""

    def __init__(self, scope: Mapping[str, Any], send: Send) -> None:
        self.began = time.perf_counter()
        self.work = work.begin(Work(request_id=new_request_id()))
        self.scope = scope
        self.send = send
        self.status = CLIENT_LEFT_STATUS
        self.headers: Headers = ()
        self.length = 0
        self.span = _span(scope, self.method, self.work) if settings.TRACES else None

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method if method in METHODS else "_OTHER"

    def answer(self, message: Mapping[str, Any]) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message.get("headers", ())
        else:
            self.length += len(message.get("body", b""))
        return self.send(message)

    def tell(self) -> None:
        seconds = time.perf_counter() - self.began
        route = self.work.route
        if route is None and self.scope["path"].startswith(settings.STATIC_URL):
            route = f"{settings.STATIC_URL}<path>"
        if settings.METRICS:
            http_metrics.count(self.scope["method"], route, self.status, self.scope["headers"], self.headers, seconds)
        if settings.ACCESS_LOG:
            told: dict[str, Any] = {"method": self.method, **({"route": route} if route else {}), "status": self.status}
            told |= {"duration_ms": round(seconds * 1000, 1), "bytes": self.length}
            access.info("%s %s %s", self.method, route or "(no route)", self.status, extra={"fields": told})
        if self.span is not None:
            about = {"http.route": route, "user.id": self.work.user_id and str(self.work.user_id)}
            about = {name: value for name, value in about.items() if value is not None}
            self.span.span.update_name(f"{self.method} {route}" if route else self.method)
            self.span.span.set_attributes({"http.response.status_code": self.status, **about})
            self.span.end(str(self.status) if self.status >= 500 else None)


def _span(scope: Mapping[str, Any], method: str, noted: Work) -> traces.Began:
    from opentelemetry.trace import SpanKind

    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    attributes = {
        "http.request.method": method,
        "url.scheme": scope.get("scheme", "http"),
        "opengate.request_id": noted.request_id or "",
    }
    return traces.Began(method, SpanKind.SERVER, carrier, attributes)
