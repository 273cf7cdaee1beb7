"""Errors of ours to Sentry: off without OPENGATE_SENTRY_DSN, and then not imported.

What the log says as an error is reported, by the log's own rules: no request, no variable of a frame, no words that
repeat what somebody sent.
"""

import logging
from typing import Any

from django.conf import settings

from opengate import logs, work
from opengate.traces import CLOSE_SECONDS


def start() -> None:
    """Once a process, and before it forks."""
    if not settings.SENTRY_DSN:
        return
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.logging import LoggingIntegration

    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        environment=settings.SENTRY_ENVIRONMENT,
        release=f"opengate@{settings.VERSION}",
        before_send=reported,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(level=None, event_level=logging.ERROR),
            DedupeIntegration(),
            AtexitIntegration(callback=lambda pending, timeout: None),  # the usual one talks on the terminal
        ],
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
        propagate_traces=False,
        enable_metrics=False,
    )


def close() -> None:
    """Send the last reports, as far as they are taken at once."""
    if settings.SENTRY_DSN:
        import sentry_sdk

        sentry_sdk.flush(CLOSE_SECONDS)


def reported(event: Any, hint: dict[str, Any]) -> Any:
    """The event as it may leave the house; None for one that is no error of ours."""
    record: logging.LogRecord | None = hint.get("log_record")
    error = hint["exc_info"][1] if hint.get("exc_info") else None
    if record is None or record.name.startswith(("opentelemetry.", "celery.beat")):
        return None  # a collector or a broker that is away
    if record.name == "django.request" and error is None:
        return None  # a refusal, such as 503 while the database is away: the log and the metrics tell
    for name in ("request", "user", "extra", "breadcrumbs", "modules", "contexts"):
        event.pop(name, None)
    event["logentry"] = {"message": logs.message_of(record)}
    event["tags"] = {name: str(value) for name, value in work.current().known().items()}
    for one in event.get("exception", {}).get("values", ()):
        one["value"] = ""
    if error is not None and event["exception"]["values"]:
        event["exception"]["values"][-1]["value"] = logs.words_of(error)
    return event
