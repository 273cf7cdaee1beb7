"""Budgets from the command line."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from tests.usage.records import left, record
from usage import ledger
from usage.models import Account

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


@pytest.fixture
def setbudget(ada):
    def _setbudget(*words: str, email: str = ada.email) -> dict:
        out = io.StringIO()
        call_command("setbudget", email, *words, "--json", stdout=out)
        found: dict = json.loads(out.getvalue())
        return found

    return _setbudget


def test_a_budget_is_set_told_and_lifted(setbudget, ada):
    ledger.store([record("a", user=ada, cost="2")])
    told = setbudget("--budget", "12.5", "--carbon-budget", "3")
    assert (told["budget"], told["spent"], told["carbon_budget"]) == ("12.500000", "2.000000", "3.000000")
    assert left(ada) == 12.5
    assert setbudget()["budget"] == "12.500000"
    assert setbudget("--budget", "none")["budget"] is None
    assert setbudget()["carbon_budget"] == "3.000000"


def test_an_allowance_is_set_and_ended(setbudget, ada):
    calendar = ("--period", "month", "--time-zone", "Europe/Paris", "--day", "5", "--hour", "6")
    told = setbudget("--allowance", "20", "--carbon-allowance", "7", *calendar)
    assert (told["budget"], told["carbon_budget"], told["period"]) == ("20.000000", "7.000000", "month")
    account = Account.objects.get(user=ada)
    assert account.refills is not None
    assert (account.refills.day, account.time_zone, account.refill_hour) == (5, "Europe/Paris", 6)
    told = setbudget("--allowance", "none", "--carbon-allowance", "none", "--period", "none")
    assert (told["budget"], told["refills"], told["period"]) == ("20.000000", None, None)


def test_an_allowance_is_not_lifted_by_lifting_the_budget(setbudget, ada):
    setbudget("--allowance", "20", "--carbon-allowance", "7", "--period", "day")
    for words in (("--budget", "none"), ("--carbon-budget", "none")):
        with pytest.raises(CommandError, match=f"An allowance sets {words[0]}: end the allowance first."):
            setbudget(*words)
    told = setbudget("--budget", "none", "--allowance", "none")
    assert (told["budget"], told["carbon_budget"], told["refills"] is None) == (None, "7.000000", False)
    told = setbudget("--carbon-budget", "none", "--carbon-allowance", "none")
    assert (told["carbon_budget"], told["refills"], told["period"]) == (None, None, "day")


def test_a_period_without_an_allowance_refills_nothing(setbudget):
    told = setbudget("--period", "month", "--time-zone", "Europe/Paris", "--day", "3", "--hour", "4")
    assert (told["refills"], told["time_zone"], told["refill_day"], told["refill_hour"]) == (None, "Europe/Paris", 3, 4)


def test_an_overrun_leaves_nothing(setbudget, ada):
    setbudget("--budget", "1")
    ledger.store([record("a", user=ada, cost="2")])
    assert setbudget()["budget"] == "0.000000"


def test_it_is_readable(ada):
    out = io.StringIO()
    call_command("setbudget", ada.email, "--budget", "5", stdout=out)
    lines = {line[:17].strip(): line[18:] for line in out.getvalue().splitlines()}
    assert (lines["budget"], lines["carbon budget"], lines["allowance"]) == ("5.000000", "unlimited", "none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "-1"), "--budget must be a number from 0 to 999999999999, or none."),
        (("--budget", "much"), "--budget must be"),
        (("--budget", "nan"), "--budget must be"),
        (("--carbon-allowance", "1e99"), "--carbon-allowance must be"),
        (("--allowance", "5"), "An allowance needs a period."),
        (("--period", "month", "--day", "29"), "--day: Ensure this value is less than or equal to 28"),
        (("--period", "month", "--hour", "24"), "--hour: Ensure this value is less than or equal to 23"),
        (("--period", "month", "--day", "-1"), "greater than or equal to"),
        (("--time-zone", "Mars"), "--time-zone: Mars is no time zone"),
        (("--period", "week"), "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_said_and_changes_nothing(setbudget, ada, words, said):
    with pytest.raises(CommandError, match=said):
        setbudget(*words)
    assert not Account.objects.filter(user=ada).exists()


def test_who_is_not_there_has_no_budget(setbudget):
    with pytest.raises(CommandError, match="not found"):
        setbudget("--budget", "5", email="nobody@example.org")
