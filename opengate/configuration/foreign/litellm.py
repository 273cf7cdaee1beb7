"""LiteLLM's proxy `config.yaml`: entries of one `model_name` become one router with several providers.

Only upstreams of a dialect that we speak are carried over: OpenAI's, and what resembles it, Mistral's, vLLM's and
text-embeddings-inference's. Prices there are of a token, here of a million.
"""

import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from opengate.configuration.errors import Fault, InvalidFile, Path
from opengate.configuration.foreign import Conversion, Plain, plain
from opengate.configuration.foreign.litellm_words import (
    ALIKE,
    DIALECTS,
    MODES,
    OPENAI_NAMES,
    STRATEGIES,
    WHY_GENERAL,
    WHY_INFO,
    WHY_LITELLM,
    WHY_PARAMETER,
    WHY_ROUTER,
    WHY_SECTION,
)
from opengate.configuration.reading import Source
from routing.models import SERVED_BY, ModelType

ENVIRONMENT = "os.environ/"

COSTS = ("input_cost_per_token", "output_cost_per_token")
CARRIED_PARAMETERS = ("model", "api_base", "base_url", "api_key", "timeout", "max_parallel_requests", *COSTS)
RESOLVED = ("custom_llm_provider", "litellm_credential_name")


def convert(source: Source, variables: Mapping[str, str]) -> Conversion:
    """Raises InvalidFile where the file is no such configuration."""
    return _Reading(source, variables).conversion()


