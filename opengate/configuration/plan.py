"""What would change for a file to be true: found without changing anything, shown without any secret."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlsplit

from django.db.models import Model

from accounts import models as accounts
from accounts.errors import LastAdministrator
from opengate.configuration.current import Rows, administrators
from opengate.configuration.document import (
    Document,
    Provider,
    Role,
    Router,
    did_you_mean,
)
from opengate.configuration.errors import Fault, Path
from routing import models as routing
from usage.matrix import TYPES
from usage.models import in_words

CHANGED, SET, NONE = "(changed)", "(set)", "(none)"  # all that is told of a secret

Action = Literal["create", "update", "delete", "leave"]
Kind = Literal["organization", "role", "router", "provider"]


@dataclass(frozen=True)
class Options:
    """How a file is meant."""

    prune: bool = False  # what it lacks is deleted
    keep_keys: bool = False  # keys of providers stay as they are
    unset: frozenset[Path] = frozenset()  # keys of which nothing is known but that they stay
    adds_only: bool = False  # what exists wins: for the files of others


@dataclass(frozen=True)
class Change:
    """One row that changes, or that the file lacks; `fields` are name, from and to, in words."""

    action: Action
    kind: Kind
    name: str
    router: str | None = None  # of a provider
    fields: tuple[tuple[str, Any, Any], ...] = ()
    row: Any = field(default=None, compare=False)
    entry: Any = field(default=None, compare=False)

    def names(self) -> set[str]:
        return {name for name, _, _ in self.fields}


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...] = ()
    left: tuple[Change, ...] = ()  # what the file lacks, and stays
    notes: tuple[Fault, ...] = ()
    faults: tuple[Fault, ...] = ()  # why it cannot be applied

    def count(self, action: Action) -> int:
        return sum(change.action == action for change in self.changes)


def compare(document: Document, rows: Rows, options: Options) -> Plan:
    """What to change of the rows for the document to be true."""
    return _Comparison(document, rows, options).plan()


class _Comparison:
    def __init__(self, document: Document, rows: Rows, options: Options) -> None:
        self.document = document
        self.rows = rows
        self.options = options
        self.changes: list[Change] = []
        self.left: list[Change] = []
        self.notes: list[Fault] = []
        self.faults: list[Fault] = []
        self.names: dict[int, str] = {}  # of routers that stay, by id, as they will be

    def plan(self) -> Plan:
        self.organizations()
        self.routers()
        self.roles()
        return Plan(tuple(self.changes), tuple(self.left), tuple(self.notes), tuple(self.faults))

    # which entry is which row

    def matched(
        self, section: str, entries: Sequence[Any], held: Mapping[str, Any], skipped: Container[int] = ()
    ) -> list[tuple[Path, Any, Any]]:
        """Entries with their rows, or None; one that was renamed has the row of its former name."""
        wanted = {entry.name for index, entry in enumerate(entries) if index not in skipped}
        claimed: set[str] = set()
        found: list[tuple[Path, Any, Any]] = []
        for index, entry in enumerate(entries):
            if index in skipped:
                continue
            path: Path = (section, index)
            former = entry.renamed_from
            if former is not None and (former in wanted or former in claimed):
                message = f"{former!r} is described in this file, too, or renamed twice."
                self.faults.append(Fault((*path, "renamed_from"), message))
            elif former is not None:
                claimed.add(former)
                if former in held and entry.name in held:
                    message = f"Both {former!r} and {entry.name!r} exist: nothing is renamed."
                    self.notes.append(Fault((*path, "renamed_from"), message))
            row = held.get(entry.name)
            if row is None and former is not None and former not in wanted:
                row = held.get(former)
            found.append((path, entry, row))
        return found

    def lacking(self, kind: Kind, held: Mapping[str, Any], matched: Iterable[tuple[Path, Any, Any]]) -> Iterator[Any]:
        """Rows that the file lacks; they go or stay."""
        used = {row.pk for _, _, row in matched if row is not None}
        for name in sorted(held):
            if held[name].pk not in used:
                self.lack(Change("leave", kind, name, row=held[name]))
                yield held[name]

    def lack(self, change: Change) -> None:
        if self.options.adds_only:
            return
        if not self.options.prune:
            self.left.append(change)
            return
        self.changes.append(Change("delete", change.kind, change.name, change.router, row=change.row))

    # sections

    def organizations(self) -> None:
        if self.document.organizations is None:
            return
        matched = self.matched("organizations", self.document.organizations, self.rows.organizations)
        for _, entry, row in matched:
            self.keep("organization", entry, row, {"name": entry.name}, {"name": row.name} if row else None)
        for row in self.lacking("organization", self.rows.organizations, matched):
            members = self.rows.members.get(row.pk, 0)
            if self.options.prune and members:
                self.refuse(f"Organization {row.name!r} still has users ({members}) and cannot be deleted.")

    def roles(self) -> None:
        if self.document.roles is None:
            return
        matched = self.matched("roles", self.document.roles, self.rows.roles)
        permissions = {row.pk: list(row.permissions) for row in self.rows.roles.values()}
        could = administrators(permissions, self.rows.open_roles)
        known = self.known_routers()
        for path, entry, row in matched:
            for router in entry.limits:
                if router not in known:
                    message = f"There is no router {router!r}.{self.hint(router, known)}"
                    self.faults.append(Fault((*path, "limits", router), message))
            self.keep("role", entry, row, _told_role(entry), self.told_row(row) if row else None)
            if row is not None:
                permissions[row.pk] = list(entry.permissions)
        for row in self.lacking("role", self.rows.roles, matched):
            users = self.rows.users.get(row.pk, 0)
            if self.options.prune:
                permissions.pop(row.pk)
                if users:
                    self.refuse(f"Role {row.name!r} still has users ({users}) and cannot be deleted.")
        if could and not administrators(permissions, self.rows.open_roles):
            self.refuse(LastAdministrator().detail)

    def routers(self) -> None:
        self.names = {row.pk: name for name, row in self.rows.routers.items()}
        if self.document.routers is None:
            return
        skipped = self.existing(self.document.routers) if self.options.adds_only else set()
        matched = self.matched("routers", self.document.routers, self.rows.routers, skipped)
        for _, entry, row in matched:
            if row is not None:
                self.names[row.pk] = entry.name
        for row in self.lacking("router", self.rows.routers, matched):
            if self.options.prune:
                del self.names[row.pk]
                if row.spaces.exists():
                    self.notes.append(Fault((), f"Router {row.name!r} embeds documents: search in them needs another."))
        self.refuse_names(matched)
        for path, entry, row in matched:
            aliases = self.rows.aliases.get(row.pk, []) if row else []
            told = _told_router(row, aliases) if row else None
            self.keep("router", entry, row, _told_router(entry, entry.aliases), told)
            self.providers(path, entry, row)

    def existing(self, entries: Iterable[Router]) -> set[int]:
        """Those of which a name is taken: what exists wins."""
        skipped = set()
        held = set(self.rows.routers) | {alias for aliases in self.rows.aliases.values() for alias in aliases}
        for index, entry in enumerate(entries):
            taken = sorted(held & {entry.name, *entry.aliases})
            if taken:
                message = f"Router {entry.name!r} is skipped: {', '.join(map(repr, taken))} exists."
                self.notes.append(Fault(("routers", index), message))
                skipped.add(index)
        return skipped

    def refuse_names(self, matched: Iterable[tuple[Path, Router, Any]]) -> None:
        """Names that routers have which the file lacks."""
        described = {row.pk for _, _, row in matched if row is not None}
        held = {
            name: row.name
            for row in self.rows.routers.values()
            if row.pk in self.names and row.pk not in described
            for name in (row.name, *self.rows.aliases.get(row.pk, ()))
        }
        for path, entry, _ in matched:
            places = [(entry.name, (*path, "name"))]
            places += [(alias, (*path, "aliases", number)) for number, alias in enumerate(entry.aliases)]
            for name, place in places:
                if name in held:
                    message = f"{name!r} is a name of router {held[name]!r}, which this file lacks."
                    self.faults.append(Fault(place, message))

    def providers(self, path: Path, router: Router, row: routing.Router | None) -> None:
        held = self.rows.providers.get(row.pk, {}) if row else {}
        wanted = {entry.identity for entry in router.providers}
        used: set[int] = set()
        for number, entry in enumerate(router.providers):
            found = held.get(entry.identity)
            former = entry.former_identity()
            if found is None and former is not None and former not in wanted:
                found = held.get(former)
            if found is not None and found.pk in used:
                place = (*path, "providers", number, "renamed_from")
                self.faults.append(Fault(place, "Another provider of this router was renamed from it, too."))
                continue
            if found is not None:
                used.add(found.pk)
            self.provider((*path, "providers", number), router, entry, found)
        for identity in sorted(held):
            if held[identity].pk not in used:
                name = str(held[identity])
                self.lack(Change("leave", "provider", name, router.name, row=held[identity]))

    def provider(self, path: Path, router: Router, entry: Provider, row: routing.Provider | None) -> None:
        """A key is compared here, and only whether it differs leaves."""
        told = _told_provider(entry.columns())
        held = _told_provider({name: getattr(row, name) for name in entry.columns()}) if row else None
        key: tuple[tuple[str, Any, Any], ...] = ()
        if row is None:
            key = (("key", None, SET),) if entry.key else ()
            if (*path, "key") in self.options.unset:
                self.faults.append(Fault((*path, "key"), "The provider is new: the variable of its key must be set."))
        elif self.options.keep_keys:
            if row.key and urlsplit(row.url)[:2] != urlsplit(entry.address)[:2]:
                message = "A stored key goes to no other host than the one it was given for: give the key with it."
                self.faults.append(Fault((*path, "url"), message))
        elif (row.key or None) != entry.key:
            key = (("key", SET if row.key else NONE, CHANGED if row.key and entry.key else SET if entry.key else NONE),)
        name = f"{entry.model_name} at {entry.address}"
        self.keep("provider", entry, row, told, held, router=router.name, name=name, more=key)

    # one row

    def keep(
        self,
        kind: Kind,
        entry: Any,
        row: Model | None,
        wanted: Mapping[str, Any],
        held: Mapping[str, Any] | None,
        *,
        router: str | None = None,
        name: str = "",
        more: tuple[tuple[str, Any, Any], ...] = (),
    ) -> None:
        before = held if held is not None else _told_new(kind)
        names = list(dict.fromkeys([*before, *wanted]))
        fields = [(each, before.get(each), wanted.get(each)) for each in names]
        changed = tuple(one for one in fields if one[1] != one[2])
        if row is None:
            shown = tuple((each, None, new) for each, _, new in changed if each not in ("name", "model_name", "url"))
            self.changes.append(Change("create", kind, name or entry.name, router, shown + more, entry=entry))
        elif changed or more:
            self.changes.append(Change("update", kind, name or entry.name, router, changed + more, row, entry))

    def told_row(self, row: accounts.Role) -> Mapping[str, Any]:
        told: dict[str, Any] = {"name": row.name, "permissions": _permissions(row.permissions)}
        for router, limits in self.rows.limits.get(row.pk, {}).items():
            if router in self.names:  # those of a router that goes, go with it
                told[f"limits of {self.names[router]}"] = _in_words(limits)
        return told

    def known_routers(self) -> set[str]:
        created = {change.name for change in self.changes if (change.action, change.kind) == ("create", "router")}
        return {*self.names.values(), *created}

    def hint(self, router: str, known: Iterable[str]) -> str:
        for id, aliases in self.rows.aliases.items():
            if router in aliases and id in self.names:
                return f" It is an alias of {self.names[id]!r}: write that."
        for entry in self.document.routers or ():
            if router in entry.aliases:
                return f" It is an alias of {entry.name!r}: write that."
        return did_you_mean(router, known)

    def refuse(self, message: str) -> None:
        self.faults.append(Fault((), message))


def _told_new(kind: Kind) -> Mapping[str, Any]:
    """A row with nothing but defaults, of which there is no need to speak."""
    if kind == "provider":
        return _told_provider(Provider(type="openai", model_name="-").columns()) | {"type": None}
    if kind == "router":
        blank = Router(name="-", type=routing.ModelType.TEXT_GENERATION.value)
        return _told_router(blank, ()) | {"type": None}
    return {"permissions": []} if kind == "role" else {}


def _permissions(held: Iterable[str]) -> list[str]:
    return [permission for permission in accounts.Permission.values if permission in set(held)]


def _told_role(entry: Role) -> Mapping[str, Any]:
    limits = {f"limits of {router}": _in_words(limits.values()) for router, limits in entry.limits.items()}
    return {"name": entry.name, "permissions": _permissions(entry.permissions)} | {
        name: words for name, words in limits.items() if words is not None
    }


def _in_words(limits: Mapping[str, int | None]) -> str | None:
    """As a file has it: one word where one is enough; None where there are none."""
    if len(limits) == len(TYPES) and len(set(limits.values())) == 1 and set(limits.values()) <= {None, 0}:
        return in_words(next(iter(limits.values())))
    return ", ".join(f"{type} {in_words(limits[type])}" for type in map(str, TYPES) if type in limits) or None


def _told_router(router: Any, aliases: Iterable[str]) -> dict[str, Any]:
    return {
        "name": router.name,
        "type": str(router.type),
        "aliases": sorted(aliases),
        "load_balancing_strategy": str(router.load_balancing_strategy),
        "cost_prompt_tokens": _plain(router.cost_prompt_tokens),
        "cost_completion_tokens": _plain(router.cost_completion_tokens),
    }


def _told_provider(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in columns.items() if name != "key"}


def _plain(value: Any) -> Any:
    """A number as people write it: 0.5, whatever the column's digits."""
    if isinstance(value, Decimal):
        text = f"{value + 0:f}"  # of -0, too
        return text.rstrip("0").rstrip(".") or "0" if "." in text else text
    return value
