"""Django's settings: from the environment (see `opengate.environment`), with defaults that work on a laptop."""

import sys
from datetime import timedelta
from typing import Any

import dj_database_url
from csp.constants import NONE, SELF
from kombu import Queue

from opengate import environment
from opengate.environment import BASE_DIR
from opengate.patience import PatientConnection

ENVIRONMENT, ENVIRONMENT_PROBLEMS = environment.read()

DEBUG = ENVIRONMENT.debug
SECRET_KEY = ENVIRONMENT.secret_key
SECRET_KEY_FALLBACKS = ENVIRONMENT.secret_key_fallbacks
KEY_SECRETS = ENVIRONMENT.key_secrets
ENCRYPTION_SECRETS = ENVIRONMENT.encryption_secrets
ALLOWED_HOSTS = ENVIRONMENT.allowed_hosts
CSRF_TRUSTED_ORIGINS = ENVIRONMENT.trusted_origins

WEB_WORKERS = ENVIRONMENT.web_workers
DRAIN_DELAY_SECONDS = ENVIRONMENT.drain_delay_seconds
GRACE_SECONDS = ENVIRONMENT.grace_seconds
KEEP_ALIVE_SECONDS = ENVIRONMENT.keep_alive_seconds
MAX_HEADER_BYTES = ENVIRONMENT.max_header_bytes
BACKLOG = ENVIRONMENT.backlog
TRUSTED_PROXIES = ENVIRONMENT.trusted_proxies
WORKER_HEARTBEAT = ENVIRONMENT.worker_heartbeat

VERSION = "0.1.0"
APP_TITLE = ENVIRONMENT.app_title
LIMITS_FAIL_OPEN = ENVIRONMENT.limits_fail_open
RATE_LIMITING_STRATEGY = ENVIRONMENT.rate_limiting_strategy
MAX_BODY_BYTES = ENVIRONMENT.max_body_bytes
PROVIDER_NETWORKS = ENVIRONMENT.provider_networks
PROVIDER_SCHEMES = ("https://",) if ENVIRONMENT.provider_https_only else ("https://", "http://")
MAX_HELD_BODY_BYTES = ENVIRONMENT.max_held_body_bytes
REQUEST_PATIENCE_SECONDS = ENVIRONMENT.request_patience_seconds
UPSTREAM_CONNECT_TIMEOUT_SECONDS = ENVIRONMENT.upstream_connect_timeout_seconds
UPSTREAM_MAX_CALLS = ENVIRONMENT.upstream_max_calls
UPSTREAM_MAX_RESPONSE_BYTES = ENVIRONMENT.upstream_max_response_bytes
UPSTREAM_MAX_EVENT_BYTES = ENVIRONMENT.upstream_max_event_bytes
ROUTING_MAX_WAIT_SECONDS = ENVIRONMENT.routing_max_wait_seconds
ROUTING_MAX_PRIORITY = ENVIRONMENT.routing_max_priority
MAX_FILE_BYTES = ENVIRONMENT.max_file_bytes
DATA_UPLOAD_MAX_NUMBER_FIELDS = 20_000  # a table of limits has six a row
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES  # no other limit than the one that counts bytes as they come
LOCAL_OCR_PROCESSES = ENVIRONMENT.local_ocr_processes
LOCAL_OCR_SECONDS = ENVIRONMENT.local_ocr_seconds
OCR_LANGUAGES = ENVIRONMENT.ocr_languages
PARSING_SECONDS = ENVIRONMENT.parsing_seconds
PARSING_MEMORY_BYTES = ENVIRONMENT.parsing_memory_bytes
EMBEDDING_MODEL = ENVIRONMENT.embedding_model
SEARCH_LANGUAGE = ENVIRONMENT.search_language
UPLOAD_WAIT_SECONDS = ENVIRONMENT.upload_wait_seconds
UPLOAD_PATIENCE_SECONDS = ENVIRONMENT.upload_patience_seconds
INGESTION_LEASE_SECONDS = ENVIRONMENT.ingestion_lease_seconds
INGESTION_TRIES = ENVIRONMENT.ingestion_tries
USAGE_QUEUE_RECORDS = ENVIRONMENT.usage_queue_records
USAGE_RETENTION_DAYS = ENVIRONMENT.usage_retention_days
RESERVATION_LEASE_SECONDS = ENVIRONMENT.reservation_lease_seconds
UNKNOWN_ANSWER_TOKENS = ENVIRONMENT.unknown_answer_tokens
METRICS = ENVIRONMENT.metrics
METRICS_FOLDER = ENVIRONMENT.metrics_folder
DATACENTER_PUE = ENVIRONMENT.datacenter_pue
DATACENTER_WUE = ENVIRONMENT.datacenter_wue

