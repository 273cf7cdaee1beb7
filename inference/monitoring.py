"""What watches the gateway asks: the health of models, and metrics."""

import asyncio
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import django
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from ninja import Router as Routes
from ninja import Schema
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from prometheus_client.registry import Collector
from pydantic import Field
from redis.exceptions import RedisError

from accounts.authentication import HTTPBearer
from accounts.models import Permission
from inference import health
from inference.api import caller
from inference.catalogue import visible
from inference.health import Status
from inference.responses import CallError
from knowledge import backlog
from opengate import metrics as opengate_metrics
from opengate import redis as opengate_redis
from opengate.database import in_thread, in_time
from opengate.errors import APIError, DatabaseAway
from opengate.heartbeat import WORKED
from opengate.loops import PerLoop
from opengate.redis import RedisAway
from routing import load, snapshot
from routing.circuit import State
from routing.load import Load
from routing.snapshot import Router
from usage import measures, spool
from usage.models import Reservation

_reader = ThreadPoolExecutor(1, "metrics-files")
LONGEST_SECONDS: Final = 2.0  # for what Postgres is asked by a scrape, which is given up after ten seconds

routes = Routes(tags=["Monitoring"])


class ModelHealth(Schema):
    """Whether a model can be called now."""

    id: str = Field(description="Name of the model.")
    status: Status = Field(
        description="`green`: all providers take calls; `yellow`: some are away, or calls wait; `red`: all are away."
    )


class ModelsHealth(Schema):
    """The models that the caller may use, with their health."""

    data: list[ModelHealth] = Field(description="The models.")


@routes.get(
    "/health/models",
    auth=HTTPBearer(),
    response={200: ModelsHealth, 401: CallError, 503: CallError},
    summary="Ask how the models are",
    operation_id="health_models",
)
async def health_models(request: HttpRequest) -> ModelsHealth:
    """The health of the models you may use. An upstream is asked once in 15 seconds at most."""
    routers = await visible(caller(request))
    found = zip(routers, await health.of(routers), strict=True)
    return ModelsHealth(data=[ModelHealth(id=router.name, status=status) for router, status in found])


