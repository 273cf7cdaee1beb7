"""Making a file true, in one transaction: with the methods, the marks in the log and the epoch of any other change."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import IntegrityError, OperationalError, close_old_connections
from psycopg.errors import LockNotAvailable

from accounts.models import Organization, Role
from inference import discovery
from inference.discovery import Discovered
from opengate import audit
from opengate.configuration import current
from opengate.configuration.document import Document, providers_of
from opengate.configuration.errors import Fault, Refused, shown
from opengate.configuration.plan import Change, Options, Plan, compare
from opengate.database import commit
from opengate.errors import APIError, Conflict
from opengate.loops import in_loop
from routing.errors import ProviderUnreachable
from routing.models import Provider, Router, RouterName
from usage.models import Limit

ACTOR = "config"  # who the log of changes says it was
AT_ONCE = 20
TRIES = 4
CHANGED_MEANWHILE = "The rows were changed meanwhile. Nothing was applied: look at the plan again."

logger = logging.getLogger(__name__)

Question = tuple[str, tuple[tuple[str, Any], ...]]  # the router's type and the provider's columns
ASKED = ("type", "url", "key", "model_name")  # of which a change makes it another upstream


@dataclass(frozen=True)
class Asking:
    """Whether upstreams are asked about their models first, and for how many seconds at most."""

    upstreams: bool = True
    timeout: int = 30


class _Outdated(Exception):
    """The rows are not as the plan found them."""


def plan(document: Document, options: Options) -> Plan:
    return compare(document, current.load(), options)


def apply(
    document: Document,
    options: Options,
    asking: Asking,
    agree: Callable[[Plan], bool] | None = None,
) -> Plan:
    """Make the document true, all of it or nothing, and answer what was done.

    `agree` is asked once, with the plan; then nothing else than this plan is done. Without it, a change that somebody
    else makes meanwhile is planned with. Raises Refused.
    """
    answers: dict[Question, Discovered | ProviderUnreachable] = {}
    agreed: Plan | None = None
    for _ in range(TRIES):
        found = plan(document, options)
        _refuse(found)
        document, found = _reachable(document, found, options, asking, answers)
        if agree is not None and agreed is None:
            if not agree(found):
                raise Refused("Nothing was applied.")
            agreed = found
        if not found.changes:
            return found
        try:
            with audit.signed_by(ACTOR):
                _commit(document, options, agreed or found, answers)
        except _Outdated:
            if agreed is not None:
                raise Refused(CHANGED_MEANWHILE) from None
            continue
        return found
    raise Refused(CHANGED_MEANWHILE)


def _refuse(plan: Plan) -> None:
    if plan.faults:
        raise Refused("\n".join(": ".join(filter(None, (shown(one.path), one.message))) for one in plan.faults))


def _commit(
    document: Document,
    options: Options,
    expected: Plan,
    answers: Mapping[Question, Discovered | ProviderUnreachable],
) -> None:
    def work() -> None:
        current.lock()
        found = plan(document, options)
        if found.faults or found.changes != expected.changes:
            raise _Outdated
        _Work(found.changes, answers).run()

    try:
        commit(work, taken=lambda: Conflict("A name is taken meanwhile."))
    except APIError as error:
        raise Refused(str(error.detail)) from error
    except IntegrityError as error:
        raise Refused(f"The tables do not allow it: {error.__cause__}") from error
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            seconds = current.LOCK_SECONDS
            raise Refused(f"Others were changing the rows for {seconds} s. Nothing was applied: try again.") from error
        raise


class _Work:
    """The steps, in an order in which no name is taken that another gives up."""

    def __init__(self, changes: Sequence[Change], answers: Mapping[Question, Discovered | ProviderUnreachable]) -> None:
        self.changes = changes
        self.answers = answers
        self.made: dict[str, Router] = {}  # routers by their new names

    def of(self, kind: str, *actions: str) -> list[Change]:
        return [change for change in self.changes if change.kind == kind and change.action in actions]

    def run(self) -> None:
        for kind in ("provider", "router", "role", "organization"):
            for change in self.of(kind, "delete"):
                change.row.delete()
        for change in self.of("organization", "create", "update"):
            row = change.row or Organization()
            row.name = change.entry.name
            row.save()
        self.routers()
        for change in self.of("provider", "create", "update"):
            self.provider(change)
        self.fit()
        for change in self.of("role", "create", "update"):
            self.role(change)

    def routers(self) -> None:
        updated = self.of("router", "update")
        for change in updated:
            for alias in RouterName.objects.aliases().filter(router=change.row).exclude(value__in=change.entry.aliases):
                alias.delete()
        for change in updated:
            if change.row.name != change.entry.name:
                change.row.rename(change.entry.name, None)
        for change in self.of("router", "create", "update"):
            row = change.row or Router()
            for name, value in change.entry.columns().items():
                setattr(row, name, value)
            row.rename(change.entry.name, change.entry.aliases)

    def provider(self, change: Change) -> None:
        row = change.row or Provider(router=self.router(change.router))
        keeps_key = change.row is not None and "key" not in change.names()
        for name, value in change.entry.columns().items():
            if name != "key" or not keeps_key:
                setattr(row, name, value)
        if change.row is not None and change.names() & set(ASKED):
            row.max_context_length = row.vector_size = None  # it is another upstream
        answer = self.answers.get(question(row, self.router(change.router).type))
        if isinstance(answer, Discovered):
            row.max_context_length = answer.max_context_length or row.max_context_length
            row.vector_size = answer.vector_size or row.vector_size
        row.save()

    def fit(self) -> None:
        """Raises one of the faults of providers that cannot serve their router's model."""
        names = {change.router for change in self.of("provider", "create", "update")}
        names |= {change.name for change in self.of("router", "update")}
        for name in sorted(filter(None, names)):
            router = self.router(name)
            for provider in router.providers.all():
                router.require_fit(provider)

    def role(self, change: Change) -> None:
        row = change.row or Role()
        row.name, row.permissions = change.entry.name, list(dict.fromkeys(change.entry.permissions))
        row.save()
        limits = {
            (self.router(router).pk, type): value
            for router, given in change.entry.limits.items()
            for type, value in given.values().items()
        }
        Limit.objects.replace(row, limits)

    def router(self, name: str | None) -> Router:
        if name not in self.made:
            self.made[str(name)] = Router.objects.get(name=name)
        return self.made[str(name)]


