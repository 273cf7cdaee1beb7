"""Providers and routers as calls see them, out of nothing."""

from decimal import Decimal
from typing import Any

from opengate import redis as opengate_redis
from opengate.loops import in_loop
from routing import circuit
from routing.snapshot import Provider, Router


def provider(id: int, **fields: Any) -> Provider:
    plain: dict[str, Any] = {
        "type": "openai",
        "url": "http://127.0.0.1:9/",
        "key": None,
        "timeout": 5,
        "model_name": f"model-{id}",
        "zone": "WOR",
        "total_params": 0,
        "active_params": 0,
        "qos_metric": None,
        "qos_limit": None,
        "cost_prompt_tokens": None,
        "cost_completion_tokens": None,
        "vector_size": None,
    }
    return Provider(id=id, **plain | fields)


def router(strategy: str, *providers: Provider) -> Router:
    return Router(
        id=1,
        name="model",
        type="text-generation",
        aliases=(),
        strategy=strategy,
        cost_prompt_tokens=Decimal(0),
        cost_completion_tokens=Decimal(0),
        owned_by=None,
        created=0,
        max_context_length=None,
        providers=providers,
    )


def count_outage(provider_id: int) -> None:
    """As a call does that finds its provider away."""
    in_loop(opengate_redis.trip(circuit.failed(provider_id)))
