"""Budgets and records of the tables before the ledger are in its books afterwards, and back again."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from usage import auditing
from usage.models import Account, DailyUsage

BEFORE = [("accounts", "0002_orders_of_the_list"), ("usage", "0001_first_tables")]


@pytest.fixture
def before(transactional_db, redis_client):
    """The models as they were; the tables are the newest again afterwards."""
    executor = MigrationExecutor(connection)
    executor.migrate(BEFORE)
    yield MigrationExecutor(connection).loader.project_state(BEFORE).apps
    call_command("migrate", verbosity=0)


def test_budgets_and_records_move_and_come_back(before):
    role = before.get_model("accounts", "Role").objects.create(name="r")
    organization = before.get_model("accounts", "Organization").objects.create(name="o")
    User, Record = before.get_model("accounts", "User"), before.get_model("usage", "UsageRecord")
    budgets = {"rich": Decimal("10.5"), "poor": Decimal(0), "free": None, "idle": None}
    users = {
        name: User.objects.create(email=name, role=role, organization=organization, budget=budget)
        for name, budget in budgets.items()
    }
    for number, name in enumerate(("rich", "rich", "poor", "free")):
        Record.objects.create(
            request_id=f"{number}",
            created=datetime(2026, 1, 1 + number % 2, tzinfo=UTC),
            user=users[name],
            user_email=name,
            organization=organization,
            key_name="k",
            router_name="m",
            endpoint="/v1/chat/completions",
            method="POST",
            status=200,
            outcome="finished",
            latency_ms=1,
            prompt_tokens=1,
            total_tokens=1,
            cost_prompt_tokens=1_000_000,
            cost_completion_tokens=0,
            cost=1,
            kgco2eq_min=0.001,
            kgco2eq_max=0.002,
        )
    call_command("migrate", verbosity=0)
    accounts = {account.user.email: account for account in Account.objects.select_related("user")}
    assert {name: account.budget for name, account in accounts.items()} == {
        "rich": Decimal("10.5"),
        "poor": 0,
        "free": None,
    }
    assert (accounts["rich"].spent, accounts["rich"].carbon_spent) == (2, 3)
    assert DailyUsage.objects.filter(organization_name="o", endpoint="/v1/chat/completions").count() == 4
    assert auditing.audit().is_clean
    MigrationExecutor(connection).migrate(BEFORE)
    assert dict(User.objects.values_list("email", "budget")) == budgets
