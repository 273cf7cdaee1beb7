"""Who changed what: each saved or deleted row of a watched model leaves an entry, signed with the caller.

The entries are django-auditlog's, written in the transaction of the change. What it lacks is here: one signature for
the console's sessions and the API's keys, and masks that show nothing of a secret.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from auditlog.diff import model_instance_diff
from auditlog.models import LogEntry
from auditlog.registry import auditlog
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models.signals import pre_delete, pre_save

from opengate.request_id import client_address, current_request

BATCH = 1000  # entries in one statement

_signature: ContextVar[str | None] = ContextVar("signature", default=None)


@contextmanager
def signed_by(name: str) -> Iterator[None]:
    """Sign changes that no request makes with a name, where a person's e-mail would stand."""
    token = _signature.set(name)
    try:
        yield
    finally:
        _signature.reset(token)


def watch(model: type[models.Model], *fields: str, secrets: Sequence[str] = ()) -> None:
    """Log changes of these fields of a model; of `secrets` only that they changed."""
    auditlog.register(
        model,
        include_fields=[*fields, *secrets],
        mask_fields=list(secrets),
        mask_callable="opengate.audit.hidden",
    )


def record(row: models.Model, **changes: tuple[object, object]) -> None:
    """Log a change of a row that saving it does not show: from and to, by name. What stays the same is left out."""
    told = {name: [_told(old), _told(new)] for name, (old, new) in changes.items() if old != new}
    if told:
        LogEntry.objects.log_create(row, force_log=False, action=LogEntry.Action.UPDATE, changes=told)


def record_all(changes: Mapping[Any, Mapping[str, tuple[object, object]]]) -> None:
    """As `record`, for many rows that one statement changed: their changes by row."""
    entries = []
    for row, named in changes.items():
        told = {name: [_told(old), _told(new)] for name, (old, new) in named.items() if old != new}
        if told:
            entries.append(_entry(row, LogEntry.Action.UPDATE, told))
    LogEntry.objects.bulk_create(entries, batch_size=BATCH)


def record_deletions(rows: Iterable[models.Model]) -> None:
    """Log that these rows go, in a statement that sends no signals."""
    entries = []
    for row in rows:
        diff = model_instance_diff(row, None, use_json_for_changes=True)
        if diff:
            entries.append(_entry(row, LogEntry.Action.DELETE, diff))
    LogEntry.objects.bulk_create(entries, batch_size=BATCH)


def _entry(row: models.Model, action: int, changes: Mapping[str, Any]) -> LogEntry:
    """As django-auditlog makes one, signed."""
    entry = LogEntry(
        content_type=ContentType.objects.get_for_model(row),
        object_pk=str(row.pk),
        object_id=row.pk,
        object_repr=str(row),
        action=action,
        changes=changes,
    )
    _sign(LogEntry, entry)
    return entry


def _told(value: object) -> str | None:
    """As django-auditlog writes it: of another row its id."""
    if isinstance(value, models.Model):
        return str(value.pk)
    return None if value is None else str(value)


def watch_actors(model: type[models.Model]) -> None:
    """Say which model the callers are: a caller that deletes itself signs by e-mail only."""
    pre_delete.connect(_actor_goes, sender=model, dispatch_uid="audit-actor-goes")


def hidden(value: str) -> str:
    """What the log shows of a secret: whether there is one."""
    return "none" if value in ("", "None") else "***"


def _sign(sender: Any, instance: LogEntry, **kwargs: Any) -> None:
    request = current_request.get()
    if request is None:
        instance.actor_email = _signature.get() or instance.actor_email
        return
    user: Any = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        id = getattr(user, "user_id", None) or user.pk  # a principal of the API, or a user of the console
        instance.actor_email = user.email
        instance.actor_id = None if id in getattr(request, "deleted_users", ()) else id
    instance.remote_addr = client_address(request)
    instance.cid = getattr(request, "id", None)


def _actor_goes(sender: Any, instance: models.Model, **kwargs: Any) -> None:
    request = current_request.get()
    if request is not None:
        request.deleted_users = {*getattr(request, "deleted_users", ()), instance.pk}  # type: ignore[attr-defined]


pre_save.connect(_sign, sender=LogEntry, dispatch_uid="audit-sign")
