"""Whether a file is in order, as far as the file alone can say: its shape, and the tables' own rules of each row."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from django.core.exceptions import ValidationError as RowError
from django.db.models import Model
from pydantic import ValidationError

from accounts import models as accounts
from opengate.configuration.document import (
    Document,
    Entry,
    FormerProvider,
    Limits,
    Organization,
    Provider,
    Role,
    Router,
    did_you_mean,
    providers_of,
)
from opengate.configuration.errors import Fault, InvalidFile, Lines, Path
from opengate.configuration.reading import Source, expand
from routing import models as routing
from usage.models import LimitType

MAX_FAULTS = 50
FREE_KEYS = "x-"  # a place for anchors: such keys of the first level are not looked at


@dataclass(frozen=True)
class Described:
    """A file that is in order, as far as the file alone can say."""

    file: str
    document: Document
    lines: Lines
    notes: tuple[Fault, ...] = ()
    unset: frozenset[Path] = frozenset()  # keys whose variables are not set


# Which keys there are, by the keys around them.
_SHAPES: Mapping[tuple[str, ...], type[Entry]] = {
    (): Document,
    ("organizations",): Organization,
    ("roles",): Role,
    ("roles", "limits"): Limits,
    ("routers",): Router,
    ("routers", "providers"): Provider,
    ("routers", "providers", "renamed_from"): FormerProvider,
}


def describe(source: Source, variables: Mapping[str, str], *, keep_keys: bool = False) -> Described:
    """The document that a source says; raises InvalidFile with all that is wrong with it.

    With `keep_keys` the variables of providers' keys need not be set.
    """
    if not isinstance(source.data, dict):
        raise InvalidFile(source.file, [Fault((), "It must be a mapping with routers, roles or organizations.")])
    data = {key: value for key, value in source.data.items() if not key.startswith(FREE_KEYS)}
    expanded = expand(data, variables, unset=lambda path: keep_keys and _is_key(path))
    if expanded.faults:
        raise InvalidFile(source.file, expanded.faults[:MAX_FAULTS], source.lines)
    try:
        document = Document.model_validate(expanded.data)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_FAULTS]
        faults = [_fault(detail, is_secret=detail["loc"] in expanded.referring) for detail in details]
        raise InvalidFile(source.file, faults, source.lines) from None
    faults = list(faults_of(document))
    if faults:
        raise InvalidFile(source.file, faults[:MAX_FAULTS], source.lines)
    notes = [
        Fault((*path, "key"), "A key stands in the file: write ${NAME}, and set the variable.")
        for path, provider in providers_of(document)
        if provider.key and (*path, "key") not in expanded.referring
    ]
    notes += [
        Fault((*path, "url"), "Calls go to /v1 of the address: it should not end in /v1 itself.")
        for path, provider in providers_of(document)
        if provider.address.endswith("/v1/")
    ]
    notes += _half_open(document)
    return Described(source.file, document, source.lines, tuple(notes), frozenset(expanded.unset))


def _is_key(path: Path) -> bool:
    return len(path) == 5 and path[0] == "routers" and path[2] == "providers" and path[4] == "key"


def _half_open(document: Document) -> Iterator[Fault]:
    for index, role in enumerate(document.roles or ()):
        for router, limits in role.limits.items():
            missing = sorted(set(LimitType.values) - limits.values().keys())
            if missing:
                message = f"The router stays closed: {', '.join(missing)} is missing, and there is no default."
                yield Fault(("roles", index, "limits", router), message)


def _fault(detail: Any, *, is_secret: bool) -> Fault:
    """A fault of pydantic's, in a sentence that helps whoever writes YAML; of a variable's value it says nothing."""
    path: Path = detail["loc"]
    type, given = detail["type"], detail.get("input")
    if type == "extra_forbidden":
        shape = tuple(step for step in path[:-1] if isinstance(step, str))
        if shape[:2] == ("roles", "limits"):
            shape = shape[:2]
        known = _SHAPES[shape].model_fields if shape in _SHAPES else ()
        return Fault(path, f"There is no such key.{did_you_mean(str(path[-1]), known)}")
    if type == "missing":
        return Fault(path, "This key is needed.")
    if type == "string_type" and isinstance(given, list | dict):
        return Fault(path, "It must be a string.")
    if type == "string_type":
        read = {bool: "true or false", NoneType: "nothing"}.get(given.__class__, "a number or a date")
        return Fault(path, f"It must be a string, and YAML reads {read}: put it in quotes.")
    if is_secret:
        return Fault(path, "What the variable holds is not valid here.")
    if type == "value_error":
        return Fault(path, str(detail["ctx"]["error"]))
    if type in ("tuple_type", "model_type", "model_attributes_type", "dict_type"):
        return Fault(path, f"It must be a {'list' if type == 'tuple_type' else 'mapping'}.")
    return Fault(path, f"{detail['msg']}.")


def faults_of(document: Document) -> Iterator[Fault]:
    """What the tables would not take, or not twice."""
    for index, organization in enumerate(document.organizations or ()):
        yield from _row_faults(accounts.Organization(name=organization.name), ("organizations", index))
    for index, role in enumerate(document.roles or ()):
        row = accounts.Role(name=role.name, permissions=list(role.permissions))
        yield from _row_faults(row, ("roles", index))
    for index, router in enumerate(document.routers or ()):
        yield from _router_faults(router, ("routers", index))
    yield from _twice("organizations", document.organizations)
    yield from _twice("roles", document.roles)
    yield from _names_twice(document.routers or ())


def _router_faults(router: Router, path: Path) -> Iterator[Fault]:
    row = routing.Router(**router.columns())
    yield from _row_faults(row, path)
    for number, alias in enumerate(router.aliases):
        for fault in _row_faults(routing.RouterName(value=alias), (*path, "aliases", number)):
            yield Fault((*path, "aliases", number), fault.message)
    seen: set[tuple[str, str]] = set()
    for number, provider in enumerate(router.providers):
        place: Path = (*path, "providers", number)
        yield from _row_faults(routing.Provider(**provider.columns()), place, whole=True)
        if not row.serves(provider.type):
            yield Fault((*place, "type"), f"A provider of type {provider.type} cannot serve {router.type}.")
        if provider.identity in seen:
            yield Fault(place, "This model at this address is there twice: a router has it once.")
        seen.add(provider.identity)


def _row_faults(row: Model, path: Path, *, whole: bool = False) -> Iterator[Fault]:
    """What the row's own rules say; `whole` with those that look at more than one column."""
    faults: dict[str, list[str]] = {}
    relations = [field.name for field in row._meta.fields if field.is_relation]
    checks = [lambda: row.clean_fields(exclude=relations), *([row.clean] if whole else [])]
    for check in checks:
        try:
            check()
        except RowError as error:
            for name, messages in error.message_dict.items():
                faults.setdefault(name, messages)
    for name, messages in faults.items():
        for message in messages:
            yield Fault((*path, name), message)


def _twice(section: str, entries: Iterable[Organization | Role] | None) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, entry in enumerate(entries or ()):
        if entry.name in seen:
            yield Fault((section, index, "name"), f"{entry.name!r} is there twice.")
        seen.add(entry.name)


def _names_twice(routers: Iterable[Router]) -> Iterator[Fault]:
    """Names and aliases of routers are one namespace."""
    seen: dict[str, str] = {}
    named = [(router.name, ("routers", index, "name")) for index, router in enumerate(routers)]
    named += [
        (alias, ("routers", index, "aliases", number))  # type: ignore[misc]
        for index, router in enumerate(routers)
        for number, alias in enumerate(router.aliases)
    ]
    for name, path in named:
        if name in seen:
            yield Fault(path, f"{name!r} is already the {seen[name]} of a router in this file.")
        seen.setdefault(name, "name" if path[-1] == "name" else "alias")
