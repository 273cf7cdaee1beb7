"""Set what a user may spend."""

import json
from argparse import ArgumentParser
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from accounts.models import User
from opengate.fields import MAX_AMOUNT
from usage.models import Account, Period

NONE = "none"
OPTIONS = {"refill_day": "--day", "refill_hour": "--hour"}  # the others are called as their fields are


class Command(BaseCommand):
    help = "Sets a user's budgets and what refills them; what is not named stays as it is. Prints how they are then."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--budget", help="What is left to spend; none for no limit.")
        parser.add_argument("--carbon-budget", help="Grams of CO2eq left to spend; none for no limit.")
        parser.add_argument("--allowance", help="What the budget is set to in each period; none to end that.")
        parser.add_argument("--carbon-allowance", help="Grams of CO2eq for each period; none to end that.")
        parser.add_argument("--period", choices=[*Period.values, NONE], help="How often allowances refill.")
        parser.add_argument("--time-zone", help="Whose clock counts, like Europe/Paris.")
        parser.add_argument("--day", dest="refill_day", type=int, help="Day of the month, 1 to 28.")
        parser.add_argument("--hour", dest="refill_hour", type=int, help="Hour of the day, 0 to 23.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email=options["email"]).first()
        if user is None:
            raise CommandError(f"User {options['email']} not found.")
        account = Account.objects.of(user)
        self._set_allowances(account, options)
        for name, allowance, set_budget in (
            ("budget", account.allowance, account.set_budget),
            ("carbon_budget", account.carbon_allowance, account.set_carbon_budget),
        ):
            if options[name] is not None:
                amount = _amount(name, options)
                if amount is None and allowance is not None:
                    raise CommandError(f"An allowance sets {_option(name)}: end the allowance first.")
                set_budget(amount)
        self._tell(Account.objects.get(pk=account.pk), options["json"])

    def _set_allowances(self, account: Account, options: dict[str, Any]) -> None:
        given = {
            name: options[name] for name in ("time_zone", "refill_day", "refill_hour") if options[name] is not None
        }
        for name in ("allowance", "carbon_allowance"):
            if options[name] is not None:
                given[name] = _amount(name, options)
        if options["period"] is not None:
            given["period"] = "" if options["period"] == NONE else options["period"]
        if not given:
            return
        for name, value in given.items():
            setattr(account, name, value)
        try:
            account.clean_fields()
            account.clean()
        except ValidationError as error:
            told = [
                f"{OPTIONS.get(name, _option(name))}: {' '.join(texts)}" for name, texts in error.message_dict.items()
            ]
            raise CommandError(" ".join(told)) from None
        account.set_allowances(timezone.now())

    def _tell(self, account: Account, as_json: bool) -> None:
        shown = {
            "user": account.user.email,
            "budget": account.budget,
            "reserved": account.reserved,
            "spent": account.spent,
            "carbon_budget": account.carbon_budget,
            "carbon_reserved": account.carbon_reserved,
            "carbon_spent": account.carbon_spent,
            "allowance": account.allowance,
            "carbon_allowance": account.carbon_allowance,
            "period": account.period or None,
            "time_zone": account.time_zone,
            "refill_day": account.refill_day,
            "refill_hour": account.refill_hour,
            "refills": account.refills.isoformat() if account.refills else None,
        }
        if as_json:
            self.stdout.write(json.dumps(shown, default=str))
            return
        for name, value in shown.items():
            if name in ("budget", "carbon_budget") and value is None:
                value = "unlimited"
            self.stdout.write(f"{name.replace('_', ' '):17} {NONE if value is None else value}")


def _amount(name: str, options: dict[str, Any]) -> Decimal | None:
    text = options[name]
    if text == NONE:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not (amount.is_finite() and 0 <= amount <= MAX_AMOUNT):
        raise CommandError(f"{_option(name)} must be a number from 0 to {MAX_AMOUNT}, or none.")
    return round(amount, 6)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
