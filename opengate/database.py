"""The one bridge from async code to the ORM, a row or the refusal, and one way to commit what may clash with others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    close_old_connections,
    connection,
    transaction,
)
from django.db.models import Model, QuerySet
from psycopg.errors import DeadlockDetected, ForeignKeyViolation, ReadOnlySqlTransaction, UniqueViolation

from opengate import metrics
from opengate.errors import APIError, Conflict, DatabaseAway

P = ParamSpec("P")
T = TypeVar("T")
Row = TypeVar("Row", bound=Model)

TRIES = 4


def is_away(error: BaseException | None) -> bool:
    """Whether Postgres did not answer, or is one that takes no writes, as after a failover."""
    if isinstance(error, InternalError):
        return isinstance(error.__cause__, ReadOnlySqlTransaction)
    return isinstance(error, OperationalError | InterfaceError)


def _pool(look: Callable[[Mapping[str, int]], int]) -> Callable[[], int | None]:
    """What `look` sees of the pool's figures, where there is a pool."""

    def seen() -> int | None:
        pool = getattr(connection, "pool", None)
        return None if pool is None else look(pool.get_stats())

    return seen


metrics.watch(
    "ogl_database_pool_connections",
    "Connections of a process that are in use.",
    _pool(lambda figures: figures.get("pool_size", 0) - figures.get("pool_available", 0)),
)
metrics.watch(
    "ogl_database_pool_max_connections",
    "Connections that a process may have.",
    _pool(lambda figures: figures.get("pool_max", 0)),
)
metrics.watch(
    "ogl_database_pool_waiting",
    "How many wait for a connection of a process.",
    _pool(lambda figures: figures.get("requests_waiting", 0)),
)


def in_thread(
    function: Callable[P, T], executor: ThreadPoolExecutor | None = None
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The async twin of a function that uses the ORM: in a thread, its connection given back to the pool afterwards.

    A function that itself waits for the event loop, which may wait for such a thread, needs an `executor` of its own.

    Raises DatabaseAway when Postgres does not answer. Not bound to Django's main thread, so that a slow page of the
    console holds up no call.
    """

    @wraps(function)
    def with_connection(*args: P.args, **kwargs: P.kwargs) -> T:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        except (OperationalError, InterfaceError, InternalError) as error:
            if is_away(error):
                raise DatabaseAway from error
            raise
        finally:
            close_old_connections()

    return sync_to_async(with_connection, thread_sensitive=False, executor=executor)


async def in_time(work: Awaitable[T], seconds: float | None = None) -> T:
    """What the work answers, within DATABASE_TIMEOUT_SECONDS or those; raises DatabaseAway when that is not enough.

    It is never broken off: it comes to its end, heard or not, also when the caller is cancelled.
    """
    task = asyncio.ensure_future(work)
    await asyncio.wait((task,), timeout=seconds or settings.DATABASE_TIMEOUT_SECONDS)
    if not task.done():
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        raise DatabaseAway
    return task.result()


def found(rows: QuerySet[Row], id: int, missing: APIError | type[APIError]) -> Row:
    """The row with that id; raises `missing`."""
    row = rows.filter(pk=id).first()
    if row is None:
        raise missing
    return row


def locked(rows: QuerySet[Row], id: int, missing: APIError | type[APIError]) -> Row:
    """The row with that id, held until the transaction ends; raises `missing`."""
    return found(rows.select_for_update(no_key=True), id, missing)


def commit(work: Callable[[], T], *, taken: Callable[[], APIError] | None = None) -> T:
    """What `work` answers, once it is committed; raises `taken()` when a value that must be unique is another's.

    The constraints decide, not a look beforehand, so of two at a time one wins. A row that `work` leans on may be
    deleted, or a row that it deletes be leaned on, before it commits, and two may wait for each other: then it runs
    again, and finds things as they are.
    """
    for _ in range(TRIES):
        try:
            with transaction.atomic():
                return work()
        except IntegrityError as error:
            if taken is not None and isinstance(error.__cause__, UniqueViolation):
                raise taken() from error
            if not isinstance(error.__cause__, ForeignKeyViolation):
                raise
        except OperationalError as error:
            if not isinstance(error.__cause__, DeadlockDetected):
                raise
    raise Conflict("The rows were changed meanwhile, please try again.")
