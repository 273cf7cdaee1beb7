"""The one bridge from async code to the ORM."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, close_old_connections

from opengate.errors import DatabaseAway

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The async twin of a function that uses the ORM: in a thread, its connection given back to the pool afterwards.

    Raises DatabaseAway when Postgres does not answer. Not bound to Django's main thread, so that a slow page of the
    console holds up no call.
    """

    @wraps(function)
    def with_connection(*args: P.args, **kwargs: P.kwargs) -> T:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            raise DatabaseAway from error
        finally:
            close_old_connections()

    return sync_to_async(with_connection, thread_sensitive=False)
