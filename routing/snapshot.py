"""All routers and providers in memory, immutable, as of one epoch: no SQL stands between a call and its model."""

from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from opengate import epoch
from opengate.epoch import Replica
from routing import models
from routing.errors import ModelNotFound, WrongModelType


@dataclass(frozen=True, slots=True)
class Provider:
    """One upstream; `url` ends with a slash, `timeout` is in seconds, parameters in billions.

    Costs are what the upstream charges for a million tokens, `vector_size` the numbers of an embedding; None: unknown.
    """

    id: int
    type: str
    url: str
    key: str | None = field(repr=False)
    timeout: int
    model_name: str
    zone: str
    total_params: int
    active_params: int
    qos_metric: str | None
    qos_limit: float | None
    cost_prompt_tokens: Decimal | None
    cost_completion_tokens: Decimal | None
    vector_size: int | None


@dataclass(frozen=True, slots=True)
class Router:
    """A model as callers know it; costs are prices of a million tokens, `created` is in Unix seconds."""

    id: int
    name: str
    type: str
    aliases: tuple[str, ...]
    strategy: str
    cost_prompt_tokens: Decimal
    cost_completion_tokens: Decimal
    owned_by: str | None
    created: int
    max_context_length: int | None
    providers: tuple[Provider, ...]

    @property
    def has_price(self) -> bool:
        return bool(self.cost_prompt_tokens or self.cost_completion_tokens)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`by_name` holds every router under its name and each of its aliases."""

    routers: tuple[Router, ...]
    by_name: Mapping[str, Router]

    def find(self, name: str) -> Router:
        """The router of a name or alias, exact and case-sensitive; raises ModelNotFound."""
        router = self.by_name.get(name)
        if router is None:
            raise ModelNotFound
        return router


def provider_of(row: models.Provider) -> Provider:
    """A provider as calls use it."""
    return Provider(
        id=row.id,
        type=row.type,
        url=row.url,
        key=row.key or None,
        timeout=row.timeout,
        model_name=row.model_name,
        zone=row.model_hosting_zone,
        total_params=row.model_total_params,
        active_params=row.model_active_params,
        qos_metric=row.qos_metric,
        qos_limit=row.qos_limit,
        cost_prompt_tokens=row.cost_prompt_tokens,
        cost_completion_tokens=row.cost_completion_tokens,
        vector_size=row.vector_size,
    )


def require_type(router: Router, types: Collection[str]) -> None:
    """Raises WrongModelType unless the router has one of the types, ModelNotFound when nobody serves it."""
    if router.type not in types:
        raise WrongModelType
    if not router.providers:
        raise ModelNotFound


def _load(_: None) -> Snapshot:
    rows = models.Router.objects.select_related("user__organization").prefetch_related("providers", "names")
    routers = tuple(_router(row) for row in rows)
    return Snapshot(routers, {name: router for router in routers for name in (router.name, *router.aliases)})


def _router(row: models.Router) -> Router:
    providers = list(row.providers.all())
    return Router(
        id=row.id,
        name=row.name,
        type=row.type,
        aliases=tuple(name.value for name in row.names.all() if name.is_alias),
        strategy=row.load_balancing_strategy,
        cost_prompt_tokens=row.cost_prompt_tokens,
        cost_completion_tokens=row.cost_completion_tokens,
        owned_by=row.user.organization.name if row.user and row.user.organization else None,
        created=int(row.created.timestamp()),
        max_context_length=providers[0].max_context_length if providers else None,
        providers=tuple(provider_of(provider) for provider in providers),
    )


_snapshots = Replica(_load, limit=1)


def current() -> Awaitable[Snapshot]:
    """The snapshot of the newest epoch this process knows; raises DatabaseAway when it must be read and cannot be."""
    return _snapshots.get(None)


async def latest() -> Snapshot:
    """The snapshot of the epoch in force: for whatever passes no admission."""
    await epoch.refresh()
    return await current()
