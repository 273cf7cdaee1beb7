"""OpenGateLLM's `config.yml`: its models become routers; the rest are settings of the process, and reported.

References are the same as ours, but names are of capitals, digits and underscores. As there, a model of which a
name is taken is skipped: what exists wins.
"""

from collections.abc import Mapping
from typing import Any

from opengate.configuration.errors import Fault, InvalidFile, Path
from opengate.configuration.foreign import Conversion, Plain
from opengate.configuration.reading import Source

ROUTER = ("name", "type", "aliases", "load_balancing_strategy", "cost_prompt_tokens", "cost_completion_tokens")
PROVIDER = (
    "type",
    "url",
    "key",
    "timeout",
    "model_name",
    "model_hosting_zone",
    "model_total_params",
    "model_active_params",
    "qos_metric",
    "qos_limit",
)
FORMER = {  # names of before 0.4
    "model_carbon_footprint_zone": "model_hosting_zone",
    "model_carbon_footprint_total_params": "model_total_params",
    "model_carbon_footprint_active_params": "model_active_params",
}
WHY_MODEL = {
    "owned_by": "The owner of a model is the organization of whoever made it, else OPENGATE_APP_TITLE.",
    "vector_size": "Providers are asked for it.",
    "max_context_length": "Providers are asked for it.",
}
WHY_PROVIDER = {
    "max_parallel_requests": "It has no effect at 0.4.1, either: write qos_metric inflight and a qos_limit.",
    "name": "Providers have no names: the model and its address tell them apart.",
}
WHY_DEPENDENCY = {
    "postgres": "Set DATABASE_URL; the driver is not part of it.",
    "redis": "Set REDIS_URL.",
    "elasticsearch": "Documents live in Postgres: nothing else is needed.",
    "qdrant": "Documents live in Postgres: nothing else is needed.",
    "celery": "Workers use REDIS_URL and Postgres.",
    "albert": "Documents are parsed here; see docs/documents.md.",
    "marker": "Documents are parsed here; see docs/documents.md.",
}
WHY_SETTING = {
    "app_title": "Set OPENGATE_APP_TITLE.",
    "routing_max_retries": "Calls wait up to OPENGATE_ROUTING_MAX_WAIT_SECONDS for a provider.",
    "routing_retry_countdown": "Calls wait up to OPENGATE_ROUTING_MAX_WAIT_SECONDS for a provider.",
    "routing_max_priority": "Set OPENGATE_ROUTING_MAX_PRIORITY.",
    "usage_tokenizer": "What the upstream counted is billed.",
    "log_level": "Set OPENGATE_LOG_LEVEL.",
    "auth_master_key": "There is no master key: manage.py createadmin makes a user who administers.",
    "auth_secret_key": "Keys have secrets of their own: set OPENGATE_KEY_SECRETS.",
    "auth_key_max_expiration_days": "Set OPENGATE_KEY_MAX_EXPIRATION_DAYS.",
    "auth_playground_session_duration": "Set OPENGATE_PLAYGROUND_SESSION_SECONDS.",
    "auth_login_session_duration": "Set OPENGATE_PLAYGROUND_SESSION_SECONDS.",
    "rate_limiting_strategy": "Set OPENGATE_RATE_LIMITING_STRATEGY.",
    "monitoring_postgres_enabled": "Usage is always recorded: budgets need it.",
    "monitoring_prometheus_enabled": "/metrics is always there, for whose role may read it.",
    "vector_store_model": "Set OPENGATE_EMBEDDING_MODEL to the router's name.",
    "session_secret_key": "Set OPENGATE_SECRET_KEY.",
    "disabled_routers": "Groups of paths cannot be closed here: a reverse proxy can.",
    "hidden_routers": "The document of the API shows all of it.",
    "front_url": "The playground is part of the gateway: /playground.",
}


def convert(source: Source, variables: Mapping[str, str]) -> Conversion:
    """Raises InvalidFile where the file is no such configuration."""
    if not isinstance(source.data, dict):
        raise InvalidFile(source.file, [Fault((), "It must be a mapping with models.")])
    found = Conversion(source)
    models = source.data.get("models") or []
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise InvalidFile(source.file, [Fault(("models",), "It must be a list of mappings.")], source.lines)
    names: set[str] = set()
    for index, model in enumerate(models):
        _model(found, ("models", index), model, names)
    for section, value in source.data.items():
        if section == "dependencies" or section == "settings":
            why = WHY_DEPENDENCY if section == "dependencies" else WHY_SETTING
            for key in value if isinstance(value, dict) else ():
                found.dropped((section, key), why.get(key) or _reason(key))
        elif section != "models":
            found.dropped((section,), "OpenGate has no such section.")
    return found


def _reason(key: str) -> str:
    if key.startswith("swagger_"):
        return "The page of the API is at /docs; OPENGATE_APP_TITLE is its title."
    if key.startswith("playground_"):
        return "The playground is part of the gateway, and looks like it."
    if key.startswith("auth_"):
        return "Signing in is set by variables: see docs."
    return "It is no setting of OpenGate's."


def _model(found: Conversion, path: Path, model: Mapping[str, Any], names: set[str]) -> None:
    taken = names & {str(model.get("name")), *map(str, _list(model.get("aliases")))}
    if taken:
        found.dropped(path, f"{', '.join(map(repr, sorted(taken)))} is a name of a model above: the first one wins.")
        return
    names |= {str(model.get("name")), *map(str, _list(model.get("aliases")))}
    router = {key: model[key] for key in ROUTER if model.get(key) is not None}
    for key in router:
        found.carried((*path, key))
    found.drop_rest(path, model, (*ROUTER, "providers"), WHY_MODEL)
    router["providers"] = []
    number = len(found.routers)
    found.place(("routers", number), path)
    for key in router:
        found.place(("routers", number, key), (*path, key))
    seen: set[tuple[str, str]] = set()
    for index, provider in enumerate(_list(model.get("providers"))):
        place: Path = (*path, "providers", index)
        if not isinstance(provider, dict):
            message = "A provider must be a mapping."
            raise InvalidFile(found.source.file, [Fault(place, message)], found.source.lines)
        identity = (str(provider.get("url") or "").rstrip("/"), str(provider.get("model_name")))
        if identity in seen:
            found.dropped(place, "The same model at the same address is there twice.")
            continue
        seen.add(identity)
        ours: Path = ("routers", number, "providers", len(router["providers"]))
        found.place(ours, place)
        router["providers"].append(_provider(found, place, ours, provider))
    found.routers.append(router)


def _provider(found: Conversion, path: Path, ours: Path, provider: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in provider.items():
        name = FORMER.get(key, key)
        if name not in PROVIDER or value is None:
            continue
        found.place((*ours, name), (*path, key))
        result[name] = Plain(value) if name == "key" and "${" not in str(value) else value
        if name != key:
            found.changed((*path, key), f"It is called {name} now.")
        elif name == "key" and isinstance(result[name], Plain):
            found.changed((*path, key), "The key stands in the file: in ours, a variable has it.")
        elif name == "qos_metric" and value in ("ttft", "latency", "performance"):
            found.changed((*path, key), "It had no effect there; here it steers calls: see docs/routing.md.")
        elif name == "qos_limit" and not provider.get("qos_metric"):
            found.changed((*path, key), "Without a qos_metric it has no effect.")
        else:
            found.carried((*path, key))
    found.drop_rest(path, provider, (*PROVIDER, *FORMER), WHY_PROVIDER)
    if provider.get("type") == "mistral" and not provider.get("url"):
        found.changed((*path, "url"), "Without an address it is Mistral's own; 0.4.1 asked Albert's.")
    return result


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
