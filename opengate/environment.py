"""What the environment says: every variable OpenGate reads, with its type, default and meaning.

A wrong value does not stop the start: the default is used, and `opengate.checks` reports the mistake with a hint.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

BASE_DIR = Path(__file__).resolve().parent.parent


# Variables whose values are not repeated, secrets or with one in them: a mistake is no reason to write it down.
SECRET = re.compile("SECRET|DSN|STORAGE|DATABASE_URL|REDIS_URL")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _object(value: object) -> object:
    return json.loads(value) if isinstance(value, str) and value else value or {}


def _networks(values: list[str]) -> list[str]:
    for value in values:
        ip_network(value)  # raises ValueError with the value in it
    return values


def _address(value: str) -> str:
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError("it is no address; in a password, / is written %2F, # is %23, ? is %3F and @ is %40") from None
    return value


Words = Annotated[list[str], BeforeValidator(_split)]
Address = Annotated[str, AfterValidator(_address)]
Networks = Annotated[list[str], BeforeValidator(_split), AfterValidator(_networks)]


class Environment(BaseModel):
    """One field a variable; the alias is its name."""

    debug: bool = Field(False, alias="OPENGATE_DEBUG", description="Django's debug mode; never in production.")
    var: Path = Field(
        BASE_DIR / "var", alias="OPENGATE_VAR", description="Folder of uploaded files, and of the quickstart's data."
    )
    secret_key: str = Field("", alias="OPENGATE_SECRET_KEY", description="Signs sessions; at least 32 characters.")
    secret_key_fallbacks: Words = Field(
        [],
        alias="OPENGATE_SECRET_KEY_FALLBACKS",
        description="Former values of OPENGATE_SECRET_KEY, under which sessions still hold.",
    )
    key_secrets: Words = Field(
        [],
        alias="OPENGATE_KEY_SECRETS",
        description="Secrets under which API keys are digested, the current one first; former ones still open.",
    )
    encryption_secrets: Words = Field(
        [],
        alias="OPENGATE_ENCRYPTION_SECRETS",
        description="Secrets that encrypt provider keys, the current one first; former ones still decrypt.",
    )
    database_url: Address = Field("", alias="DATABASE_URL", description="Postgres with pgvector.")
    database_pool: int = Field(
        10, alias="OPENGATE_DATABASE_POOL", ge=0, le=1000, description="Connections a process; 0 opens one a use."
    )
    database_timeout_seconds: float = Field(
        5,
        alias="OPENGATE_DATABASE_TIMEOUT_SECONDS",
        gt=0,
        le=60,
        description="Longest wait of a call with a budget for a Postgres that does not answer.",
    )
    database_patience_seconds: float = Field(
        20,
        alias="OPENGATE_DATABASE_PATIENCE_SECONDS",
        gt=0,
        le=600,
        description="Longest wait of a web process for one answer of Postgres; then its connection is given up.",
    )
    redis_url: Address = Field("", alias="REDIS_URL", description="Redis or Valkey: redis://, rediss:// or unix://.")
    redis_timeout_seconds: float = Field(
        0.1, alias="OPENGATE_REDIS_TIMEOUT_SECONDS", gt=0, le=10, description="Longest wait for one Redis command."
    )
    allowed_hosts: Words = Field(
        ["localhost", "127.0.0.1", "[::1]"],
        alias="OPENGATE_ALLOWED_HOSTS",
        description="Host names by which people and programs come here; requests for others are answered 400.",
    )
    trusted_origins: Words = Field(
        [], alias="OPENGATE_TRUSTED_ORIGINS", description="Origins, with scheme, that may post forms to the console."
    )
    https: bool | None = Field(
        None,
        alias="OPENGATE_HTTPS",
        description="People come by https: cookies are sent over nothing else. Unset: where all trusted origins do.",
    )
    hsts_seconds: int = Field(
        0,
        alias="OPENGATE_HSTS_SECONDS",
        ge=0,
        le=63_072_000,
        description="How long browsers remember to come by https alone (HSTS); 0 says nothing.",
    )
    hsts_subdomains: bool = Field(
        False, alias="OPENGATE_HSTS_SUBDOMAINS", description="HSTS holds for all subdomains of the host, too."
    )
    https_header: str = Field(
        "",
        alias="OPENGATE_HTTPS_HEADER",
        pattern=r"^[A-Za-z-]*$",
        description="Header by which your proxy says https, like X-Forwarded-Proto; it overwrites what a caller sent.",
    )
    session_seconds: int = Field(
        43_200,
        alias="OPENGATE_SESSION_SECONDS",
        ge=60,
        le=31_536_000,
        description="How long somebody who signed in on a page stays signed in.",
    )
    web_workers: int | None = Field(
        None,
        alias="OPENGATE_WEB_WORKERS",
        ge=1,
        le=256,
        description="Web processes of one `manage.py serve`. Unset: one a core (quickstart: 2).",
    )
    drain_delay_seconds: float = Field(
        0,
        alias="OPENGATE_DRAIN_DELAY_SECONDS",
        ge=0,
        le=600,
        description="How long a server that stops is not ready but takes calls: until its load balancer has noticed.",
    )
    grace_seconds: float = Field(
        30,
        alias="OPENGATE_GRACE_SECONDS",
        ge=0,
        le=86_400,
        description="How long open calls may go on in a server that stops, before they are cut.",
    )
    keep_alive_seconds: int = Field(
        75,
        alias="OPENGATE_KEEP_ALIVE_SECONDS",
        ge=1,
        le=3600,
        description="How long an unused connection stays open: longer than your proxy keeps its own.",
    )
    max_header_bytes: int = Field(
        64 * 1024, alias="OPENGATE_MAX_HEADER_BYTES", ge=4096, description="Longest line and headers of a request."
    )
    backlog: int = Field(
        4096, alias="OPENGATE_BACKLOG", ge=1, le=65_535, description="New connections that may wait to be accepted."
    )
    worker_heartbeat: Path | None = Field(
        None,
        alias="OPENGATE_WORKER_HEARTBEAT",
        description="File that a worker touches every 10 s while it is connected, for a probe to look at. Unset: none.",
    )
    trusted_proxies: Networks = Field(
        ["127.0.0.1", "::1"],
        alias="OPENGATE_TRUSTED_PROXIES",
        description="Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )
    app_title: str = Field("OpenGate", alias="OPENGATE_APP_TITLE", description="Title; owner of unowned models.")
    limits_fail_open: bool = Field(
        True,
        alias="OPENGATE_LIMITS_FAIL_OPEN",
        description="With Redis away: let calls pass unlimited (true) or answer 503 (false).",
    )
    rate_limiting_strategy: Literal["fixed_window", "moving_window", "sliding_window"] = Field(
        "fixed_window",
        alias="OPENGATE_RATE_LIMITING_STRATEGY",
        description="How limits forget: from the first call on, exactly, or nearly so at less cost.",
    )
    max_body_bytes: int = Field(
        32 * 1024 * 1024, alias="OPENGATE_MAX_BODY_BYTES", ge=1024, description="Longest request body."
    )
    provider_networks: Words = Field(
        ["loopback", "private"],
        alias="OPENGATE_PROVIDER_NETWORKS",
        description="Networks, besides public ones, that providers may be in: loopback, private, none, or such as "
        "10.2.0.0/16; with only, public ones are closed, too.",
    )
    provider_https_only: bool = Field(
        False, alias="OPENGATE_PROVIDER_HTTPS_ONLY", description="Providers are called by https alone."
    )
    max_held_body_bytes: int = Field(
        256 * 1024 * 1024,
        alias="OPENGATE_MAX_HELD_BODY_BYTES",
        ge=1024 * 1024,
        description="Request bodies that a web process holds at a time; a long one beyond them is answered 503.",
    )
    request_patience_seconds: float = Field(
        30,
        alias="OPENGATE_REQUEST_PATIENCE_SECONDS",
        ge=1,
        le=3600,
        description="How long headers may take to come, and then the body; the body a second more for each 32 KiB.",
    )
    upstream_connect_timeout_seconds: float = Field(
        10, alias="OPENGATE_UPSTREAM_CONNECT_TIMEOUT_SECONDS", gt=0, description="Longest wait for a provider's socket."
    )
    upstream_max_response_bytes: int = Field(
        64 * 1024 * 1024, alias="OPENGATE_UPSTREAM_MAX_RESPONSE_BYTES", ge=1024, description="Longest answer read."
    )
    upstream_max_event_bytes: int = Field(
        8 * 1024 * 1024, alias="OPENGATE_UPSTREAM_MAX_EVENT_BYTES", ge=1024, description="Longest event of a stream."
    )
    upstream_max_calls: int = Field(
        1000,
        alias="OPENGATE_UPSTREAM_MAX_CALLS",
        ge=1,
        description="Calls to one provider at a time, a process: a slow one cannot take what others need.",
    )
    routing_max_wait_seconds: float = Field(
        9,
        alias="OPENGATE_ROUTING_MAX_WAIT_SECONDS",
        gt=0,
        le=600,
        description="How long a call waits when no provider of its model has room, before it is answered 503.",
    )
    routing_max_priority: int = Field(
        4, alias="OPENGATE_ROUTING_MAX_PRIORITY", ge=1, le=10, description="Priorities of users above it count as it."
    )
    max_file_bytes: int = Field(
        20 * 1024 * 1024, alias="OPENGATE_MAX_FILE_BYTES", ge=1024, description="Longest file in a form."
    )
    local_ocr_processes: int = Field(
        2,
        alias="OPENGATE_LOCAL_OCR_PROCESSES",
        ge=0,
        le=64,
        description="Documents that a web process reads at a time where no model is named; 0 turns that off.",
    )
    local_ocr_seconds: int = Field(
        120, alias="OPENGATE_LOCAL_OCR_SECONDS", ge=1, le=3600, description="Longest time for one of them."
    )
    ocr_languages: Words = Field(
        ["fra", "eng"], alias="OPENGATE_OCR_LANGUAGES", description="Languages of scans, by their names in Tesseract."
    )
    parsing_seconds: int = Field(
        300, alias="OPENGATE_PARSING_SECONDS", ge=1, le=3600, description="Longest time for reading a document."
    )
    parsing_memory_bytes: int = Field(
        2 * 1024**3,
        alias="OPENGATE_PARSING_MEMORY_BYTES",
        ge=256 * 1024**2,
        description="Memory for reading a document.",
    )
    embedding_model: str = Field(
        "",
        alias="OPENGATE_EMBEDDING_MODEL",
        description="Name or alias of the model that embeds collections without one of their own; unset: the first.",
    )
    search_language: Literal["english", "french", "german", "italian", "portuguese", "spanish", "swedish"] = Field(
        "english",
        alias="OPENGATE_SEARCH_LANGUAGE",
        description="Language of collections that name none: how lexical search knows their words.",
    )
    document_storage: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(
        {},
        alias="OPENGATE_DOCUMENT_STORAGE",
        description='Django storage of uploaded files, as JSON: {"BACKEND": …, "OPTIONS": …}. Unset: a local folder.',
    )
    upload_wait_seconds: float = Field(
        600,
        alias="OPENGATE_UPLOAD_WAIT_SECONDS",
        ge=0,
        le=86_400,
        description="How long an upload waits until its document can be searched, before it is answered 202.",
    )
    upload_patience_seconds: float = Field(
        30,
        alias="OPENGATE_UPLOAD_PATIENCE_SECONDS",
        ge=0,
        le=86_400,
        description="How long an upload that waits goes on waiting for a model that is away.",
    )
    ingestion_lease_seconds: float = Field(
        30,
        alias="OPENGATE_INGESTION_LEASE_SECONDS",
        ge=2,
        le=3600,
        description="How long after its worker fell silent a document is taken up by another.",
    )
    ingestion_tries: int = Field(
        20,
        alias="OPENGATE_INGESTION_TRIES",
        ge=1,
        le=1000,
        description="How often a document is tried again, ever more slowly, while its model is away.",
    )
    usage_queue_records: int = Field(
        10_000,
        alias="OPENGATE_USAGE_QUEUE_RECORDS",
        ge=1,
        description="Usage records a process holds in memory while Redis is away; the oldest is dropped beyond.",
    )
    usage_retention_days: int | None = Field(
        None,
        alias="OPENGATE_USAGE_RETENTION_DAYS",
        ge=1,
        le=36_500,
        description="Days that the records of single calls are kept; daily sums stay. Unset: for ever.",
    )
    reservation_lease_seconds: float = Field(
        60,
        alias="OPENGATE_RESERVATION_LEASE_SECONDS",
        ge=1,
        le=3600,
        description="How long after its process fell silent a call is charged at its estimate.",
    )
    unknown_answer_tokens: int = Field(
        1024,
        alias="OPENGATE_UNKNOWN_ANSWER_TOKENS",
        ge=1,
        le=1_000_000,
        description="Tokens reserved for an answer of a router that has not answered yet, without max_tokens.",
    )
    datacenter_pue: float = Field(1.2, alias="OPENGATE_DATACENTER_PUE", ge=1, description="Power usage effectiveness.")
    datacenter_wue: float = Field(1.8, alias="OPENGATE_DATACENTER_WUE", ge=0, description="Water usage, litres a kWh.")
    key_max_expiration_days: int | None = Field(
        None,
        alias="OPENGATE_KEY_MAX_EXPIRATION_DAYS",
        ge=1,
        le=36_500,
        description="Longest life of a new key; one without an expiry gets this one. Unset: any.",
    )
    playground_session_seconds: int = Field(
        3600,
        alias="OPENGATE_PLAYGROUND_SESSION_SECONDS",
        ge=60,
        le=31_536_000,
        description="Life of the key that /v1/auth/login gives.",
    )
    login_failures: int = Field(
        10, alias="OPENGATE_LOGIN_FAILURES", ge=1, le=1000, description="Mistaken passwords until a login is refused."
    )
    login_cooloff_seconds: int = Field(
        300, alias="OPENGATE_LOGIN_COOLOFF_SECONDS", ge=1, le=86_400, description="How long it is refused then."
    )
    password_login: bool = Field(
        True,
        alias="OPENGATE_PASSWORD_LOGIN",
        description="People may sign in with a password; false leaves single sign-on alone, also at /v1/auth/login.",
    )
    public_url: str = Field(
        "",
        alias="OPENGATE_PUBLIC_URL",
        pattern=r"^(https?://[A-Za-z0-9.\-]+(:[0-9]+)?|https?://\[[0-9a-fA-F:.]+\](:[0-9]+)?)?/?$",
        description="Where people reach the pages, like https://ai.example.org. Unset: by the Host they asked for.",
    )
    oidc_issuer: str = Field(
        "",
        alias="OPENGATE_OIDC_ISSUER",
        max_length=255,
        description="Issuer of the identity provider (OpenID Connect) by which people sign in. Unset: no such sign-in.",
    )
    oidc_client_id: str = Field(
        "", alias="OPENGATE_OIDC_CLIENT_ID", description="How the identity provider knows this gateway."
    )
    oidc_client_secret: str = Field(
        "", alias="OPENGATE_OIDC_CLIENT_SECRET", description="What the gateway proves that with. Unset: PKCE alone."
    )
    oidc_scopes: str = Field(
        "openid email profile",
        alias="OPENGATE_OIDC_SCOPES",
        pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]+$",
        description="What the identity provider is asked for, separated by spaces; openid must be among it.",
    )
    oidc_name: str = Field(
        "", alias="OPENGATE_OIDC_NAME", max_length=60, description="Its name on the button. Unset: its host."
    )
    oidc_role: str = Field(
        "",
        alias="OPENGATE_OIDC_ROLE",
        description="Role of people who come for the first time. Unset: who has no account gets none.",
    )
    oidc_organization: str = Field(
        "", alias="OPENGATE_OIDC_ORGANIZATION", description="Their organization. Unset: none."
    )
    oidc_groups_claim: str = Field(
        "groups", alias="OPENGATE_OIDC_GROUPS_CLAIM", description="Claim with the groups or roles of a person."
    )
    oidc_group_roles: Annotated[dict[str, str], BeforeValidator(_object)] = Field(
        {},
        alias="OPENGATE_OIDC_GROUP_ROLES",
        description='Roles of new people by group, as JSON: {"group": "role"}. The first that fits, else the default.',
    )
    oidc_email_domains: Words = Field(
        [], alias="OPENGATE_OIDC_EMAIL_DOMAINS", description="Domains of the e-mails that may sign in. Unset: all."
    )
    oidc_trust_email: bool = Field(
        False,
        alias="OPENGATE_OIDC_TRUST_EMAIL",
        description="E-mails of which the identity provider does not say whether they are verified count as verified.",
    )
    oidc_logout: bool = Field(
        False, alias="OPENGATE_OIDC_LOGOUT", description="Who signs out here is signed out at the identity provider."
    )
    oidc_timeout_seconds: float = Field(
        5, alias="OPENGATE_OIDC_TIMEOUT_SECONDS", gt=0, le=60, description="Longest wait for one of its answers."
    )
    metrics: bool = Field(True, alias="OPENGATE_METRICS", description="Prometheus metrics at /metrics; false: 404.")
    metrics_folder: Path | None = Field(
        None,
        alias="PROMETHEUS_MULTIPROC_DIR",
        description="Where the processes of a machine count together; `serve` empties it. Unset: a temporary folder.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", alias="OPENGATE_LOG_LEVEL", description="Least level written to the log."
    )
    log_format: Literal["text", "json"] = Field(
        "text", alias="OPENGATE_LOG_FORMAT", description="Lines for people, or a JSON object a line."
    )
    access_log: bool = Field(False, alias="OPENGATE_ACCESS_LOG", description="A line of the log for each request.")
    traces: bool = Field(
        False,
        alias="OPENGATE_TRACES",
        description="Sends OpenTelemetry traces, as the variables OTEL_… say: OTEL_EXPORTER_OTLP_ENDPOINT before all.",
    )
    traces_to_providers: bool = Field(
        False,
        alias="OPENGATE_TRACES_TO_PROVIDERS",
        description="Tells providers which trace a call is part of, by the header traceparent.",
    )
    otel_service_name: str = Field(
        "opengate", alias="OTEL_SERVICE_NAME", description="What this service is called in traces."
    )
    sentry_dsn: str = Field(
        "",
        alias="OPENGATE_SENTRY_DSN",
        pattern=r"^(https?://[^@/\s]+@[^@/\s]+/(\S+/)?\d+)?$",
        description="Where errors of ours are reported: the DSN of a Sentry project. Unset: nowhere.",
    )
    sentry_environment: str = Field(
        "production", alias="OPENGATE_SENTRY_ENVIRONMENT", description="What this installation is called there."
    )

    @property
    def comes_by_https(self) -> bool:
        """Whether pages are reached by https: as said, or as all origins say that are trusted."""
        if self.https is not None:
            return self.https
        return bool(self.trusted_origins) and all(origin.startswith("https://") for origin in self.trusted_origins)


# Read by others: `manage.py quickstart`, compose.yaml, and programs that call the gateway.
OF_OTHERS = frozenset(
    {"OPENGATE_HOST", "OPENGATE_PORT", "OPENGATE_BIND", "OPENGATE_IMAGE", "OPENGATE_API_KEY", "OPENGATE_TEST_SERVER"}
)


class Problem(BaseModel):
    """A variable whose value was not understood."""

    variable: str
    message: str
    hint: str


def read(variables: dict[str, str] | None = None) -> tuple[Environment, list[Problem]]:
    """The environment and what is wrong with it; `variables` stands for the process's own. Empty means unset."""
    variables = dict(os.environ) if variables is None else variables
    names = {field.alias: field for field in Environment.model_fields.values() if field.alias}
    given: dict[str, Any] = {name: variables[name] for name in names if variables.get(name)}
    try:
        return _with_files(Environment.model_validate(given)), []
    except ValidationError as error:
        problems = [
            Problem(
                variable=str(fault["loc"][0]),
                message=f"{_shown(str(fault['loc'][0]), given)}: {fault['msg']}.",
                hint=f"{names[str(fault['loc'][0])].description} Until then the default is in force.",
            )
            for fault in error.errors()
        ]
    for problem in problems:
        given.pop(problem.variable, None)
    return _with_files(Environment.model_validate(given)), problems


