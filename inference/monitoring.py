"""What watches the gateway asks: the health of models, and metrics."""

from collections.abc import Iterator, Mapping

from django.http import HttpRequest, HttpResponse
from ninja import Router as Routes
from ninja import Schema
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from prometheus_client.registry import Collector
from pydantic import Field

from accounts.authentication import HTTPBearer
from accounts.models import Permission
from inference import health
from inference.api import caller, visible
from inference.health import Status
from inference.responses import CallError
from opengate.redis import RedisAway
from routing import load, snapshot
from routing.circuit import State
from routing.load import Load
from routing.snapshot import Router

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
    auth=HTTPBearer(permission=Permission.READ_METRIC),
    response={200: str, 401: CallError, 403: CallError, 503: CallError},
    summary="Get metrics",
    operation_id="metrics",
    openapi_extra={"responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}},
)
async def metrics(request: HttpRequest) -> HttpResponse:
    """Gauges of providers and routers in Prometheus' text format, the same from every process."""
    routers = (await snapshot.current()).routers
    try:
        loads = await load.of(provider.id for router in routers for provider in router.providers)
        waiting = await load.waiting(router.id for router in routers)
    except RedisAway:
        loads, waiting = {}, {}
    registry = CollectorRegistry()
    registry.register(_Gauges(routers, loads, waiting))
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_1_0_0)


class _Gauges(Collector):
    def __init__(self, routers: tuple[Router, ...], loads: Mapping[int, Load], waiting: Mapping[int, int]) -> None:
        self.routers, self.loads, self.waiting = routers, loads, waiting

    def collect(self) -> Iterator[Metric]:
        labels = ["router", "provider"]
        inflight = GaugeMetricFamily("ogl_provider_inflight_requests", "Calls in flight.", labels=labels)
        circuits = GaugeMetricFamily(
            "ogl_provider_circuit", "1 for the state that the circuit breaker is in.", labels=[*labels, "state"]
        )
        waiting = GaugeMetricFamily("ogl_router_waiting_requests", "Calls that wait for a place.", labels=["router"])
        for router in self.routers:
            if router.id in self.waiting:
                waiting.add_metric([router.name], self.waiting[router.id])
            for provider in router.providers:
                now = self.loads.get(provider.id)
                if now is not None:
                    values = [router.name, str(provider.id)]
                    inflight.add_metric(values, now.inflight)
                    for state in State:
                        circuits.add_metric([*values, state.value], state == now.circuit.state)
        yield from (inflight, circuits, waiting)
