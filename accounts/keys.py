"""What an API key looks like, and what is kept of it.

A key is `sk-` and 256 random bits. At rest there is only its HMAC-SHA-256 digest under a server secret: a stolen table
opens nothing, and a digest found anywhere is no key.
"""

import hmac
import re
import secrets
from datetime import datetime, timedelta
from functools import lru_cache

from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from accounts.errors import KeyLivesTooLong
from opengate.encryption import mask
from opengate.quick_settings import settings

__all__ = ["digest", "digests", "expiry", "fingerprints", "is_well_formed", "mask", "new_key"]

_SHAPE = re.compile(r"sk-[A-Za-z0-9_-]{43}")


def new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def expiry(wanted: datetime | None) -> datetime | None:
    """When a new key closes, KEY_MAX_EXPIRATION_DAYS from now at most; raises KeyLivesTooLong for a later moment."""
    days = settings.KEY_MAX_EXPIRATION_DAYS
    if days is None:
        return wanted
    latest = timezone.now() + timedelta(days=days)
    if wanted is not None and wanted > latest:
        raise KeyLivesTooLong(days)
    return wanted or latest


def is_well_formed(text: str) -> bool:
    """Whether it could be one of our keys; anything else is refused without a look-up."""
    return _SHAPE.fullmatch(text) is not None


def digest(text: str) -> str:
    """Hexadecimal digest under the current secret."""
    return digests(text)[0]


def digests(text: str) -> tuple[str, ...]:
    """Digests under each secret, the current one first: a key made under a former secret still opens."""
    if not settings.KEY_SECRETS:
        raise ImproperlyConfigured("OPENGATE_KEY_SECRETS is not set: keys cannot be told apart.")
    return tuple([_digest(secret, text) for secret in settings.KEY_SECRETS])


def _digest(secret: str, text: str) -> str:
    made = _begun(secret).copy()
    made.update(text.encode())
    return made.hexdigest()


@lru_cache(maxsize=16)
def _begun(secret: str) -> hmac.HMAC:
    """An HMAC under the secret, of nothing yet: to copy it is cheaper than to begin one for each call."""
    return hmac.new(secret.encode(), digestmod="sha256")


def fingerprints() -> list[str]:
    """Of each secret, the current one first: by these the table tells under which a digest was made, and no more."""
    return [hmac.digest(secret.encode(), b"which secret", "sha256").hex()[:16] for secret in settings.KEY_SECRETS]