def unknown() -> list[tuple[str, str]]:
    """Variables that are named as if they were ours, each with the one that it may stand for, or nothing."""
    known = {field.alias for field in Environment.model_fields.values() if field.alias}
    found = sorted(name for name in os.environ if name.startswith("OPENGATE_") and name not in known | OF_OTHERS)
    return [(name, next(iter(get_close_matches(name, known, n=1, cutoff=0.85)), "")) for name in found]


def _shown(name: str, given: Mapping[str, Any]) -> str:
    return name if SECRET.search(name) else f"{name}={given[name]!r}"


def create_secrets(var: Path) -> Path:
    """Make `var/secrets.json` (mode 0600) once, for the embedded default; a later call leaves it as it is."""
    path = var / "secrets.json"
    if not path.exists():
        var.mkdir(parents=True, exist_ok=True)
        made = {
            "secret_key": secrets.token_urlsafe(48),
            "key_secrets": [secrets.token_urlsafe(48)],
            "encryption_secrets": [secrets.token_urlsafe(48)],
        }
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(made, file)
    return path


def _with_files(environment: Environment) -> Environment:
    """What the variables leave out comes from the files that quickstart keeps in `var`."""
    found: dict[str, Any] = {}
    for name, fields in (
        ("secrets.json", ("secret_key", "key_secrets", "encryption_secrets")),
        ("quickstart.json", ("database_url", "redis_url")),
    ):
        try:
            content = json.loads((environment.var / name).read_text())
        except (OSError, ValueError):
            continue
        found |= {field: content[field] for field in fields if content.get(field) and not getattr(environment, field)}
    return environment.model_copy(update=found)
