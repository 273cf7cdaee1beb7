"""The log: a line or a JSON object a record, with what was worked at, and without what nobody may read there.

Callers' words, answers and e-mail addresses are in no message of ours. What others put into theirs is taken out here:
of an exception its words, unless it is of a kind that repeats no value, and of all texts whatever looks like a secret.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError

from opengate import traces, work

HIDDEN = "***"
LEAST_SECRET = 8  # a shorter one would be found in every other word
MAX_FRAMES = 40
MAX_MESSAGE = 8 * 1024  # characters; a path that a caller wrote may have more
_SECRETS = (
    r"\bsk-[\w.-]+",
    r"(?i:\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}",
    r"(?i:\bauthorization|\bcookie)(?:[\"']?\s*[:=]|[\"']\s*,)[^\n]+",
    r"(?i:(?:password|secret|token|api[-_]?key))[\"']?\s*+[:=]\s*+(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;)}]+)",
    r"(?<=://)[^\s/@\"']+(?=@)",  # name and password of an address
    # From the first letter of a word, or a long one would be read once for each of its letters.
    r"(?<![\w.%+-])[\w.%+-]++@[\w-]+(?:\.[\w-]+)+",
    r"(?<![\w.+-])[\w.+-]++%40[\w-]+(?:\.[\w-]+)+",
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # who writes them makes lines that are none of ours
# What the interpreter and the system say: names and types of ours, no values.
_SAFE = (AttributeError, ImportError, NameError, NotImplementedError, RecursionError, TypeError, ZeroDivisionError)
_SAFE_DATABASE = (OperationalError, InterfaceError)
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error; what cannot be formatted is not shown as it is."""

    def handleError(self, record: logging.LogRecord) -> None:
        kind = getattr(sys.exc_info()[0], "__name__", "")
        try:
            self.stream.write(f"{_time(record)} ERROR {__name__}: A record of {record.name} is left out ({kind}).\n")
        except (OSError, ValueError):
            pass  # nobody reads any more


class NoTracebackOfCallers(logging.Filter):
    """Django tells where it refused a request; of those that the caller is to blame for, a line says enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("django.") and getattr(record, "status_code", 500) < 500:
            record.exc_info = record.exc_text = None
        return True


class NoTicks(logging.Filter):
    """Celery tells of each task that it came and went; what beat sends every other second is not worth that."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO or not record.name.startswith("celery.") or not record.args:
            return True
        args = record.args
        return not work.is_tick(args.get("name") if isinstance(args, Mapping) else args[0])


class Lines(logging.Formatter):
    """For whoever reads along: a record is a line, and its traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        message = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], message_of(record))
        line = f"{_time(record)} {record.levelname} {record.name}: {message}"
        if fields:
            line += f" ({' '.join(f'{name}={value}' for name, value in fields.items())})"
        trouble = exception_of(record)
        return f"{line}\n{trouble}" if trouble else line


class JSONLines(logging.Formatter):
    """For machines: a record is an object on a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
            "process": record.process,
            **fields_of(record),
        }
        if trouble := exception_of(record):
            found["exception"] = trouble
        return json.dumps(found, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was worked at, and what else the record has of its own under `fields`."""
    return work.current().known() | traces.ids() | getattr(record, "fields", {})


def message_of(record: logging.LogRecord) -> str:
    """The message without secrets, and without the exception's words that some libraries put into it."""
    if record.name == "celery.app.trace" and isinstance(record.args, dict):
        args = {**record.args, **dict.fromkeys(("exc", "traceback", "return_value", "args", "kwargs"), HIDDEN)}
        return redacted(str(record.msg) % args)
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # of another's code: its arguments do not fit
        message = str(record.msg)
    path = getattr(getattr(record, "request", None), "path", "")
    if record.name == "django.request" and len(path) > 1:
        message = message.replace(path, _route(record))
    if record.name == "asyncio":
        message = message.partition("\n")[0]  # the others show the task with what it raised
    message = redacted(message)
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"


def _route(record: logging.LogRecord) -> str:
    """The pattern of the path: in a path as it came anything may stand."""
    match = getattr(record, "request").resolver_match  # noqa: B009  # Django puts it there
    return f"/{match.route}" if match else "(no route)"


def exception_of(record: logging.LogRecord) -> str:
    """The record's traceback, the cause first, or nothing."""
    error = record.exc_info[1] if record.exc_info else None
    return "" if error is None else redacted("\n".join(_told(error)))


def words_of(error: BaseException) -> str:
    """What may be told of an exception beside its type: others' words may repeat what a caller sent.

    A refused database statement tells its code and the names of ours that it met.
    """
    if isinstance(error, OSError):
        return redacted(error.strerror or "")
    if type(error) in _SAFE or isinstance(error, _SAFE_DATABASE):
        return redacted(str(error)).strip()
    if isinstance(error, DatabaseError):
        cause = error.__cause__
        about = getattr(cause, "diag", None)
        names = (getattr(cause, "sqlstate", None), *(getattr(about, f"{kind}_name", None) for kind in _DATABASE_NAMES))
        return " ".join(str(name) for name in names if name)
    return ""


_DATABASE_NAMES = ("table", "column", "constraint")


def redacted(text: str) -> str:
    """The text without what looks like a key, a password or an e-mail address, and without our own secrets."""
    return _pattern().sub(HIDDEN, text)


@cache
def _pattern() -> re.Pattern[str]:
    own = sorted({secret for secret in _own_secrets() if len(secret) >= LEAST_SECRET}, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, own), *_SECRETS]))


def _own_secrets() -> Iterator[str]:
    yield from (settings.ENVIRONMENT.secret_key, *settings.KEY_SECRETS, *settings.ENCRYPTION_SECRETS)
    for address in (settings.DATABASE_URL, settings.REDIS_URL):
        if password := urlsplit(address).password:
            yield from (password, unquote(password))


def _told(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen | {id(error)})
        yield "\nThen:\n"
    yield "Traceback (most recent call last):"
    for frame in traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]:
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        if frame.line:
            yield f"    {frame.line}"
    kind, words = type(error), words_of(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}: {words}" if words else name
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _told(one, seen | {id(error)})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
