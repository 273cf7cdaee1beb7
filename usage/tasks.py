"""Background work of usage."""

from celery import shared_task
from django.utils import timezone

from usage import budgets, retention, rollups, shortage, spool


@shared_task
def drain_usage() -> None:
    """Move settled usage from Redis to Postgres."""
    spool.drain()


@shared_task
def recover_reservations() -> None:
    """Settle calls whose processes died; what they had settled themselves goes first."""
    spool.drain()
    budgets.recover()


@shared_task
def learn_estimates() -> None:
    """Remember what the last calls needed."""
    budgets.learn()


@shared_task
def refill_accounts() -> None:
    """Begin new periods; who calls first begins its own."""
    budgets.refill_due(timezone.now())


@shared_task
def delete_old_usage() -> None:
    """Delete records that are older than the setting keeps."""
    retention.delete_old()


@shared_task
def roll_up_usage() -> None:
    """Sum up hours and days for the console, and look whose budgets end soon."""
    rollups.roll_up()
    shortage.find(timezone.now())
