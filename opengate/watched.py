"""Every request from its first byte to its last: its id, and for those who want them an access log and traces."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from django.conf import settings

from opengate import traces, work
from opengate.bodies import Application, Receive, Send
from opengate.request_id import new_request_id
from opengate.work import Work

access = logging.getLogger("opengate.access")

CLIENT_LEFT_STATUS = 499  # no answer was begun
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def watched(application: Application) -> Application:
    """The application, with a note of each request that it answers."""

    async def behind(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        noted = work.begin(Work(request_id=new_request_id()))
        if settings.ACCESS_LOG or settings.TRACES:
            await _told(application, noted, scope, receive, send)
        else:
            await application(scope, receive, send)

    return behind


async def _told(application: Application, noted: Work, scope: dict[str, Any], receive: Receive, send: Send) -> None:
    began = time.perf_counter()
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    span = _span(scope, method, noted) if settings.TRACES else None
    status, length = CLIENT_LEFT_STATUS, 0

    async def counted(message: Mapping[str, Any]) -> None:
        nonlocal status, length
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            length += len(message.get("body", b""))
        await send(message)

    try:
        await application(scope, receive, counted)
    except Exception:
        status = 500
        raise
    finally:
        route = _route(scope["path"], noted)
        if settings.ACCESS_LOG:
            duration_ms = round((time.perf_counter() - began) * 1000, 1)
            told = {"method": method, "route": route, "status": status, "duration_ms": duration_ms, "bytes": length}
            access.info("%s %s %s", method, route, status, extra={"fields": told})
        if span is not None:
            span.span.update_name(f"{method} {route}" if route else method)
            span.span.set_attributes({"http.response.status_code": status, **({"http.route": route} if route else {})})
            if noted.user_id is not None:
                span.span.set_attribute("user.id", str(noted.user_id))
            span.end(str(status) if status >= 500 else None)


def _route(path: str, noted: Work) -> str | None:
    """The pattern of the path: no path as it came, where anything may stand. None when there is no such route."""
    if noted.request is None:
        return path if noted.is_hot else None
    match = getattr(noted.request, "resolver_match", None)
    return f"/{match.route}" if match else None


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
