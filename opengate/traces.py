"""Traces by OpenTelemetry: off unless OPENGATE_TRACES says so, and then nothing of it is imported.

The collector and whatever else concerns sending is told by OpenTelemetry's own variables, `OTEL_…`. Spans are sent from
a thread of their own; those that a slow or dead collector does not take are dropped.
"""

import atexit
import logging
import threading
from collections.abc import Mapping, MutableMapping
from functools import cache
from typing import TYPE_CHECKING, Any

from opengate.quick_settings import settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0  # what is left for the last spans when a process ends


def are_on() -> bool:
    return bool(settings.TRACES)


@cache
def _provider() -> Any:
    """Made at the first span, in the process that makes it: threads do not live through a fork.

    One that makes nothing, where OpenTelemetry does not understand its variables.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.name": settings.OTEL_SERVICE_NAME, "service.version": settings.VERSION}
    try:
        provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        logger.error("There are no traces: a variable OTEL_… is wrong (%s).", error)
        return trace.NoOpTracerProvider()
    atexit.register(close)
    return provider


@cache
def tracer() -> "Tracer":
    made: Tracer = _provider().get_tracer("opengate", settings.VERSION)
    return made


@cache
def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def start() -> None:
    """Load what the first span would wait for."""
    if are_on():
        tracer()


def close() -> None:
    """Send the last spans, as far as the collector takes them at once."""
    if _provider.cache_info().currsize:
        sending = threading.Thread(target=getattr(_provider(), "shutdown", int), daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)


def here() -> "Context | None":
    """What a span made now would be part of; None when there are no traces."""
    if not are_on():
        return None
    from opentelemetry import context

    return context.get_current()


def ids() -> dict[str, str]:
    """Of the current span, by the names of the log's fields."""
    if not are_on():
        return {}
    from opentelemetry import trace

    about = trace.get_current_span().get_span_context()
    if not about.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(about.trace_id), "span_id": trace.format_span_id(about.span_id)}


def carried_on(carrier: MutableMapping[str, str]) -> None:
    """Tell whoever reads the headers which span they come from."""
    _propagator().inject(carrier)


class Began:
    """A span that is the current one until it ends, in the context that began it."""

    def __init__(self, name: str, kind: "SpanKind", carrier: Mapping[str, str], attributes: Mapping[str, Any]) -> None:
        from opentelemetry import context, trace

        self.span: Span = tracer().start_span(
            name, context=_propagator().extract(carrier), kind=kind, attributes=dict(attributes)
        )
        self._token = context.attach(trace.set_span_in_context(self.span))

    def end(self, error: str | None = None) -> None:
        """`error` is a word for what went wrong."""
        from opentelemetry import context
        from opentelemetry.trace import StatusCode

        if error is not None:
            self.span.set_attribute("error.type", error)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
        context.detach(self._token)
