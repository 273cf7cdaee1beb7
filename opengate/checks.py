"""System checks: what is wrong with the environment, with a hint each."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.files.storage import storages
from django.core.files.storage.handler import InvalidStorageError
from django.db import DatabaseError

from accounts.sign_ins import is_secure
from opengate import egress, encryption, environment

LEAST_SECRET_LENGTH = 32
_GENERATE = 'python -c "import secrets; print(secrets.token_urlsafe(48))"'


@register
def environment_is_understood(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [Error(problem.message, hint=problem.hint, id="opengate.E001") for problem in settings.ENVIRONMENT_PROBLEMS]


@register
def variables_are_known(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A name with a typing error would change nothing, and nobody would know."""
    return [
        Warning(
            f"{name} is no variable of OpenGate's.",
            hint=f"Did you mean {meant}?" if meant else "All of them are in opengate/environment.py.",
            id="opengate.W008",
        )
        for name, meant in environment.unknown()
    ]


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


# Words of examples, which everybody can read.
_EXAMPLES = ("change", "replace", "example", "dummy", "insecure", "tests-only", "your-", "password", "12345")
_LEAST_CHARACTERS = 10


def _all_secrets() -> list[tuple[str, str]]:
    """Each secret, the former ones too, beside the name of its variable."""
    return [
        ("OPENGATE_SECRET_KEY", settings.ENVIRONMENT.secret_key),
        *(("OPENGATE_SECRET_KEY_FALLBACKS", secret) for secret in settings.SECRET_KEY_FALLBACKS),
        *(("OPENGATE_KEY_SECRETS", secret) for secret in settings.KEY_SECRETS),
        *(("OPENGATE_ENCRYPTION_SECRETS", secret) for secret in settings.ENCRYPTION_SECRETS),
    ]


@register
def secrets_are_apart(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """What leaks in one place opens no other."""
    found: list[CheckMessage] = []
    seen: dict[str, str] = {}
    for name, secret in _all_secrets():
        if secret and secret in seen:
            hint = f"One secret, one use: {_GENERATE}"
            found.append(Warning(f"{name} has a secret that {seen[secret]} has, too.", hint=hint, id="opengate.W003"))
        seen.setdefault(secret, name)
    return found


@register(deploy=True)
def secrets_are_no_examples(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    guessed = {
        name: None
        for name, secret in _all_secrets()
        if secret and (len(set(secret)) < _LEAST_CHARACTERS or any(word in secret.lower() for word in _EXAMPLES))
    }
    hint = f"Make one with: {_GENERATE}"
    return [
        Error(f"{name} can be guessed: it looks like an example.", hint=hint, id="opengate.E008") for name in guessed
    ]


@register
def provider_networks_are_understood(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = "What is not understood opens nothing; link-local, metadata and multicast addresses never open."
    return [
        Error(f"OPENGATE_PROVIDER_NETWORKS: {fault}", hint=hint, id="opengate.E009")
        for fault in egress.faults_of(settings.PROVIDER_NETWORKS)
    ]


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


@register(deploy=True)
def hosts_are_named(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A host that anybody can claim is none; one that nobody outside has is none either."""
    if "*" in settings.ALLOWED_HOSTS:
        hint = "Name the hosts, as people and programs write them."
        return [Warning("OPENGATE_ALLOWED_HOSTS lets every host in.", hint=hint, id="opengate.W004")]
    if set(settings.ALLOWED_HOSTS) <= LOCAL_HOSTS:
        hint = "Name the hosts by which people and programs come; others are answered 400."
        return [Warning("OPENGATE_ALLOWED_HOSTS has this machine's own names alone.", hint=hint, id="opengate.W005")]
    return []


@register(deploy=True)
def origins_come_by_https(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = "Whoever can change what passes on the way could post forms in the name of whoever is signed in."
    return [
        Warning(f"OPENGATE_TRUSTED_ORIGINS trusts {origin}.", hint=hint, id="opengate.W006")
        for origin in settings.CSRF_TRUSTED_ORIGINS
        if not origin.startswith("https://")
    ]


@register(Tags.database)
def encrypted_rows_can_be_read(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """With `check --database default`, and before migrations."""
    if not databases or not settings.ENCRYPTION_SECRETS:
        return []
    columns = encryption.columns()
    try:
        for column in columns:
            column.look()
    except DatabaseError:
        return []  # not there yet
    hint = "Put the former secret behind the current one in OPENGATE_ENCRYPTION_SECRETS, or give these rows a new key."
    return [
        Warning(f"{column}: no secret opens {_some(column.unreadable)}.", hint=hint, id="opengate.W007")
        for column in columns
        if column.unreadable
    ]


def _some(ids: list[Any]) -> str:
    """How many rows, and the first of them by their ids."""
    return f"{len(ids)} of its rows: {', '.join(map(str, ids[:10]))}{', …' if len(ids) > 10 else ''}"


@register
def single_sign_on_is_whole(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    issuer, client = settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID
    found: list[CheckMessage] = []

    def wrong(message: str, hint: str) -> None:
        found.append(Error(message, hint=hint, id="opengate.E007"))

    if bool(issuer) != bool(client):
        missing = "OPENGATE_OIDC_CLIENT_ID" if issuer else "OPENGATE_OIDC_ISSUER"
        wrong(f"{missing} is not set.", "Single sign-on takes an issuer and a client; see docs/single-sign-on.md.")
    if issuer and not is_secure(issuer):
        wrong("OPENGATE_OIDC_ISSUER is not https.", "It begins with https://, or with http:// on this machine.")
    if issuer and "openid" not in settings.OIDC_SCOPES.split():
        wrong("OPENGATE_OIDC_SCOPES lacks openid.", "Without it there is no id token: openid email profile.")
    if issuer and not settings.PUBLIC_URL and "*" in settings.ALLOWED_HOSTS:
        wrong("OPENGATE_PUBLIC_URL is not set.", "With every Host allowed nobody knows where people come back to.")
    if any(not isinstance(value, str) or not value for value in settings.OIDC_GROUP_ROLES.values()):
        wrong("OPENGATE_OIDC_GROUP_ROLES names no role.", 'JSON like {"group at the provider": "role here"}.')
    if not settings.PASSWORD_LOGIN and not (issuer and client):
        wrong("Nobody can sign in on a page.", "Set OPENGATE_PASSWORD_LOGIN to true, or up single sign-on.")
    return found
