"""Tasks in the log and in traces, as requests are there: each knows the request that queued it."""

import logging.config
from typing import Any

from celery import signals
from django.conf import settings

from opengate import sentry, traces, work
from opengate.work import Work


@signals.setup_logging.connect
def write_as_all_others_do(**told: Any) -> None:
    """In place of Celery's own set-up: its loggers, too, write through our handler, as OPENGATE_LOG_LEVEL says."""
    logging.config.dictConfig(settings.LOGGING)


@signals.before_task_publish.connect
def say_what_for(headers: dict[str, Any], **told: Any) -> None:
    """A task knows the request that queued it, and the trace of that."""
    if request_id := work.current().request_id:
        headers["request_id"] = request_id
    if traces.are_on():
        traces.carried_on(headers)


@signals.task_prerun.connect
def begin(task_id: str, task: Any, **told: Any) -> None:
    work.begin(Work(request_id=getattr(task.request, "request_id", None), task_id=task_id))
    if traces.are_on() and not work.is_tick(task.name):
        task.request.span = _span(task_id, task)


@signals.task_postrun.connect
def end(task: Any, state: str | None = None, **told: Any) -> None:
    span = getattr(task.request, "span", None)
    if span is not None:
        span.end(None if state == "SUCCESS" else state or "unknown")


@signals.worker_process_shutdown.connect
def close(**told: Any) -> None:
    traces.close()
    sentry.close()


def _span(task_id: str, task: Any) -> traces.Began:
    from opentelemetry.trace import SpanKind

    carrier = {name: value for name in ("traceparent", "tracestate") if (value := getattr(task.request, name, None))}
    attributes = {
        "messaging.system": "celery",
        "messaging.operation.type": "process",
        "messaging.destination.name": (task.request.delivery_info or {}).get("routing_key") or "",
        "messaging.message.id": task_id,
        **({"opengate.request_id": request_id} if (request_id := getattr(task.request, "request_id", None)) else {}),
    }
    return traces.Began(f"process {task.name}", SpanKind.CONSUMER, carrier, attributes)
