"""Secrets at rest: a text column that only the server's encryption secrets can read."""

import base64
import hashlib
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models


def _fernet() -> MultiFernet:
    if not settings.ENCRYPTION_SECRETS:
        raise ImproperlyConfigured("OPENGATE_ENCRYPTION_SECRETS is not set: provider keys cannot be kept.")
    return MultiFernet(
        Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))
        for secret in settings.ENCRYPTION_SECRETS
    )


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
                "A provider key cannot be decrypted: OPENGATE_ENCRYPTION_SECRETS lacks the secret it was stored under."
            ) from error
