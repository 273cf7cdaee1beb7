"""`manage.py variables`: every variable of the environment, as the page docs/configuration.md."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen
from django.core.management.base import BaseCommand
from pydantic.fields import FieldInfo

from opengate.environment import BASE_DIR, Environment

UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


class Group(NamedTuple):
    """A heading of the page; names of fields of `Environment`, in the order of the page; where to read more."""

    heading: str
    fields: str
    see: str


GROUPS = (
    Group(
        "Needed",
        "database_url redis_url secret_key key_secrets encryption_secrets allowed_hosts",
        "[Deploy](deploy.md), [new secrets](security.md#new-secrets)",
    ),
    Group(
        "Names and files",
        "app_title public_url var document_storage debug",
        "[What must last](deploy.md#what-must-last)",
    ),
    Group(
        "https, proxies and who may come",
        "trusted_origins https https_header hsts_seconds hsts_subdomains trusted_proxies secret_key_fallbacks "
        "session_seconds playground_session_seconds password_login login_failures login_cooloff_seconds "
        "key_max_expiration_days",
        "[Behind a proxy](operations.md#behind-a-proxy), [security](security.md)",
    ),
    Group(
        "Single sign-on",
        "oidc_issuer oidc_client_id oidc_client_secret oidc_name oidc_scopes oidc_role oidc_organization "
        "oidc_groups_claim oidc_group_roles oidc_email_domains oidc_trust_email oidc_logout oidc_timeout_seconds",
        "[Single sign-on](single-sign-on.md)",
    ),
    Group(
        "The web server",
        "web_workers drain_delay_seconds grace_seconds keep_alive_seconds backlog max_header_bytes max_body_bytes "
        "max_held_body_bytes request_patience_seconds",
        "[Operations](operations.md), [attacks](attacks.md)",
    ),
    Group(
        "Postgres, Redis and workers",
        "database_pool database_timeout_seconds database_patience_seconds redis_timeout_seconds limits_fail_open "
        "worker_heartbeat",
        "[When a dependency is slow, dead or lies](faults.md)",
    ),
    Group(
        "Models and providers",
        "provider_networks provider_https_only upstream_connect_timeout_seconds upstream_max_calls "
        "upstream_max_response_bytes upstream_max_event_bytes routing_max_wait_seconds routing_max_priority",
        "[Where providers may be](security.md#where-providers-may-be), [routing](routing.md)",
    ),
    Group(
        "Limits, budgets and usage",
        "rate_limiting_strategy unknown_answer_tokens reservation_lease_seconds usage_queue_records "
        "usage_retention_days datacenter_pue datacenter_wue",
        "[Limits, budgets and usage](money.md)",
    ),
    Group(
        "Files, documents and search",
        "max_file_bytes embedding_model search_language upload_wait_seconds upload_patience_seconds "
        "ingestion_lease_seconds ingestion_tries parsing_seconds parsing_memory_bytes local_ocr_processes "
        "local_ocr_seconds ocr_languages",
        "[Documents and search](documents.md)",
    ),
    Group(
        "Metrics, log, traces and error reports",
        "metrics metrics_folder log_level log_format access_log traces traces_to_providers otel_service_name "
        "sentry_dsn sentry_environment",
        "[Observability](observability.md), [log and traces](logging.md)",
    ),
)

INTRODUCTION = """\
# Configuration

Every variable of the environment that OpenGate reads. This page is made by `manage.py variables` (`make reference`) out
of `opengate/environment.py`; a test holds the two against each other.

A variable that is empty counts as not set. A value that is wrong does not stop the start: the default is in force, and
`manage.py check` names the variable and the mistake; `manage.py check --deploy` also says what is unwise. Web
processes, workers and commands read the same variables, at their start. A list has commas between its parts.

Routers, providers, roles and organizations are no variables: they are in the database, and may come from
[a file](configuration-as-code.md).
"""

QUICKSTART = """\
## The quickstart

`make quickstart` sets what is needed by itself: it makes the three secrets, in `secrets.json` of `OPENGATE_VAR`, and
starts what `DATABASE_URL` and `REDIS_URL` do not name. It also reads these two:

| variable | type | default | meaning |
|---|---|---|---|
| `OPENGATE_HOST` | text | `127.0.0.1` | Address that the quickstart listens on; `manage.py serve` has `--host`. |
| `OPENGATE_PORT` | whole number, 1 to 65535 | 8000 | Its port; `manage.py serve` has `--port`. |

## Of others

`OTEL_…` are read by OpenTelemetry ([which](logging.md#traces)). `SSL_CERT_FILE`, `HTTPS_PROXY` and `NO_PROXY` hold for
the way to the identity provider, not for that to models. `PGOPTIONS` and its like are read by the client of Postgres.
"""


def page() -> str:
    """The whole page, as it stands in docs/configuration.md."""
    return "\n".join([INTRODUCTION, *(_section(group) for group in GROUPS), QUICKSTART])


def _section(group: Group) -> str:
    rows = [_row(Environment.model_fields[name]) for name in group.fields.split()]
    table = "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows])
    return f"## {group.heading}\n\n{table}\n\nMore: {group.see}.\n"


def _row(field: FieldInfo) -> str:
    kind = ", ".join([_type(field.annotation), *_bounds(field)])
    return f"| `{field.alias}` | {kind} | {_default(field)} | {field.description} |"


def _type(annotation: Any) -> str:
    if isinstance(annotation, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin := get_origin(annotation):
        return {list: "list", dict: "JSON object"}[origin]
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "path"}[annotation]


def _bounds(field: FieldInfo) -> Iterator[str]:
    """In words: "from 1", "more than 0", "up to 60", "1 to 60"."""
    bounds = {type(bound): bound for bound in field.metadata}
    if Ge in bounds and Le in bounds:
        yield f"{_number(bounds[Ge].ge)} to {_number(bounds[Le].le)}"
        return
    if Ge in bounds:
        yield f"from {_number(bounds[Ge].ge)}"
    if Gt in bounds:
        yield f"more than {_number(bounds[Gt].gt)}"
    if Le in bounds:
        yield f"up to {_number(bounds[Le].le)}"
    if MaxLen in bounds:
        yield f"up to {bounds[MaxLen].max_length} characters"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value in (None, "", [], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return _number(value) + (_size(value) if str(field.alias).endswith("_BYTES") else "")
    if isinstance(value, list):
        return f"`{','.join(value)}`"
    if isinstance(value, Path):
        return f"`{value.relative_to(BASE_DIR)}` of the checkout"
    return f"`{value}`"


def _number(value: float) -> str:
    """As it can be typed: without commas or exponents."""
    return str(value) if isinstance(value, int) else str(int(value)) if value.is_integer() else str(value)


def _size(value: float) -> str:
    """A number of bytes in words."""
    unit, size = next((unit, size) for unit, size in UNITS if value >= size)
    return f" ({value / size:g} {unit})"


class Command(BaseCommand):
    """Print the page."""

    help = "Prints every variable of the environment with type, default and meaning, as Markdown."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(page(), ending="")
