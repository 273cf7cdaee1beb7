"""System checks: what is wrong with the environment, with a hint each."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.files.storage import storages
from django.core.files.storage.handler import InvalidStorageError

LEAST_SECRET_LENGTH = 32
_GENERATE = 'python -c "import secrets; print(secrets.token_urlsafe(48))"'


@register
def environment_is_understood(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [Error(problem.message, hint=problem.hint, id="opengate.E001") for problem in settings.ENVIRONMENT_PROBLEMS]


@register
def secrets_are_set(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for name, values in (
        ("OPENGATE_SECRET_KEY", [key] if (key := settings.ENVIRONMENT.secret_key) else []),
        ("OPENGATE_KEY_SECRETS", settings.KEY_SECRETS),
        ("OPENGATE_ENCRYPTION_SECRETS", settings.ENCRYPTION_SECRETS),
    ):
        if not values:
            found.append(Error(f"{name} is not set.", hint=f"Make one with: {_GENERATE}", id="opengate.E002"))
        elif any(len(value) < LEAST_SECRET_LENGTH for value in values):
            hint = f"At least {LEAST_SECRET_LENGTH} characters: {_GENERATE}"
            found.append(Error(f"{name} is too short to be a secret.", hint=hint, id="opengate.E003"))
    return found


@register
def addresses_are_set(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for name, value, schemes in (
        ("DATABASE_URL", settings.ENVIRONMENT.database_url, ("postgresql://", "postgres://")),
        ("REDIS_URL", settings.ENVIRONMENT.redis_url, ("redis://", "rediss://", "unix://")),
    ):
        if not value:
            hint = f"Set it to {schemes[0]}…, or start the embedded servers with `make quickstart`."
            found.append(Error(f"{name} is not set.", hint=hint, id="opengate.E004"))
        elif not value.startswith(schemes):
            hint = f"It starts with {' or '.join(schemes)}."
            found.append(Error(f"{name} has an unknown scheme.", hint=hint, id="opengate.E005"))
    return found


@register
def documents_have_a_storage(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    try:
        storages["documents"]
    except (InvalidStorageError, KeyError, TypeError) as error:
        hint = (
            'JSON like {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {…}}, of a package that is installed.'
        )
        return [Error(f"OPENGATE_DOCUMENT_STORAGE is no storage: {error!r}", hint=hint, id="opengate.E006")]
    return []


@register
def debug_is_off(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if settings.DEBUG:
        return [Warning("OPENGATE_DEBUG is on.", hint="Never in production: it shows settings.", id="opengate.W001")]
    return []


LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]", "testserver"}


@register
def passwords_go_by_https(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Whoever serves more than this machine sends passwords and sessions over a wire."""
    if settings.HTTPS or set(settings.ALLOWED_HOSTS) <= LOCAL_HOSTS:
        return []
    hint = (
        "Put https in front, and set OPENGATE_TRUSTED_ORIGINS to https://… or OPENGATE_HTTPS to true; "
        "OPENGATE_HTTPS_HEADER names the header by which the proxy says so."
    )
    return [Warning("Pages are served by http to other machines.", hint=hint, id="opengate.W002")]
