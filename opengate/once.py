"""Forms that do something once: a page loaded again, or a button pressed twice, brings a ticket that was used."""

import secrets

import redis
from django.core import signing
from django.core.exceptions import ValidationError

from opengate import redis as opengate_redis

LIFE_SECONDS = 12 * 3600  # of a form that stands open
_SALT = "opengate.once"


def new_ticket() -> str:
    """A ticket for one sending; it is kept nowhere before it is used."""
    return signing.dumps(secrets.token_urlsafe(16), salt=_SALT)


def use(ticket: str) -> None:
    """Use it up; raises ValidationError when it is not ours or too old (code `old`), `used`, or when nobody can tell
    (`unknown`)."""
    try:
        name = signing.loads(ticket, salt=_SALT, max_age=LIFE_SECONDS)
    except signing.BadSignature:
        raise ValidationError("This form is too old: open the page again.", code="old") from None
    try:
        with opengate_redis.sync_client() as client:
            is_first = client.set(f"opengate:once:{name}", 1, nx=True, ex=LIFE_SECONDS + 60)
    except (redis.RedisError, OSError):
        raise ValidationError(
            "Redis is away: nobody can tell whether this was done before. Try again later.", code="unknown"
        ) from None
    if not is_first:
        raise ValidationError(
            "This form was sent before, and what it asks for was done. Open the page to do it again.", code="used"
        )
