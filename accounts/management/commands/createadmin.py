"""Make a user who administers OpenGate."""

import json
import secrets
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email
from django.db import DataError, IntegrityError, transaction

from accounts.models import Key, Permission, Role, User


class Command(BaseCommand):
    help = "Makes a user with the admin permission and a key; password and key are shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--role", default="admin", help="Role to give; made with all permissions when missing.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        try:
            validate_email(options["email"].strip())
        except ValidationError:
            raise CommandError("That is no e-mail address; it is the name by which the user signs in.") from None
        role, _ = Role.objects.get_or_create(name=options["role"], defaults={"permissions": Permission.values})
        if Permission.ADMIN not in role.permissions:
            raise CommandError(f"Role {role.name} exists and does not hold the admin permission.")
        password = secrets.token_urlsafe(18)
        try:
            with transaction.atomic():
                user = User.objects.create_user(options["email"], password, role)
        except IntegrityError:
            raise CommandError(f"User {options['email']} already exists.") from None
        except (DataError, ValueError) as error:
            raise CommandError(f"The e-mail cannot be kept: {error}") from None
        _, key = Key.objects.issue(user, "first key")
        made = {"email": user.email, "password": password, "key": key}
        if options["json"]:
            self.stdout.write(json.dumps(made))
        else:
            for name, value in made.items():
                self.stdout.write(f"{name:9} {value}")
