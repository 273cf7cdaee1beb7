"""Background work of usage."""

from celery import shared_task

from usage import spool


@shared_task
def drain_usage() -> None:
    """Move settled usage from Redis to Postgres."""
    spool.drain()