class _Reading:
    def __init__(self, source: Source, variables: Mapping[str, str]) -> None:
        if not isinstance(source.data, dict):
            raise InvalidFile(source.file, [Fault((), "It must be a mapping with model_list.")])
        self.data = source.data
        self.found = Conversion(source)
        own = self.section("environment_variables")
        # There, what the file says of the environment is what holds.
        self.variables = dict(variables) | {name: str(value) for name, value in own.items() if not _is_reference(value)}
        self.settings = self.section("router_settings")
        self.module = self.section("litellm_settings")
        self.credentials = self._credentials()
        self.routers: dict[str, dict[str, Any]] = {}
        self.prices: dict[str, set[tuple[Decimal | None, Decimal | None]]] = {}

    def section(self, name: str) -> Mapping[str, Any]:
        return _mapping(self.data.get(name))

    def conversion(self) -> Conversion:
        models = self.data.get("model_list") or []
        if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
            fault = Fault(("model_list",), "It must be a list of mappings.")
            raise InvalidFile(self.found.source.file, [fault], self.found.source.lines)
        strategy = self.strategy()
        for index, model in enumerate(models):
            self.model(("model_list", index), model)
        for name, router in self.routers.items():
            router["load_balancing_strategy"] = strategy
            self.price(name, router)
        self.aliases()
        self.report_settings()
        # What stood in the file itself is a secret of it.
        own = self.section("environment_variables")
        self.found.secrets |= {name: self.variables[name] for name in own if name in self.variables}
        return self.found

    def _credentials(self) -> Mapping[str, Mapping[str, Any]]:
        listed = self.data.get("credential_list")
        found = {}
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(one, dict) and isinstance(one.get("credential_values"), dict):
                found[str(one.get("credential_name"))] = one["credential_values"]
                self.found.carried(("credential_list", index), "It is with the providers that name it.")
                rest = {key: value for key, value in one["credential_values"].items() if key not in _CREDENTIALS}
                self.found.drop_rest(("credential_list", index, "credential_values"), rest, (), WHY_PARAMETER)
        return found

    def strategy(self) -> str:
        path: Path = ("router_settings", "routing_strategy")
        if "routing_strategy" not in self.settings:
            return "shuffle"
        given = str(self.settings["routing_strategy"])
        ours, difference = STRATEGIES.get(given, ("shuffle", "There is no such strategy: any provider comes first."))
        self.found.changed(path, f"It is {ours} now. {difference}")
        return ours

    # models

    def model(self, path: Path, model: Mapping[str, Any]) -> None:
        name, parameters = model.get("model_name"), model.get("litellm_params")
        info: Mapping[str, Any] = _mapping(model.get("model_info"))
        if not isinstance(name, str) or not isinstance(parameters, dict) or not parameters.get("model"):
            fault = Fault(path, "An entry has a model_name, and litellm_params with a model.")
            raise InvalidFile(self.found.source.file, [fault], self.found.source.lines)
        credential = str(parameters.get("litellm_credential_name", ""))
        if credential:
            if credential not in self.credentials:
                self.found.dropped(path, f"There is no credential {credential!r} in credential_list.")
                return
            parameters = {**self.credentials[credential], **parameters}
        place: Path = (*path, "litellm_params")
        if "*" in name or "*" in str(parameters["model"]):
            self.found.dropped(path, "A pattern stands for many models: each router needs a name of its own.")
            return
        served = self.dialect(place, parameters)
        if served is None:
            return
        dialect, upstream_name, default_url = served
        type = self.type(path, info, str(parameters["model"]))
        if type is None:
            return
        is_hosted = str(parameters["model"]).startswith("huggingface/")
        if is_hosted and type in (ModelType.TEXT_EMBEDDINGS_INFERENCE, ModelType.TEXT_CLASSIFICATION):
            dialect = "tei"
        if dialect not in SERVED_BY[type]:
            self.found.dropped(path, f"Providers of type {dialect} cannot serve {type} here.")
            return
        url = self.address(place, parameters, default_url, dialect)
        if url is None:
            return
        self.add(path, name, type, parameters, info, {"type": dialect, "url": url, "model_name": upstream_name})

    def skip(self, path: Path, why: str) -> None:
        """The whole entry that this is a place of."""
        self.found.dropped(path[:2], why)

    def dialect(self, path: Path, parameters: Mapping[str, Any]) -> tuple[str, str, str] | None:
        """Type of provider, name of the model there, and the address where none is given; None when we speak it not."""
        given = str(self.value((*path, "model"), parameters["model"]))
        prefix, slash, rest = given.partition("/")
        own = parameters.get("custom_llm_provider")
        if own:
            prefix, rest = str(own), given.removeprefix(f"{own}/")
        elif not slash:
            if not (OPENAI_NAMES.match(given) or parameters.get("api_base") or parameters.get("base_url")):
                self.skip(path, "The file does not say whose model it is: write openai/… or such.")
                return None
            prefix, rest = "openai", given
        if prefix in DIALECTS:
            return DIALECTS[prefix][0], rest, DIALECTS[prefix][1]
        if prefix == "huggingface" and (parameters.get("api_base") or parameters.get("base_url")):
            self.found.changed((*path, "model"), "The server at its address must speak OpenAI's dialect, or be TEI.")
            return "openai", rest, ""
        if prefix in ALIKE:
            self.found.changed((*path, "model"), f"{prefix} is spoken to in OpenAI's dialect.")
            return "openai", rest, ALIKE[prefix]
        self.skip(path, f"{prefix} has a dialect of its own, which is not spoken here.")
        return None

    def type(self, path: Path, info: Mapping[str, Any], model: str) -> ModelType | None:
        mode = info.get("mode")
        if mode is None:
            guessed = _guessed_type(model)
            if guessed != ModelType.TEXT_GENERATION:
                self.found.changed(path, f"There is no mode: its name says {guessed}.")
            return guessed
        if str(mode) not in MODES:
            self.skip(path, f"Calls of mode {str(mode)!r:.40} are not served.")
            return None
        return MODES[str(mode)]

    def address(self, path: Path, parameters: Mapping[str, Any], default: str, dialect: str) -> str | None:
        """Without /v1, which is ours to add."""
        key = "api_base" if parameters.get("api_base") else "base_url"
        given = parameters.get(key)
        if not given:
            if not default:
                self.skip(path, "The provider has no address.")
                return None
            return default
        if _is_reference(given):
            self.found.changed((*path, key), "The address of the variable is written out.")
        url = str(self.value((*path, key), given)).rstrip("/")
        if url.endswith("/v1"):
            return url.removesuffix("v1")
        if dialect == "openai":
            self.found.changed((*path, key), "It does not end in /v1, but calls go to /v1 of it.")
        return f"{url}/"

    def add(
        self,
        path: Path,
        name: str,
        type: ModelType,
        parameters: Mapping[str, Any],
        info: Mapping[str, Any],
        provider: dict[str, Any],
    ) -> None:
        router = self.routers.get(name)
        if router is not None and router["type"] != type:
            self.found.dropped(path, f"{name!r} is {router['type']} above: a router has one type.")
            return
        place: Path = (*path, "litellm_params")
        identity = (provider["url"], provider["model_name"])
        if router and any((one["url"], one["model_name"]) == identity for one in router["providers"]):
            self.found.dropped(path, "The same model at the same address is there twice: a second key is not needed.")
            return
        if router is None:
            router = self.routers[name] = {"name": plain(name), "type": str(type), "providers": []}
            self.found.routers.append(router)
            self.found.place(("routers", len(self.found.routers) - 1), path)
            self.found.carried((*path, "model_name"), f"It is router {name!r} of type {type}.")
        else:
            self.found.carried((*path, "model_name"), f"It is one more provider of router {name!r}.")
        ours: Path = ("routers", self.found.routers.index(router), "providers", len(router["providers"]))
        self.found.place(ours, path)
        self.found.carried(
            (*place, "model"), f"It is {provider['model_name']!r} of a provider of type {provider['type']}."
        )
        for key in ("api_base", "base_url"):
            if parameters.get(key):
                self.found.carried((*place, key))
        provider |= self.key(place, parameters) | self.timeout(place, parameters)
        provider |= self.costs(path, parameters, info, name)
        if parameters.get("max_parallel_requests"):
            provider |= {"qos_metric": "inflight", "qos_limit": parameters["max_parallel_requests"]}
            self.found.carried((*place, "max_parallel_requests"), "It is the qos_limit of inflight.")
        router["providers"].append({key: _kept(key, value) for key, value in provider.items()})
        known = (*CARRIED_PARAMETERS, *RESOLVED)
        own = self.entry(path)["litellm_params"]
        self.found.drop_rest(place, own, known, {**WHY_PARAMETER, **_other_costs(own)})
        self.found.drop_rest((*path, "model_info"), info, ("mode", *COSTS), {**WHY_INFO, **_other_costs(info)})
        if "mode" in info:
            self.found.carried((*path, "model_info", "mode"))
        rest = {key: value for key, value in self.entry(path).items() if key not in _ENTRY}
        self.found.drop_rest(path, rest, (), WHY_PARAMETER)

    def entry(self, path: Path) -> Mapping[str, Any]:
        return _mapping(self.data["model_list"][path[1]])

    def key(self, path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
        given = parameters.get("api_key")
        if given in (None, ""):
            return {}
        if _is_reference(given):
            self.found.carried((*path, "api_key"))
            return {"key": f"${{{str(given).removeprefix(ENVIRONMENT)}}}"}
        self.found.changed((*path, "api_key"), "The key stands in the file: in ours, a variable has it.")
        return {"key": Plain(given)}

    def timeout(self, path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The deployment's own, else the router's, else the module's; whole seconds."""
        for place, given in (
            ((*path, "timeout"), parameters.get("timeout")),
            (("router_settings", "timeout"), self.settings.get("timeout")),
            (("litellm_settings", "request_timeout"), self.module.get("request_timeout")),
        ):
            if given is None:
                continue
            try:
                seconds = Decimal(str(self.value(place, given)))
                whole = min(max(math.ceil(seconds), 1), 3600)
            except (InvalidOperation, ValueError, OverflowError):
                self.found.dropped(place, "It is no number of seconds.")
                return {}
            if whole != seconds:
                self.found.changed(place, f"It is {whole} seconds: whole ones, 3600 at most.")
            elif len(place) > 2:
                self.found.carried(place)
            return {"timeout": whole}
        return {}

    def costs(
        self, path: Path, parameters: Mapping[str, Any], info: Mapping[str, Any], router: str
    ) -> dict[str, Decimal]:
        """Of a million tokens, as the upstream charges them."""
        result: dict[str, Decimal] = {}
        for theirs, ours in zip(COSTS, ("cost_prompt_tokens", "cost_completion_tokens"), strict=True):
            section, given = ("model_info", info) if info.get(theirs) is not None else ("litellm_params", parameters)
            if given.get(theirs) is None:
                continue
            place: Path = (*path, section, theirs)
            try:
                exact = Decimal(str(self.value(place, given[theirs]))) * 1_000_000
                rounded = round(exact, 6)
            except (InvalidOperation, ValueError):
                self.found.dropped(place, "It is no number.")
                continue
            if not exact.is_finite() or not 0 <= exact < 10**12:
                self.found.dropped(place, "It is no cost.")
                continue
            result[ours] = rounded
            if rounded != exact:
                self.found.changed(place, f"It is {rounded:f} for a million tokens: six digits are kept.")
            else:
                self.found.carried(place, f"It is {ours}, of a million tokens.")
        self.prices.setdefault(router, set()).add((result.get(COST), result.get(COMPLETION_COST)))
        return result

    def price(self, name: str, router: dict[str, Any]) -> None:
        """What users pay: there, what the upstream charged; here a router has one price."""
        prices = self.prices[name]
        path: Path = ("model_list", _first(self.data["model_list"], name))
        known = {price for price in prices if price != (None, None)}
        if not known:
            message = "No price is given, and there is no table of prices here: calls are free until you set one."
            self.found.changed(path, message)
            return
        router[COST] = max(prompt or Decimal(0) for prompt, _ in known)
        router[COMPLETION_COST] = max(completion or Decimal(0) for _, completion in known)
        if len(prices) > 1:
            self.found.changed(path, "Its deployments cost differently: the router's price is the highest.")

    # settings

    def aliases(self) -> None:
        given = self.settings.get("model_group_alias")
        for alias, target in (given if isinstance(given, dict) else {}).items():
            path: Path = ("router_settings", "model_group_alias", alias)
            is_hidden = isinstance(target, dict) and bool(target.get("hidden"))
            name = target.get("model") if isinstance(target, dict) else target
            router = self.routers.get(str(name))
            held = {one for each in self.routers.values() for one in each.get("aliases", ())}
            if router is None:
                self.found.dropped(path, "Its model was not carried over.")
            elif alias in self.routers or alias in held:
                self.found.dropped(path, "A router has that name.")
            else:
                router.setdefault("aliases", []).append(plain(alias))
                self.found.place(("routers", self.found.routers.index(router), "aliases"), path)
                if is_hidden:
                    self.found.changed(path, "Aliases are shown with their model: none is hidden.")
                else:
                    self.found.carried(path)

    def report_settings(self) -> None:
        known = ("routing_strategy", "model_group_alias", "timeout")
        self.found.drop_rest(("router_settings",), self.settings, known, WHY_ROUTER)
        self.found.drop_rest(("litellm_settings",), self.module, ("request_timeout",), WHY_LITELLM)
        self.found.drop_rest(("general_settings",), self.section("general_settings"), (), WHY_GENERAL)
        for name in self.section("environment_variables"):
            self.found.changed(("environment_variables", name), "Set it in the environment.")
        sections = ("model_list", "router_settings", "litellm_settings", "general_settings", "environment_variables")
        self.found.drop_rest((), self.data, (*sections, "credential_list"), WHY_SECTION)
        each = "It stands with each provider that has no timeout of its own."
        if self.settings.get("timeout") is not None:
            self.found.changed(("router_settings", "timeout"), each)
            each = "The timeout of router_settings counts instead."
        if self.module.get("request_timeout") is not None:
            self.found.changed(("litellm_settings", "request_timeout"), each)

    def value(self, path: Path, given: Any) -> Any:
        """What a reference stands for; raises InvalidFile when that is not set."""
        if not _is_reference(given):
            return given
        name = str(given).removeprefix(ENVIRONMENT)
        if not self.variables.get(name):
            fault = Fault(path, f"The variable {name} is not set.")
            raise InvalidFile(self.found.source.file, [fault], self.found.source.lines)
        return self.variables[name]


COST, COMPLETION_COST = "cost_prompt_tokens", "cost_completion_tokens"
_CREDENTIALS = ("api_key", "api_base", "base_url")
_ENTRY = ("model_name", "litellm_params", "model_info")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(ENVIRONMENT)


def _kept(key: str, value: Any) -> Any:
    return value if key == "key" else plain(value)


def _other_costs(given: Mapping[str, Any]) -> Mapping[str, str]:
    told = {key: "Prices are of prompt and completion tokens only." for key in given if "cost" in key}
    return told | {key: "It is information only." for key in given if key.startswith("supports_")}


def _guessed_type(model: str) -> ModelType:
    name = model.lower()
    if "embed" in name or "bge-m3" in name or "/e5-" in name:
        return ModelType.TEXT_EMBEDDINGS_INFERENCE
    if "rerank" in name:
        return ModelType.TEXT_CLASSIFICATION
    return ModelType.AUTOMATIC_SPEECH_RECOGNITION if "whisper" in name else ModelType.TEXT_GENERATION


def _first(models: list[Any], name: str) -> int:
    return next(index for index, model in enumerate(models) if model.get("model_name") == name)
