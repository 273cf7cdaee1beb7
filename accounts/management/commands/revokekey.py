"""Close keys."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.db.models import QuerySet
from tabulate import tabulate

from accounts import keys
from accounts.models import Key, User


class Command(BaseCommand):
    help = "Revokes a key, named by its id or its full text, or all keys of a user. Their usage stays."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("key", nargs="?", help="Id of the key, or the key itself (sk-…), as when one has leaked.")
        which.add_argument("--user", metavar="EMAIL", help="Revoke all keys of this user.")
        parser.add_argument("--json", action="store_true", help="Print one JSON list.")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        rows = self._of_user(options["user"]) if options["user"] else self._named(options["key"])
        revoked = [
            {"id": key.id, "name": key.name, "user": key.user.email, "token": key.token}
            for key in rows.select_related("user").order_by("id")
        ]
        rows.delete()
        if options["json"]:
            self.stdout.write(json.dumps(revoked))
        else:
            self.stdout.write(tabulate(revoked, headers="keys") if revoked else "The user has no keys.")

    def _of_user(self, email: str) -> QuerySet[Key]:
        if not User.objects.filter(email=email).exists():
            raise CommandError(f"User {email} not found.")
        return Key.objects.filter(user__email=email)

    def _named(self, name: str) -> QuerySet[Key]:
        if name.isascii() and name.isdigit():
            rows = Key.objects.filter(id=int(name))
        elif keys.is_well_formed(name):
            rows = Key.objects.filter(digest__in=keys.digests(name))
        else:
            raise CommandError("A key is named by its id, or by its full text: sk- and 43 characters.")
        if not rows.exists():
            raise CommandError("Key not found.")  # never with the text: it may be a secret of elsewhere
        return rows
