"""What `opengate.yml` may say. A key left out has its default; a section left out is none of the file's business.

The shapes are here; `checking` asks the tables' own rules about bounds and addresses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from django.core.exceptions import ValidationError as RowError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    model_validator,
)

from accounts import models as accounts
from opengate.configuration.errors import Path
from routing import models as routing
from routing.zones import ZONES
from usage import matrix


def did_you_mean(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _one_of(choices: Iterable[str]) -> Callable[[str], str]:
    known = list(choices)

    def check(value: str) -> str:
        if value in known:
            return value
        near = did_you_mean(value, known)
        listed = f" Choose one of {', '.join(known)}." if len(known) < 20 and not near else ""
        raise ValueError(f"{value!r} is no choice here.{near}{listed}")

    return check


def _named(value: str) -> str:
    if not value.strip():
        raise ValueError("It must not be empty.")
    if value != value.strip():
        raise ValueError("It must not begin or end with white space.")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("It must be a number.")
    return value


def _limit(value: Any) -> int | None:
    """As the console's cells read it: unlimited, closed, or a number."""
    if value is None or isinstance(value, bool):
        raise ValueError("Write unlimited, closed or a whole number.")
    try:
        return matrix.value_of(" ".join(str(value).split()).lower())
    except RowError as error:
        raise ValueError(error.messages[0]) from None


Name = Annotated[StrictStr, AfterValidator(_named)]
Whole = Annotated[int, BeforeValidator(_number)]
Amount = Annotated[Decimal, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Limit = Annotated[int | None, BeforeValidator(_limit)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Organization(Entry):
    name: Name
    renamed_from: Name | None = None


class Limits(Entry):
    """How much a role may ask of a router; `default` is for the types that are not named."""

    default: Limit = 0
    rpm: Limit = 0
    rpd: Limit = 0
    tpm: Limit = 0
    tpd: Limit = 0

    @model_validator(mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, str) and value.strip().lower() in (matrix.UNLIMITED, matrix.CLOSED):
            return {"default": value}
        raise ValueError("Write unlimited, closed or a mapping of rpm, rpd, tpm and tpd.")

    def values(self) -> dict[str, int | None]:
        """By type; a type that is missing has no limit, which closes the router."""
        given = self.model_fields_set
        found = {str(type): str(type) if type in given else "default" for type in matrix.TYPES}
        return {type: getattr(self, name) for type, name in found.items() if name in given}


class Role(Entry):
    name: Name
    renamed_from: Name | None = None
    permissions: tuple[Annotated[StrictStr, AfterValidator(_one_of(accounts.Permission.values))], ...] = ()
    limits: dict[str, Limits] = {}


class FormerProvider(Entry):
    """What a provider was known by; what is left out has not changed."""

    url: StrictStr | None = None
    model_name: Name | None = None


class Provider(Entry):
    type: Annotated[StrictStr, AfterValidator(_one_of(routing.ProviderType.values))]
    url: StrictStr = ""
    key: StrictStr | None = None
    timeout: Whole = 300
    model_name: Name
    model_hosting_zone: Annotated[StrictStr, AfterValidator(_one_of(ZONES))] = "WOR"
    model_total_params: Whole = 0
    model_active_params: Whole = 0
    cost_prompt_tokens: Amount | None = None
    cost_completion_tokens: Amount | None = None
    qos_metric: Annotated[StrictStr, AfterValidator(_one_of(routing.Metric.values))] | None = None
    qos_limit: Real | None = None
    renamed_from: FormerProvider | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """An address and a key that are empty are none: `${KEY:-}` gives no key where there is none."""
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        if given.get("url") is None:
            given["url"] = ""
        if given.get("key") == "":
            given["key"] = None
        return given

    @property
    def address(self) -> str:
        return routing.Provider(type=self.type, url=self.url).completed_url()

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from others of its router."""
        return self.address, self.model_name

    def former_identity(self) -> tuple[str, str] | None:
        if self.renamed_from is None:
            return None
        url = self.renamed_from.url or self.url
        address = routing.Provider(type=self.type, url=url).completed_url()
        return address, self.renamed_from.model_name or self.model_name

    def columns(self) -> dict[str, Any]:
        """By the table's names."""
        return self.model_dump(exclude={"renamed_from"}) | {"url": self.address}


class Router(Entry):
    name: Name
    renamed_from: Name | None = None
    type: Annotated[StrictStr, AfterValidator(_one_of(routing.ModelType.values))]
    aliases: tuple[Name, ...] = ()
    load_balancing_strategy: Annotated[StrictStr, AfterValidator(_one_of(routing.LoadBalancingStrategy.values))] = (
        routing.LoadBalancingStrategy.SHUFFLE.value
    )
    cost_prompt_tokens: Amount = Decimal(0)
    cost_completion_tokens: Amount = Decimal(0)
    providers: tuple[Provider, ...] = ()

    def columns(self) -> dict[str, Any]:
        return self.model_dump(exclude={"renamed_from", "aliases", "providers"})


class Document(Entry):
    version: Literal[1] = 1
    organizations: tuple[Organization, ...] | None = None
    roles: tuple[Role, ...] | None = None
    routers: tuple[Router, ...] | None = None


def providers_of(document: Document) -> Iterator[tuple[Path, Provider]]:
    for index, router in enumerate(document.routers or ()):
        for number, provider in enumerate(router.providers):
            yield ("routers", index, "providers", number), provider
