"""The rows that a file may describe, as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Count

from accounts.models import Organization, Permission, Role, User
from routing.models import Provider, Router, RouterName
from usage.models import Limit

DESCRIBED = (Organization, Role, Router, RouterName, Provider, Limit)
LOCK_SECONDS = 30

Identity = tuple[str, str]  # address and model, which tell a provider from others of its router


@dataclass(frozen=True)
class Rows:
    organizations: Mapping[str, Organization]
    roles: Mapping[str, Role]
    routers: Mapping[str, Router]
    aliases: Mapping[int, list[str]]  # by the router's id, oldest first
    providers: Mapping[int, dict[Identity, Provider]]  # by the router's id
    limits: Mapping[int, dict[int, dict[str, int | None]]]  # by ids of role and router, and type
    users: Mapping[int, int]  # how many have the role
    members: Mapping[int, int]  # how many the organization has
    open_roles: frozenset[int]  # roles of accounts that have not expired


def lock() -> None:
    """Keep everybody else from changing these rows until the transaction ends; readers, and so calls, do not wait.

    Two that apply a file wait for each other here, and the console and the API wait for either.
    """
    names = ", ".join(connection.ops.quote_name(model._meta.db_table) for model in DESCRIBED)
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        cursor.execute(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


def load() -> Rows:
    """A handful of statements, however many rows."""
    aliases: dict[int, list[str]] = {}
    for name in RouterName.objects.aliases().order_by("id"):
        aliases.setdefault(name.router_id, []).append(name.value)
    providers: dict[int, dict[Identity, Provider]] = {}
    for provider in Provider.objects.order_by("id"):
        providers.setdefault(provider.router_id, {})[provider.url, provider.model_name] = provider
    limits: dict[int, dict[int, dict[str, int | None]]] = {}
    for limit in Limit.objects.order_by("id"):
        limits.setdefault(limit.role_id, {}).setdefault(limit.router_id, {})[limit.type] = limit.value
    return Rows(
        organizations={row.name: row for row in Organization.objects.all()},
        roles={row.name: row for row in Role.objects.all()},
        routers={row.name: row for row in Router.objects.all()},
        aliases=aliases,
        providers=providers,
        limits=limits,
        users=_counts("role"),
        members=_counts("organization"),
        open_roles=frozenset(User.objects.open().order_by().values_list("role", flat=True).distinct()),
    )


def _counts(field: str) -> Mapping[int, int]:
    rows: Any = User.objects.order_by().values_list(field).annotate(Count("pk"))
    return dict(rows)


def administrators(roles: Mapping[int, list[str]], open_roles: frozenset[int]) -> bool:
    """Whether anybody can administer, when the roles have these permissions."""
    return any(Permission.ADMIN in held for id, held in roles.items() if id in open_roles)
