"""Secrets at rest: a text column that only the server's encryption secrets can read, and what moves it to a new one."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models.functions import Cast

BATCH = 500


def _fernets() -> list[Fernet]:
    """One for each secret, the current one first."""
    if not settings.ENCRYPTION_SECRETS:
        raise ImproperlyConfigured("OPENGATE_ENCRYPTION_SECRETS is not set: provider keys cannot be kept.")
    return [
        Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))
        for secret in settings.ENCRYPTION_SECRETS
    ]


def _fernet() -> MultiFernet:
    return MultiFernet(_fernets())


def mask(secret: str) -> str:
    """First 8 and last 8 characters of a long secret; of a short one nothing."""
    return f"{secret[:8]}...{secret[-8:]}" if len(secret) >= 24 else "..."


class EncryptedTextField(models.TextField):
    """Text encrypted with the first of ENCRYPTION_SECRETS (Fernet); rows under the others are still read.

    Not searchable. A row that no secret opens raises ImproperlyConfigured: better loud than an empty key upstream.
    """

    def get_prep_value(self, value: Any) -> Any:
        return value if value is None else _fernet().encrypt(str(value).encode()).decode()

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> str | None:
        if value is None:
            return None
        try:
            return _fernet().decrypt(value.encode()).decode()
        except InvalidToken as error:
            raise ImproperlyConfigured(
                "A provider key cannot be decrypted: OPENGATE_ENCRYPTION_SECRETS lacks the secret it was stored under. "
                "`manage.py rotate_secrets --check` says which."
            ) from error


@dataclass(slots=True)
class Column:
    """An encrypted column, and how many of its rows which secret opens; rows are told by their primary keys."""

    model: type[models.Model]
    name: str
    current: int = 0
    former: int = 0
    unreadable: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.model._meta.label}.{self.name}"

    def look(self, *, renew: bool = False) -> None:
        """Count anew. With `renew`, rows under former secrets are put under the current one on the way.

        Each is replaced by itself, if it still is what was read: nobody who serves or edits waits, and whoever is
        stopped in the middle goes on where it was.
        """
        fernets = _fernets()
        self.current, self.former, self.unreadable = 0, 0, []
        for pk, stored in self._stored():
            opener = next((number for number, fernet in enumerate(fernets) if _opens(fernet, stored)), None)
            if opener is None:
                self.unreadable.append(pk)
            elif opener == 0:
                self.current += 1
            elif renew:
                # A value that was written meanwhile stays; it was written under the current secret.
                text = fernets[opener].decrypt(stored.encode()).decode()
                self._rows().filter(pk=pk, stored=stored).update(**{self.name: text})
                self.current += 1
            else:
                self.former += 1

    def _rows(self) -> models.QuerySet[Any]:
        return self.model._base_manager.annotate(stored=Cast(self.name, models.TextField()))

    def _stored(self) -> Iterator[tuple[Any, str]]:
        """Primary keys and what stands there, in short queries."""
        rows = self._rows().filter(stored__isnull=False).order_by("pk").values_list("pk", "stored")
        batch = list(rows[:BATCH])
        while batch:
            yield from batch
            batch = list(rows.filter(pk__gt=batch[-1][0])[:BATCH])


def _opens(fernet: Fernet, stored: str) -> bool:
    try:
        fernet.decrypt(stored.encode())
    except InvalidToken:
        return False
    return True


def columns() -> list[Column]:
    """Every encrypted column there is, not looked at yet."""
    return [
        Column(model, column.name)
        for model in apps.get_models()
        for column in model._meta.get_fields()
        if isinstance(column, EncryptedTextField)
    ]
