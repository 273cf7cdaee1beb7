"""What is being worked at: a note for each request and task, that log and traces read, filled in as more is known."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.http import HttpRequest


@dataclass(slots=True)
class Work:
    """One for all that runs for a request, be it in its task, in others made by that, or in threads."""

    request_id: str | None = None  # in a task: of the request that queued it
    task_id: str | None = None
    hot_path: str | None = None  # of a request that is answered without Django's middleware
    request: HttpRequest | None = field(default=None, repr=False)  # once Django's middleware is reached
    user_id: int | None = None
    key_id: int | None = None
    router: str | None = None
    provider: int | None = None

    @property
    def route(self) -> str | None:
        """The template of the path: no path as it came, where anything may stand. None while no route is known."""
        match = getattr(self.request, "resolver_match", None)
        return f"/{match.route}" if match else self.hot_path

    def known(self) -> dict[str, Any]:
        """By the names of the log's fields."""
        found = {
            "request_id": self.request_id,
            "task_id": self.task_id,
            "user_id": self.user_id or _signed_in(self.request),
            "key_id": self.key_id,
            "router": self.router,
            "provider": self.provider,
        }
        return {name: value for name, value in found.items() if value is not None}


_current: ContextVar[Work | None] = ContextVar("work", default=None)


def begin(work: Work) -> Work:
    """From here on, in this context and those made from it, `work` is what is worked at."""
    _current.set(work)
    return work


def current() -> Work:
    """What is worked at; a note that nobody reads where nothing was begun."""
    return _current.get() or Work()


def is_tick(task: object) -> bool:
    """Whether beat sends the task of that name again and again: no line of the log and no trace is worth that."""
    return any(entry["task"] == task for entry in settings.CELERY_BEAT_SCHEDULE.values())


def _signed_in(request: HttpRequest | None) -> int | None:
    """Who has the session of a page, if that was asked for already: a line of the log asks no database."""
    user = getattr(request, "_cached_user", None)
    return getattr(user, "pk", None)
