"""Make an API key for a user."""

import json
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DataError, transaction
from django.utils import timezone

from accounts.errors import KeyLivesTooLong
from accounts.models import Key, User

MOST_DAYS = 36_500


class Command(BaseCommand):
    help = "Makes an API key for a user; it is shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--name", default="command line", help="What the key is for.")
        parser.add_argument("--days", type=int, help="Days until it expires; without, it never does.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email=options["email"]).first()
        if user is None:
            raise CommandError(f"User {options['email']} not found.")
        if options["days"] is not None and not 1 <= options["days"] <= MOST_DAYS:
            raise CommandError(f"--days must be from 1 to {MOST_DAYS}.")
        if not options["name"].strip():
            raise CommandError("--name must not be empty.")
        expires = timezone.now() + timedelta(days=options["days"]) if options["days"] else None
        try:
            with transaction.atomic():
                key, text = Key.objects.issue(user, options["name"], expires)
        except (DataError, ValueError) as error:
            raise CommandError(f"--name cannot be kept: {error}") from None
        except KeyLivesTooLong as error:
            raise CommandError(str(error)) from None
        self.stdout.write(json.dumps({"id": key.id, "key": text}) if options["json"] else text)