INSTALLED_APPS = [
    # Its `runserver` speaks ASGI. Nothing else needs the app, nor Twisted, which comes with it and weighs a lot.
    *(["daphne"] if "runserver" in sys.argv else []),
    "opengate.apps.ConsoleConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "axes",
    "auditlog",
    "csp",
    "opengate",
    "accounts",
    "routing",
    "usage",
    "inference",
    "knowledge",
]

MIDDLEWARE = [
    "opengate.request_id.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "csp.middleware.CSPMiddleware",
    "opengate.pages.refuse_nul",
    "opengate.api.refuse_methods",
]

ROOT_URLCONF = "opengate.urls"
ASGI_APPLICATION = "opengate.asgi.application"
APPEND_SLASH = False
CSRF_FAILURE_VIEW = "opengate.api.csrf_failure"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Without an address of a Postgres Django starts all the same, so that `manage.py check` can say what is missing.
DATABASE_URL = (
    ENVIRONMENT.database_url
    if ENVIRONMENT.database_url.startswith(("postgresql://", "postgres://"))
    else "postgresql:///opengate"
)
_database: dict[str, Any] = dict(dj_database_url.parse(DATABASE_URL))
_database.setdefault("OPTIONS", {})
_database["OPTIONS"]["connect_timeout"] = 3
# A host that is gone without a word is noticed in half a minute, not in hours.
_database["OPTIONS"] |= {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
if ENVIRONMENT.database_pool:
    # A connection that cannot be made is given up soon, and tried anew by whoever asks next: the pool's own pauses
    # between tries would outlive a long outage by minutes.
    _database["OPTIONS"]["pool"] = {
        "min_size": 0,
        "max_size": ENVIRONMENT.database_pool,
        "timeout": 3,
        "reconnect_timeout": 1,
        "connection_class": PatientConnection,
    }
# Behind a pooler that gives connections away after each transaction, a cursor of the server's does not survive.
_database["DISABLE_SERVER_SIDE_CURSORS"] = True
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASE_PATIENCE_SECONDS = ENVIRONMENT.database_patience_seconds
DATABASE_TIMEOUT_SECONDS = ENVIRONMENT.database_timeout_seconds

REDIS_URL = ENVIRONMENT.redis_url or "redis://127.0.0.1:6379/0"
REDIS_TIMEOUT_SECONDS = ENVIRONMENT.redis_timeout_seconds

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
# A Redis that says nothing holds up nobody; longer than the second for which a worker waits for work.
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 4.0, "socket_connect_timeout": 2.0}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CHANNEL_ERROR_RETRY = True  # a Redis that dies in the middle of an answer is an outage, too
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Reading and embedding takes minutes: a worker of its own (`-Q documents`) keeps that from what takes milliseconds.
DOCUMENTS_QUEUE = "documents"
CELERY_TASK_DEFAULT_QUEUE = "celery"
CELERY_TASK_QUEUES = [Queue("celery"), Queue(DOCUMENTS_QUEUE)]
CELERY_TASK_ROUTES = {
    f"knowledge.tasks.{name}": {"queue": DOCUMENTS_QUEUE}
    for name in ("ingest_document", "reembed_collection", "index_spaces")
}
CELERY_BEAT_SCHEDULE = {
    "drain-usage": {"task": "usage.tasks.drain_usage", "schedule": 1.0, "options": {"expires": 1.0}},
    "recover-reservations": {
        "task": "usage.tasks.recover_reservations",
        "schedule": 5.0,
        "options": {"expires": 5.0},
    },
    "learn-estimates": {"task": "usage.tasks.learn_estimates", "schedule": 10.0, "options": {"expires": 10.0}},
    "refill-accounts": {"task": "usage.tasks.refill_accounts", "schedule": 60.0, "options": {"expires": 60.0}},
    "feed-ingestion": {"task": "knowledge.tasks.feed_ingestion", "schedule": 2.0, "options": {"expires": 2.0}},
    "feed-reembedding": {"task": "knowledge.tasks.feed_reembedding", "schedule": 10.0, "options": {"expires": 10.0}},
    "tidy-documents": {"task": "knowledge.tasks.tidy", "schedule": 60.0, "options": {"expires": 60.0}},
    "forget-words": {"task": "knowledge.tasks.forget_words", "schedule": 3600.0, "options": {"expires": 3600.0}},
    "index-spaces": {"task": "knowledge.tasks.index_spaces", "schedule": 60.0, "options": {"expires": 60.0}},
    "roll-up-usage": {"task": "usage.tasks.roll_up_usage", "schedule": 15.0, "options": {"expires": 15.0}},
    "clear-sessions": {"task": "accounts.tasks.clear_sessions", "schedule": 86_400.0, "options": {"expires": 86_400.0}},
    "delete-old-usage": {"task": "usage.tasks.delete_old_usage", "schedule": 300.0, "options": {"expires": 300.0}},
}

