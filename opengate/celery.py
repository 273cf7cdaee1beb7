"""The Celery application: background work of all apps, told in the log and in traces as requests are."""

import logging
import logging.config
import os
from pathlib import Path
from typing import Any

import redis
from celery import Celery, bootsteps, signals
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")

HEARTBEAT_SECONDS = 10.0
WORKED = "opengate:worked"
_WORKED = "redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])"

logger = logging.getLogger(__name__)

app = Celery("opengate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


class Heartbeat(bootsteps.StartStopStep):
    """Touches WORKER_HEARTBEAT while the worker's loop runs and is connected: to ask it costs a probe no Python."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None

    def start(self, consumer: Any) -> None:
        if settings.WORKER_HEARTBEAT:
            _beat(settings.WORKER_HEARTBEAT)
            self._timer = consumer.timer.call_repeatedly(HEARTBEAT_SECONDS, _beat, (settings.WORKER_HEARTBEAT,))

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _beat(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        logger.error("OPENGATE_WORKER_HEARTBEAT: %s cannot be touched: %s.", file, error.strerror)


app.steps["consumer"].add(Heartbeat)


@signals.setup_logging.connect
def write_as_all_others_do(**told: Any) -> None:
    """In place of Celery's own set-up: its loggers, too, write through our handler, as OPENGATE_LOG_LEVEL says."""
    logging.config.dictConfig(settings.LOGGING)


@signals.before_task_publish.connect
def say_what_for(headers: dict[str, Any], **told: Any) -> None:
    """A task knows the request that queued it, and the trace of that."""
    from opengate import traces, work

    if request_id := work.current().request_id:
        headers["request_id"] = request_id
    if traces.are_on():
        traces.carried_on(headers)


@signals.task_prerun.connect
def begin(task_id: str, task: Any, **told: Any) -> None:
    from opengate import traces, work

    work.begin(work.Work(request_id=getattr(task.request, "request_id", None), task_id=task_id))
    if traces.are_on() and not work.is_tick(task.name):
        task.request.span = _span(task_id, task)


@signals.task_postrun.connect
def end(task: Any, state: str | None = None, **told: Any) -> None:
    span = getattr(task.request, "span", None)
    if span is not None:
        span.end(None if state == "SUCCESS" else state or "unknown")


@signals.worker_process_shutdown.connect
def close(**told: Any) -> None:
    from opengate import sentry, traces

    traces.close()
    sentry.close()


def _span(task_id: str, task: Any) -> Any:
    from opentelemetry.trace import SpanKind

    from opengate import traces

    carrier = {name: value for name in ("traceparent", "tracestate") if (value := getattr(task.request, name, None))}
    attributes = {
        "messaging.system": "celery",
        "messaging.operation.type": "process",
        "messaging.destination.name": (task.request.delivery_info or {}).get("routing_key") or "",
        "messaging.message.id": task_id,
        **({"opengate.request_id": request_id} if (request_id := getattr(task.request, "request_id", None)) else {}),
    }
    return traces.Began(f"process {task.name}", SpanKind.CONSUMER, carrier, attributes)


@signals.task_postrun.connect
def _worked(task: Any, **kwargs: Any) -> None:
    """Remember when a queue's last task ended, by Redis' clock: so a worker that is away shows."""
    from opengate import redis as opengate_redis

    queue = (task.request.delivery_info or {}).get("routing_key")
    if queue in {known.name for known in app.conf.task_queues}:
        with opengate_redis.sync_client() as client:
            try:
                client.eval(_WORKED, 1, WORKED, queue)
            except (redis.RedisError, OSError):
                pass  # the tasks themselves have more to say of it
