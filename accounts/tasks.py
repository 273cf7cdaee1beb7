"""Background work of accounts."""

from celery import shared_task

from opengate.sessions import SessionStore


@shared_task
def clear_sessions() -> None:
    """Delete sessions that have ended; those of people who sign out go by themselves."""
    SessionStore.clear_expired()