AUTH_USER_MODEL = "accounts.User"
# Who may come in is asked where they come in: the console wants an open account, the API lets an expired one look.
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "accounts.passwords.PasswordBackend",
]
PASSWORD_HASHERS = ["accounts.passwords.PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# An account is closed to an address after some mistaken passwords, for a while; others still come in.
AXES_FAILURE_LIMIT = ENVIRONMENT.login_failures
AXES_COOLOFF_TIME = timedelta(seconds=ENVIRONMENT.login_cooloff_seconds)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_USERNAME_FORM_FIELD = "username"
AXES_CLIENT_IP_CALLABLE = "opengate.request_id.client_address"
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False
# No middleware of axes: it replaces answers. The login page and the login endpoint say themselves what is wrong.
SILENCED_SYSTEM_CHECKS = [
    "axes.W002",
    "security.W005",  # HSTS of subdomains and of browsers' own lists decides about more than this host:
    "security.W021",  # OPENGATE_HSTS_SUBDOMAINS is for whoever may decide that
    "security.W008",  # whoever speaks https for us sends people there, and probes come by http
]

AUDITLOG_STORE_JSON_CHANGES = True

KEY_MAX_EXPIRATION_DAYS = ENVIRONMENT.key_max_expiration_days
PLAYGROUND_SESSION_SECONDS = ENVIRONMENT.playground_session_seconds

# Single sign-on (OpenID Connect); without an issuer there is none.
PASSWORD_LOGIN = ENVIRONMENT.password_login
PUBLIC_URL = ENVIRONMENT.public_url.rstrip("/")
OIDC_ISSUER = ENVIRONMENT.oidc_issuer
OIDC_CLIENT_ID = ENVIRONMENT.oidc_client_id
OIDC_CLIENT_SECRET = ENVIRONMENT.oidc_client_secret
OIDC_SCOPES = ENVIRONMENT.oidc_scopes
OIDC_NAME = ENVIRONMENT.oidc_name
OIDC_ROLE = ENVIRONMENT.oidc_role
OIDC_ORGANIZATION = ENVIRONMENT.oidc_organization
OIDC_GROUPS_CLAIM = ENVIRONMENT.oidc_groups_claim
OIDC_GROUP_ROLES = ENVIRONMENT.oidc_group_roles
OIDC_EMAIL_DOMAINS = ENVIRONMENT.oidc_email_domains
OIDC_TRUST_EMAIL = ENVIRONMENT.oidc_trust_email
OIDC_LOGOUT = ENVIRONMENT.oidc_logout
OIDC_TIMEOUT_SECONDS = ENVIRONMENT.oidc_timeout_seconds

# Cookies belong to this host alone and no script reads the session's; by http only where people do come by http.
HTTPS = ENVIRONMENT.comes_by_https
SESSION_ENGINE = "opengate.sessions"
SESSION_COOKIE_AGE = ENVIRONMENT.session_seconds
SESSION_COOKIE_NAME = "__Host-opengate-session" if HTTPS else "opengate-session"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = ENVIRONMENT.hsts_seconds if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = ENVIRONMENT.hsts_subdomains
if ENVIRONMENT.https_header:
    SECURE_PROXY_SSL_HEADER = (f"HTTP_{ENVIRONMENT.https_header.upper().replace('-', '_')}", "https")

# Pages load what this address serves, run no script that stands in a page, and appear in no frame.
CONTENT_SECURITY_POLICY = {
    "EXCLUDE_URL_PREFIXES": ["/v1/"],  # no pages
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    },
}

LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"

# Only the playground asks what its reader speaks; the API and the console are English.
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = ["opengate.formats"]
LANGUAGES = [("en", "English"), ("fr", "Français")]
LOCALE_PATHS = [BASE_DIR / "opengate" / "locale"]  # its words win over those of the packages
LANGUAGE_COOKIE_NAME = "playground_language"
LANGUAGE_COOKIE_PATH = "/playground"
TIME_ZONE = "UTC"
USE_TZ = True

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},  # nothing is kept there
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "documents": ENVIRONMENT.document_storage
    or {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": ENVIRONMENT.var / "documents", "file_permissions_mode": 0o600},
    },
}

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # the console's files come straight from the packages; no collectstatic to forget

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.permissions.Nobody"],
    "DEFAULT_SCHEMA_CLASS": "opengate.openapi.RowSchema",
    "EXCEPTION_HANDLER": "opengate.api.drf_exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": APP_TITLE,
    "DESCRIPTION": "One OpenAI-style API in front of an organisation's models, with its documents beside it.",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/v1/",
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "COMPONENT_SPLIT_PATCH": False,
    "ENUM_NAME_OVERRIDES": {
        "PermissionType": "accounts.models.Permission",
        "LimitType": "usage.models.LimitType",
        "ModelType": "routing.models.ModelType",
        "ProviderType": "routing.models.ProviderType",
        "RouterLoadBalancingStrategy": "routing.models.LoadBalancingStrategy",
        "Metric": "routing.models.Metric",
        "ProviderCarbonFootprintZone": "routing.zones.ZONES",
        "EndpointUsage": "usage.models.Endpoint",
    },
}

ACCESS_LOG = ENVIRONMENT.access_log
TRACES = ENVIRONMENT.traces
TRACES_TO_PROVIDERS = ENVIRONMENT.traces and ENVIRONMENT.traces_to_providers
OTEL_SERVICE_NAME = ENVIRONMENT.otel_service_name
SENTRY_DSN = ENVIRONMENT.sentry_dsn
SENTRY_ENVIRONMENT = ENVIRONMENT.sentry_environment

# All goes through one handler: what others bring of their own is taken away.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "opengate.logs.Lines"},
        "json": {"()": "opengate.logs.JSONLines"},
    },
    "filters": {
        "callers": {"()": "opengate.logs.NoTracebackOfCallers"},
        "ticks": {"()": "opengate.logs.NoTicks"},
    },
    "handlers": {
        "console": {
            "class": "opengate.logs.Handler",
            "formatter": ENVIRONMENT.log_format,
            "filters": ["callers", "ticks"],
        }
    },
    "root": {"handlers": ["console"], "level": ENVIRONMENT.log_level},
    "loggers": {
        "django": {"handlers": [], "level": "NOTSET"},
        "django.server": {"handlers": [], "level": "NOTSET", "propagate": True},
        "opengate.access": {"level": "INFO"},
        # They write what was sent: statements with their values, headers, every task's arguments.
        **{name: {"level": "INFO"} for name in ("django.db.backends", "celery.pool", "kombu")},
        **{name: {"level": "WARNING"} for name in ("httpx", "httpcore", "urllib3", "celery.beat")},
    },
}