# upstreams


def question(row: Provider, router_type: str) -> Question:
    """What an upstream is asked, so that the answer is known again."""
    return router_type, tuple((name, getattr(row, name)) for name in ASKED)


def _reachable(
    document: Document,
    found: Plan,
    options: Options,
    asking: Asking,
    answers: dict[Question, Discovered | ProviderUnreachable],
) -> tuple[Document, Plan]:
    """Ask the upstreams of new and changed providers; raises Refused when one does not answer.

    Of another gateway's file, providers that do not answer are skipped.
    """
    if not asking.upstreams:
        return document, found
    asked = list(_asked(document, found))
    wanted = {question(row, type): (row, type) for _, row, type in asked}
    missing = [wanted[one] for one in wanted if one not in answers]
    if missing:
        close_old_connections()  # an upstream may be slow, and connections are few
        replies = in_loop(_ask_all(missing, asking.timeout))
        answers.update(zip((question(row, type) for row, type in missing), replies, strict=True))
    silent = [
        (change, error)
        for change, row, type in asked
        if isinstance(error := answers[question(row, type)], ProviderUnreachable)
    ]
    if not silent:
        return document, found
    if not options.adds_only:
        told = (
            f"Router {change.router!r}: {error.detail} It says: {error.reason}{error.cause}" for change, error in silent
        )
        raise Refused("\n".join(told))
    skipped = {(change.router, change.entry.identity): error for change, error in silent}
    routers = tuple(
        router.model_copy(
            update={"providers": tuple(one for one in router.providers if (router.name, one.identity) not in skipped)}
        )
        for router in document.routers or ()
    )
    notes = [
        Fault(path, f"The provider is skipped: {skipped[name, provider.identity].detail}")
        for path, provider in providers_of(document)
        for name in [(document.routers or ())[int(path[1])].name]
        if (name, provider.identity) in skipped
    ]
    document = document.model_copy(update={"routers": routers})
    found = plan(document, options)
    return document, replace(found, notes=(*found.notes, *notes))


def _asked(document: Document, found: Plan) -> Iterator[tuple[Change, Provider, str]]:
    types = {router.name: router.type for router in document.routers or ()}
    retyped = {one.name for one in found.changes if one.kind == "router" and "type" in one.names()}
    for change in found.changes:
        if change.kind != "provider" or change.action not in ("create", "update"):
            continue
        if change.action == "create" or change.names() & set(ASKED) or change.router in retyped:
            columns = change.entry.columns()
            if change.row is not None and "key" not in change.names():
                columns["key"] = change.row.key
            yield change, Provider(**columns), types[str(change.router)]


async def _ask_all(asked: Iterable[tuple[Provider, str]], timeout: int) -> list[Discovered | ProviderUnreachable]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(row: Provider, router_type: str) -> Discovered | ProviderUnreachable:
        row.timeout = min(row.timeout, timeout)
        async with gate:
            try:
                return await discovery.discover(row, router_type)
            except ProviderUnreachable as error:
                return error

    return await asyncio.gather(*(ask(row, type) for row, type in asked))