@routes.get(
    "/metrics",
    auth=HTTPBearer(permission=Permission.READ_METRIC, patience_seconds=LONGEST_SECONDS),
    response={200: str, 401: CallError, 403: CallError, 404: CallError, 503: CallError},
    summary="Get metrics",
    operation_id="metrics",
    openapi_extra={"responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}},
)
async def metrics(request: HttpRequest) -> HttpResponse:
    """All metrics in Prometheus' text format, the same from every process; what is away is said to be away."""
    if not settings.METRICS:
        raise APIError("Not Found", status=404)
    stored, waits, routers, counted = await asyncio.gather(
        _stored(), _waits(), _routers(), asyncio.get_running_loop().run_in_executor(_reader, opengate_metrics.read)
    )
    loads = await _loads(routers)
    names = {router.name for router in routers} | {measures.OTHER}
    found = [*_shown(counted, names), *_states(routers, loads), *waits, *stored, _build()]
    return HttpResponse(generate_latest(_Metrics(found)), content_type=CONTENT_TYPE_PLAIN_1_0_0)


class _Metrics(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self.metrics


_last_routers: tuple[Router, ...] = ()


async def _routers() -> tuple[Router, ...]:
    """The routers there are, or those there were when Postgres answered last."""
    global _last_routers
    try:
        _last_routers = (await in_time(snapshot.current(), LONGEST_SECONDS)).routers
    except DatabaseAway:
        pass
    return _last_routers


def _shown(counted: Sequence[Metric], models: Collection[str]) -> Iterator[Metric]:
    """What was counted, without models that are gone."""
    for metric in counted:
        if metric.name.startswith("ogl_inference_") and _last_routers:
            metric.samples = [sample for sample in metric.samples if sample.labels["model"] in models]
        yield metric


def _gauge(name: str, documentation: str, value: float | None = None, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value, labels=labels or None)


def _build() -> Metric:
    build = _gauge("ogl_build_info", "1, with what runs.", labels=("version", "python", "django"))
    version: Any = settings.SPECTACULAR_SETTINGS["VERSION"]
    build.add_metric([version, platform.python_version(), django.get_version()], 1)
    return build


# What Redis knows


async def _loads(routers: Sequence[Router]) -> tuple[Mapping[int, Load], Mapping[int, int]]:
    try:
        loads = await load.of(provider.id for router in routers for provider in router.providers)
        return loads, await load.waiting(router.id for router in routers)
    except (RedisAway, RedisError):
        return {}, {}


def _states(routers: Sequence[Router], known: tuple[Mapping[int, Load], Mapping[int, int]]) -> Iterator[Metric]:
    loads, lines = known
    labels = ("router", "provider")
    inflight = _gauge("ogl_provider_inflight_requests", "Calls in flight.", labels=labels)
    circuits = _gauge(
        "ogl_provider_circuit", "1 for the state that the circuit breaker is in.", labels=(*labels, "state")
    )
    waiting = _gauge("ogl_router_waiting_requests", "Calls that wait for a place.", labels=("router",))
    for router in routers:
        if router.id in lines:
            waiting.add_metric([router.name], lines[router.id])
        for provider in router.providers:
            now = loads.get(provider.id)
            if now is not None:
                values = [router.name, str(provider.id)]
                inflight.add_metric(values, now.inflight)
                for state in State:
                    circuits.add_metric([*values, state.value], state == now.circuit.state)
    yield from (inflight, circuits, waiting)


async def _waits() -> list[Metric]:
    """Whether Redis answers, what waits in it, and when it was last taken."""
    up = partial(_gauge, "ogl_redis_up", "Whether Redis answered, in time, what a scrape asks.")
    names = [queue.name for queue in settings.CELERY_TASK_QUEUES]
    lengths = [("LLEN", name) for name in names]
    try:
        spooled = await spool.backlog()
        (now, _), taken, worked, *waiting = await opengate_redis.trip(
            ("TIME",), ("HLEN", "unacked"), ("HMGET", WORKED, *names), *lengths
        )
    except (RedisAway, RedisError):
        return [up(0)]
    queues = _gauge("ogl_queue_tasks", "Tasks that wait for a worker.", labels=("queue",))
    ages = _gauge(
        "ogl_worker_last_task_age_seconds", "How long ago a worker ended a task of this queue.", labels=("queue",)
    )
    for queue, length, at in zip(names, waiting, worked, strict=True):
        queues.add_metric([queue], length)
        if at is not None:
            ages.add_metric([queue], max(int(now) - int(at), 0))
    return [
        up(1),
        _gauge("ogl_usage_spool_records", "Settled calls that wait to be stored.", spooled.records),
        _gauge("ogl_usage_spool_oldest_age_seconds", "How long the oldest of them waits.", spooled.oldest_seconds),
        _gauge("ogl_usage_spool_rejected_records", "Records that cannot be stored, put aside.", spooled.rejected),
        queues,
        _gauge("ogl_queue_unacknowledged_tasks", "Tasks that a worker has taken and not finished.", taken),
        ages,
    ]


# What Postgres knows


_asker = ThreadPoolExecutor(1, "metrics")  # a Postgres that hangs keeps this thread from no call


class _Stored(NamedTuple):
    backlog: backlog.Backlog
    reservations: int
    expired_reservations: int


@dataclass(slots=True)
class _Question:
    """What one event loop asks Postgres."""

    task: asyncio.Task[_Stored] | None = None


_question = PerLoop(_Question)


async def _stored() -> list[Metric]:
    """Whether Postgres answers, documents by status, and reservations. While it hangs it is asked only once."""
    question = _question()
    if question.task is None or question.task.done():
        question.task = asyncio.ensure_future(in_thread(_look, _asker)())
    up = partial(_gauge, "ogl_postgres_up", "Whether Postgres answered, in time, what a scrape asks.")
    try:
        found = await in_time(question.task, LONGEST_SECONDS)
    except (DatabaseAway, DatabaseError):
        return [up(0)]
    by_status = _gauge("ogl_documents", "Documents; in a large table finished ones are estimated.", labels=("status",))
    for status, count in found.backlog.documents.items():
        by_status.add_metric([status], count)
    return [
        up(1),
        by_status,
        _gauge(
            "ogl_documents_oldest_due_age_seconds",
            "How long the document waits for a worker that has waited longest.",
            found.backlog.oldest_seconds,
        ),
        _gauge("ogl_reservations", "Calls under way whose cost is held.", found.reservations),
        _gauge(
            "ogl_reservations_expired", "Those of processes that died, not settled yet.", found.expired_reservations
        ),
    ]


def _look() -> _Stored:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{LONGEST_SECONDS * 1000:.0f}ms"])
        held = Reservation.objects.order_by()
        expired = held.filter(expires__lt=Now())
        most = backlog.MOST_COUNTED
        return _Stored(backlog.look(), held[:most].count(), expired[:most].count())
