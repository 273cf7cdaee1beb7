"""The console's pages of money: what is left, reserved and spent; a form that is old by the time it is sent."""

import io
from decimal import Decimal

import pytest
from django.core.management import call_command

from opengate.fields import MAX_AMOUNT
from routing.models import Router
from routing.snapshot import _router
from tests.flows.test_changes_in_force import Console, Form
from tests.usage.records import fund, left, record
from usage import auditing, budgets, ledger
from usage.admin import CappedPaginator
from usage.budgets import Need
from usage.models import Account, Reservation, UsageRecord


@pytest.fixture
def console(gateway, admin):
    with gateway.client() as client:
        client.headers["Origin"] = gateway.url
        yield Console(client, admin.email)


@pytest.fixture
def under_way(ada):
    """A budget of 100, of which a call holds 10."""
    fund(ada, 100)
    row = Router.objects.create(name="priced", type="text-generation")
    Router.objects.filter(id=row.id).update(cost_prompt_tokens=10**6, cost_completion_tokens=10**6)
    router = _router(Router.objects.get(id=row.id))
    call = record("under-way", user=ada, cost_prompt_tokens="1000000", cost_completion_tokens="1000000")
    budgets.reserve(ada.id, call, router, Need(prompt=4, completion=6), 0.0)


def page_of(user) -> str:
    return f"/admin/accounts/user/{user.id}/change/"


def test_what_is_left_and_reserved_is_on_the_lists(console, ada, under_way):
    listed = console.page("/admin/accounts/user/?q=ada")
    assert ">100<" in listed
    assert "under-way" in (found := console.page("/admin/usage/reservation/?q=under-way"))
    assert ">router<" in found
    page = console.page(page_of(ada))
    assert "Left to spend" in page
    assert 'class="readonly">10<' in page


def test_a_budget_is_set_on_the_users_page(console, ada):
    console.send(page_of(ada), "user_form", **{"account-0-budget": "12.5", "account-0-carbon_budget": "3"})
    account = Account.objects.get(user=ada)
    assert (account.budget, account.carbon_budget) == (Decimal("12.5"), 3)
    console.send(page_of(ada), "user_form", **{"account-0-budget": ""})
    assert left(ada) is None


def test_an_allowance_is_set_on_the_users_page(console, ada):
    fields = {"allowance": "20", "period": "month", "time_zone": "Europe/Paris", "refill_day": "5", "refill_hour": "6"}
    console.send(page_of(ada), "user_form", **{f"account-0-{name}": value for name, value in fields.items()})
    account = Account.objects.get(user=ada)
    assert (account.budget, account.allowance, account.period) == (20, 20, "month")
    assert account.refills is not None
    assert (account.refills.day, account.refills.minute) == (5, 0)
    assert " 06:00 Europe/Paris" in console.page(page_of(ada))


def test_a_budget_that_an_allowance_sets_is_not_lifted_alone(console, ada):
    console.send(page_of(ada), "user_form", **{"account-0-allowance": "20", "account-0-period": "day"})
    form = Form(console.page(page_of(ada)), "user_form").fields | {"account-0-budget": ""}
    assert "An allowance sets this: clear the allowance first." in console.client.post(page_of(ada), data=form).text
    assert left(ada) == 20
    console.send(page_of(ada), "user_form", **{"account-0-budget": "", "account-0-allowance": ""})
    assert left(ada) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"allowance": "20"}, "An allowance needs a period."),
        ({"allowance": "-1", "period": "day"}, "greater than or equal to 0"),
        ({"time_zone": "Europe/Atlantis"}, "Europe/Atlantis is not one of the available choices"),
        ({"refill_day": "29", "period": "month"}, "less than or equal to 28"),
        ({"refill_hour": "24", "period": "month"}, "less than or equal to 23"),
        ({"budget": "-1"}, "greater than or equal to 0"),
        ({"budget": "much"}, "Enter a number."),
        ({"budget": "1000000000000"}, "less than or equal to 999999999999"),
        ({"allowance": "999999999999999999", "period": "day"}, "less than or equal to 999999999999"),
    ],
)
def test_what_makes_no_sense_is_said(console, ada, fields, said):
    path = page_of(ada)
    form = Form(console.page(path), "user_form").fields
    page = console.client.post(path, data=form | {f"account-0-{name}": value for name, value in fields.items()})
    assert page.status_code == 200
    assert said in page.text
    assert not Account.objects.filter(user=ada).exists()


def test_a_reservation_of_somebody_who_is_gone_breaks_no_page(console, ada, under_way):
    ada.delete()
    console.page("/admin/usage/reservation/")
    assert "under-way" in console.page("/admin/usage/reservation/under-way/change/")


def test_a_form_that_was_open_while_calls_went_on_changes_what_was_changed_in_it(console, ada, under_way):
    form = Form(console.page(page_of(ada)), "user_form").fields
    call = {"completion_tokens": 9, "prompt_tokens": 0, "total_tokens": 9, "cost": "9"}
    prices = {"cost_prompt_tokens": "1000000", "cost_completion_tokens": "1000000"}
    ledger.store([record("under-way", user=ada, **prices, **call)])
    assert console.client.post(page_of(ada), data=form | {"name": "Ada"}).status_code == 302
    account = Account.objects.get(user=ada)
    assert (account.budget, account.spent, account.reserved) == (91, 9, 0)
    assert console.client.post(page_of(ada), data=form | {"account-0-carbon_budget": "5"}).status_code == 302
    assert left(ada) == 91
    assert console.client.post(page_of(ada), data=form | {"account-0-budget": "50"}).status_code == 302
    assert left(ada) == 50
    assert auditing.audit().is_clean


def test_a_form_that_was_open_when_an_allowance_came_leaves_it_there(console, ada):
    fund(ada, 5)
    form = Form(console.page(page_of(ada)), "user_form").fields
    call_command("setbudget", ada.email, "--allowance", "20", "--period", "month", stdout=io.StringIO())
    assert console.client.post(page_of(ada), data=form | {"name": "Ada"}).status_code == 302
    account = Account.objects.get(user=ada)
    assert (account.allowance, account.period, account.budget) == (20, "month", 20)


def test_the_largest_budget_can_be_shown_and_saved(console, ada):
    call_command("setbudget", ada.email, "--budget", str(MAX_AMOUNT), stdout=io.StringIO())
    console.send(page_of(ada), "user_form", name="Ada")
    assert left(ada) == MAX_AMOUNT


def test_pages_are_counted_to_an_end(transactional_db, ada, monkeypatch):
    monkeypatch.setattr(CappedPaginator, "MOST", 3)
    ledger.store([record(f"{n}", user=ada) for n in range(5)])
    assert CappedPaginator(UsageRecord.objects.all(), 2).count == 3


@pytest.mark.parametrize("model", ["usagerecord", "dailyusage", "reservation"])
def test_history_is_read_and_not_written(console, ada, under_way, model):
    ledger.store([record("a", user=ada)])
    assert console.client.get(f"/admin/usage/{model}/").status_code == 200
    assert console.client.get(f"/admin/usage/{model}/add/").status_code == 403
    assert Reservation.objects.exists()
